"""Flower's simulation on Ray: the numbers of the serial twin, whatever the number of actors; errors that name."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import SMALL
from test_split import WORDS, manifest, words  # noqa: F401, a fixture

from fedser import compose, run
from fedser.errors import RunError

pytestmark = pytest.mark.ray
TRAINED = ["partition=iid", "partition.clients=5", "attack=pgd", "defence=two_stage", "client.optimizer_state=persist",
           "reuse=false", "features.frames=32", "evaluation.draws=2"]  # fmt: skip


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return run(compose([*SMALL, *TRAINED]), tmp_path_factory.mktemp("serial") / "run")


def same(one, other):
    for name in ("history.jsonl", "model.safetensors", "evaluation.json", "utterances.csv", "example.npz"):
        if name != "example.npz" or (one.folder / name).exists():  # waveforms are no picture
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_a_ray_of_its_own_gives_the_serial_numbers_to_the_bit(small, serial, monkeypatch):
    """One client of Ray's logical GPU after the other. On a machine without CUDA it computes on the CPU."""
    scratch = tempfile.mkdtemp(prefix="t")  # short: Ray's sockets lie below it
    monkeypatch.setattr(tempfile, "tempdir", scratch)
    gpu = ["simulation=gpu", "simulation.total_gpus=1", "simulation.num_gpus=0.5", "simulation.num_cpus=0.5",
           "simulation.device=cpu"]  # fmt: skip
    result = small(*TRAINED, *gpu)
    assert result.metrics["plan"] == "5 clients · 2 at a time on Ray, each with 0.5 CPU and 0.5 GPU · 3 waves"
    assert result.history[0]["train/loss"] != result.history[1]["train/loss"]  # really trained
    same(serial, result)
    assert not list(Path(scratch).glob("fedser-ray-*"))
    shutil.rmtree(scratch)


@pytest.mark.parametrize("actors", [3])
def test_any_number_of_actors_gives_them(callers_ray, small, serial, actors):
    result = small(*TRAINED, "simulation=cpu", f"simulation.actors={actors}")
    assert result.metrics["plan"].startswith(f"5 clients · {actors} at a time on Ray")
    same(serial, result)


def test_speakers_held_out_are_evaluated_as_they_are_serially(callers_ray, manifest, tmp_path):  # noqa: F811
    """Unknown to everybody: their normaliser, batch-norm layers and selection are made where they are evaluated. A
    detector too is learnt from the same sums."""
    chosen = words(manifest, *WORDS, "reuse=false", "detector=lda", "detector.attack=[fgsm]")
    alone = run(compose(chosen), tmp_path / "serial")
    result = run(compose([*chosen, "simulation=cpu", "simulation.actors=2"]), tmp_path / "ray")
    assert result.metrics["plan"].startswith("6 clients, 2 of them held out · 2 at a time on Ray")
    assert result.history[-1]["train/clients"] == 4
    assert {"uar/unseen/original", "uar/unseen/validation/original"} <= result.metrics.keys() & result.history[0].keys()
    assert {"detector/auc/evading", "detector/unseen/auc/evading"} <= result.metrics.keys()
    same(alone, result)


def test_a_frozen_backbone_is_the_same_in_every_worker(callers_ray, tmp_path):
    """It does not travel; training goes by kept states, FGSM by waveforms that workers hear themselves."""
    chosen = [word for word in SMALL if not word.startswith(("features", "model", "experiment"))]
    chosen += [
        "features=waveform",
        "model=ssl",
        "model.hidden=8",
        "augment=[]",
        "defence=none",
        "attack=fgsm",
        "attack.eps=0.01",
        "strategy.fraction_train=1",
    ]
    chosen += ["model.config={d_model:16,encoder_layers:2,encoder_attention_heads:2,encoder_ffn_dim:16}", "reuse=false"]
    alone = run(compose(chosen), tmp_path / "serial")
    result = run(compose([*chosen, "simulation=cpu", "simulation.actors=2"]), tmp_path / "ray")
    assert result.metrics["plan"].startswith("2 clients · 2 at a time on Ray")
    same(alone, result)


def test_failing_client_fails_the_run_with_its_name_and_traceback(callers_ray, small, tmp_path):
    with pytest.raises(RunError) as raised:
        small("client.lr=1e30", "client.epochs=3", "simulation=cpu")
    assert "client '1" in str(raised.value) and "the training loss became" in str(raised.value)
    assert "training/local.py" in str(raised.value)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
