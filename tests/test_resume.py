"""Interrupted runs go on where they stopped, with the numbers of an undisturbed one to the bit."""

import functools
import json
import logging
import resource
import shutil
import signal

import pytest
import wandb
from conftest import SMALL
from processes import rounds, start, until
from safetensors.numpy import load_file

from fedser import compose, run
from fedser.display import Display
from fedser.errors import InputError, Interrupted, RunError

FOUR = ["partition=iid", "partition.clients=4", "defence=two_stage", "rounds=4", "evaluation.every=2", "reuse=false",
        "features.frames=32", "evaluation.draws=2"]  # fmt: skip
TIME = "features.frames=128"  # for a process whose rounds another one shall find under way
FILES = ("history.jsonl", "model.safetensors", "evaluation.json", "utterances.csv", "example.npz")


def same(one, other):
    for name in FILES:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def stop(round, folder, *overrides, error=None):
    """Makes the small run in `folder` and stops it when `round` is in the history but not in a checkpoint."""
    error = error or Interrupted("stopped")

    def show(display, row):
        if row["round"] == round:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "round", show)
        with pytest.raises(type(error)):
            run(compose([*SMALL, *FOUR, *overrides]), folder)


@pytest.fixture
def interrupted(tmp_path):
    """interrupted(round, *overrides): the small run, stopped in that round."""

    def go(round, *overrides, folder=None, error=None):
        stop(round, folder or tmp_path / "run", *overrides, error=error)

    return go


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(*overrides) → the run that nothing disturbs; several tests read the same one."""

    @functools.cache
    def go(*overrides):
        return run(compose([*SMALL, *FOUR, *overrides]), tmp_path_factory.mktemp("whole") / "run")

    return go


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped in round 4."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop(4, folder)
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["client.optimizer_state=persist"],
        ["client.optimizer_state=persist", "checkpoint.every=2", "strategy.fraction_train=0.5"],
        ["strategy=fedavgm"],
        ["strategy=fedadam"],
        ["strategy=krum"],
        ["strategy=dp"],
        [
            "averaging=ema",
            "batch_norm=recompute",
            "augment=[crop,mixup]",
            "client/schedule=cosine",
            "strategy=centralised",
        ],
        ["client.optimizer_state=average", "batch_norm=local", "strategy.fraction_train=0.5", "strategy=fedavgm"],
        [
            "averaging=last_k",
            "selection=best",
            "selection.every=1",
            "selection.attack=fgsm",
            "partition.validation=0.2",
        ],
    ],
    ids=" ".join,
)
def test_resumed_equals_undisturbed(small, interrupted, whole, tmp_path, overrides):
    interrupted(4, *overrides)
    before = json.loads((tmp_path / "run/summary.json").read_text())
    assert before["status"] == "interrupted" and before["rounds"] == 4
    again = small(*FOUR, *overrides)
    same(whole(*overrides), again)
    assert again.metrics["resumed_after"] == [2 if "checkpoint.every=2" in overrides else 3]
    assert again.metrics["started"] == before["started"] and len(again.metrics["train_seconds"]) == 4
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {*FILES, "config.yaml", "summary.json", "times.json", "weights"}  # neither checkpoints nor moments
    assert not list(tmp_path.glob("run.old-*"))


def test_interrupted_twice(small, interrupted, whole):
    interrupted(2)
    interrupted(4)
    again = small(*FOUR)
    same(whole(), again)
    assert again.metrics["resumed_after"] == [1, 3]


def test_failed_runs_go_on_too(small, interrupted, whole, tmp_path):
    interrupted(3, error=RunError("as a client's"))
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
    same(whole(), small(*FOUR))


def newest(folder):
    return sorted((folder / "checkpoint").glob("round-*.safetensors"))[-1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_checkpoint_is_refused_and_the_one_before_used(small, stopped, whole, tmp_path, damage, caplog):
    shutil.copytree(stopped, tmp_path / "run")
    file = newest(tmp_path / "run")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    file.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    again = small(*FOUR)
    same(whole(), again)
    assert again.metrics["resumed_after"] == [2]
    assert f"{file} can't be used: it is damaged" in caplog.text


def test_another_configurations_checkpoint_is_refused(small, interrupted, whole, tmp_path, caplog):
    interrupted(4, "seed=5", folder=tmp_path / "other")
    interrupted(3)
    newest(tmp_path / "other").rename(tmp_path / "run/checkpoint/round-00003.safetensors")
    again = small(*FOUR)
    same(whole(), again)
    assert again.metrics["resumed_after"] == [2] and "it is of another configuration" in caplog.text


def test_lost_moments_are_noticed(small, interrupted, whole, tmp_path, caplog):
    persist = "client.optimizer_state=persist"
    interrupted(4, persist)
    (tmp_path / "run/state/client-00001/round-00003.safetensors").unlink()
    again = small(*FOUR, persist)
    same(whole(persist), again)
    assert "the optimizer's moments of client 'client-1' after round 3 are gone" in caplog.text


def test_moments_can_be_kept_elsewhere_and_two_generations_are(small, interrupted, whole, tmp_path):
    overrides = ["client.optimizer_state=persist", f"client.state_folder={tmp_path / 'scratch'}"]
    interrupted(4, *overrides)
    (folder,) = (tmp_path / "scratch").iterdir()
    assert not (tmp_path / "run/state").exists()
    kept = [path.name for path in sorted((folder / "client-00000").iterdir())]
    assert kept == ["round-00003.safetensors", "round-00004.safetensors"]
    same(whole("client.optimizer_state=persist"), small(*FOUR, *overrides))
    assert not folder.exists()


def test_too_little_room_for_moments_is_said_before(small, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(InputError, match=r"needs .* for the moments of 4 clients, 2 times, .* room for 10 kB"):
        small(*FOUR, "client.optimizer_state=persist")
    assert not (tmp_path / "run").exists()


def test_resume_false_starts_over_and_moves_the_old_folder_aside(small, interrupted, whole, tmp_path):
    interrupted(3)
    again = small(*FOUR, "resume=false")
    same(whole(), again)
    assert "resumed_after" not in again.metrics
    assert json.loads((tmp_path / "run.old-1/summary.json").read_text())["status"] == "interrupted"
    assert newest(tmp_path / "run.old-1").name == "round-00002.safetensors"


def test_without_checkpoints_it_starts_over(small, interrupted, tmp_path):
    interrupted(3, "checkpoint.every=null")
    assert not (tmp_path / "run/checkpoint").exists()
    again = small(*FOUR, "checkpoint.every=null").metrics
    assert "resumed_after" not in again
    assert "recall/original/anger" in again  # the summary is whole without a checkpoint, too
    assert (tmp_path / "run.old-1").is_dir()


def test_keep_says_which_weights_stay(small, whole):
    last = small(*FOUR, "checkpoint.keep=last")
    weights = sorted(path.name for path in (whole().folder / "weights").iterdir())
    assert weights == ["round-00002.safetensors", "round-00004.safetensors"]
    assert [path.name for path in (last.folder / "weights").iterdir()] == ["round-00004.safetensors"]
    early = load_file(whole().folder / "weights/round-00002.safetensors")
    final = load_file(whole().folder / "weights/round-00004.safetensors")
    assert early["parameters"].shape == final["parameters"].shape and (early["parameters"] != final["parameters"]).any()


def test_replayed_run_goes_on_too(small, interrupted, tmp_path):
    reuse = ["reuse=true", "seed=21"]
    whole = small(*FOUR, *reuse, folder=tmp_path / "whole")
    interrupted(4, *reuse)
    again = small(*FOUR, *reuse)
    same(whole, again)
    assert again.metrics["reused"] and again.metrics["resumed_after"] == [3]


def test_replayed_run_that_may_no_longer_reuse_starts_over(small, interrupted, tmp_path, caplog):
    """Its checkpoints hold no weights to train on from."""
    whole = small(*FOUR, "reuse=true", "seed=22", folder=tmp_path / "whole")
    interrupted(4, "reuse=true", "seed=22")
    again = small(*FOUR, "reuse=false", "seed=22")
    same(whole, again)
    assert "resumed_after" not in again.metrics and "not to be reused" in caplog.text


def test_full_disk_leaves_the_last_checkpoint_whole(small, whole, tmp_path, monkeypatch):
    """A limit on file size stands in for a full disk: the kernel refuses the write the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(display, row):
        if row["round"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    with monkeypatch.context() as patch:
        patch.setattr(Display, "round", fill)
        try:
            with pytest.raises(RunError, match="Free some space"):
                small(*FOUR)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = sorted(path.name for path in (tmp_path / "run/checkpoint").iterdir())
    assert left == ["round-00001.safetensors", "round-00002.safetensors"]
    again = small(*FOUR)
    same(whole(), again)
    assert again.metrics["resumed_after"] == [2]


def test_wandb_gets_one_unbroken_curve(small, interrupted, tmp_path):
    from test_tracking import records

    interrupted(3, "logger=wandb")
    small(*FOUR, "logger=wandb")
    wandb.teardown()
    rounds, ids = [], set()
    for record in records(tmp_path / "run"):
        if record.WhichOneof("record_type") == "history":
            row = {i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in record.history.item}
            rounds += [row["round"]] if "train/loss" in row else []
        elif record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
    assert rounds == [1, 2, 3, 4]
    assert ids == {(tmp_path / "run/wandb/run-id").read_text()}
    assert len(list((tmp_path / "run/wandb/replaced-1").iterdir())) == 1  # the record of the first attempt


@pytest.mark.ray
def test_killed_driver_loses_nothing_but_the_current_round(small, tmp_path):
    """kill -9 of the driver on Ray, in the middle of a round; the same command line goes on."""
    more = ["rounds=8", "client.optimizer_state=persist", "evaluation.every=4", TIME]
    whole = small(*FOUR, *more, folder=tmp_path / "whole")
    process = start(tmp_path, *SMALL, *FOUR, *more, "simulation=cpu", "hydra.run.dir=run")
    until(lambda: rounds(tmp_path / "run") >= 3, process)
    process.kill()
    process.communicate(timeout=60)
    done = (tmp_path / "run/history.jsonl").read_text().count("\n")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "running"
    again = small(*FOUR, *more)  # serial this time: where it runs decides nothing
    same(whole, again)
    assert again.metrics["resumed_after"][0] >= done - 1 >= 2


WAITING = ["reuse=true", "rounds=30", "defence=none", "attack=none", "evaluation.every=30", TIME]


def test_two_processes_train_a_model_once(small, tmp_path, caplog):
    """The second one, this process, waits for the first one's model."""
    first = start(tmp_path, *SMALL, *FOUR, *WAITING, "seed=31", "hydra.run.dir=first")
    until(lambda: rounds(tmp_path / "first") >= 1, first)
    second = small(*FOUR, *WAITING, "seed=31", "evaluation.batch_size=8")
    assert "waiting for it" in caplog.text
    errors = first.communicate(timeout=120)[1]
    assert first.returncode == 0, errors
    assert not json.loads((tmp_path / "first/summary.json").read_text())["reused"]
    assert second.metrics["reused"]


def test_waiting_for_a_killed_process_ends(small, tmp_path):
    first = start(tmp_path, *SMALL, *FOUR, *WAITING, "seed=32", "hydra.run.dir=first")
    until(lambda: rounds(tmp_path / "first") >= 1, first)

    class Kill(logging.Handler):
        def emit(self, record):
            if "waiting for it" in record.getMessage():
                first.send_signal(signal.SIGKILL)

    logging.root.addHandler(kill := Kill())
    try:
        second = small(*FOUR, *WAITING, "seed=32", "evaluation.batch_size=8")
    finally:
        logging.root.removeHandler(kill)
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    assert not second.metrics["reused"]
