"""One run from configuration to result: its files, and what is not done twice."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from safetensors.numpy import load_file
from torchattacks.attack import Attack

from fedser import compose, run
from fedser.config.settings import Settings
from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract
from fedser.errors import InputError

CONDITIONS = ["original", "randomised", "adversarial/fgsm", "adversarial/pgd", "randomised_adversarial/fgsm",
              "randomised_adversarial/pgd"]  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    from conftest import SMALL

    overrides = [*SMALL, "evaluation.attacks=[fgsm,pgd]", "evaluation.every=2", "rounds=3"]
    return run(compose(overrides), tmp_path_factory.mktemp("run") / "here")


def test_folder_holds_what_it_should(result):
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"config.yaml", "history.jsonl", "summary.json", "model.safetensors", "weights"} | {
        "evaluation.json", "utterances.csv", "example.npz", "times.json",
    }  # fmt: skip
    assert {path.name for path in (result.folder / "weights").iterdir()} == {
        "round-00002.safetensors",
        "round-00003.safetensors",
    }


def test_config_is_resolved(result):
    text = (result.folder / "config.yaml").read_text()
    assert "${" not in text
    assert yaml.safe_load(text)["evaluation"]["attacks"] == ["fgsm", "pgd"]


def test_history_has_a_flat_row_per_round(result):
    rows = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["round"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert np.isfinite(row["train/loss"]) and not any(isinstance(value, dict) for value in row.values())
    assert [f"uar/{name}" in row for row in rows for name in CONDITIONS] == [False] * 6 + [True] * 12


def test_summary_holds_every_final_metric(result):
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.metrics))
    assert summary["status"] == "finished" and summary["rounds"] == 3 and summary["clients"] == 2
    for name in CONDITIONS:
        assert summary[f"uar/{name}"] == result.history[-1][f"uar/{name}"]
        assert 0 <= summary[f"accuracy/{name}"] <= 1
        assert f"recall/{name}/anger" in summary


def test_confusions_add_up(result):
    saved = json.loads((result.folder / "evaluation.json").read_text())
    assert len(saved["classes"]) == 7 and set(saved["clients"]) == {"14", "15"}
    for name in CONDITIONS:
        condition = saved["conditions"][name]
        pooled = np.array(condition["matrix"])
        assert (pooled == sum(np.array(matrix) for matrix in condition["by_client"].values())).all()
        assert (pooled == sum(np.array(matrix) for matrix in condition["by_draw"])).all()
        counts = pooled.sum(axis=1)
        uar = np.mean([pooled[i, i] / counts[i] for i in range(7) if counts[i]])
        assert result.metrics[f"uar/{name}"] == pytest.approx(uar)


@pytest.mark.rounding
def test_saved_model_scores_as_the_summary_says(result):
    settings = Settings.of(yaml.safe_load((result.folder / "config.yaml").read_text()))
    model = settings.model.component.build(classes=7)
    model.load_state_dict(safetensors.torch.load_file(result.folder / "model.safetensors"))
    corpus = corpora.load(settings.dataset)
    store = extract(corpus, settings.features)
    splits = partition(store.table, settings.partition, settings.seed)
    right = 0
    for split in splits:
        frames = np.concatenate([store.frames[s.train] for s in splits]).astype(np.float64)
        x = (store.frames[split.test] - frames.mean(axis=(0, 1))) / frames.std(axis=(0, 1))
        with torch.no_grad():
            predicted = model.eval()(torch.from_numpy(x.astype(np.float32)).unsqueeze(1)).argmax(1).numpy()
        right += (predicted == store.table["label"].to_numpy()[split.test]).sum()
    tested = sum(len(split.test) for split in splits)
    assert right / tested == pytest.approx(result.metrics["accuracy/original"], abs=1.01 / tested)


def trainings(monkeypatch):
    from fedser.federation import server_app

    rounds = []
    real = server_app.Federation.train

    def counted(self, strategy, round, *rest):
        rounds.append(round)
        return real(self, strategy, round, *rest)

    monkeypatch.setattr(server_app.Federation, "train", counted)
    return rounds


def test_runs_that_differ_in_what_they_evaluate_share_a_model(small, tmp_path, monkeypatch):
    trained = trainings(monkeypatch)
    common = ["seed=11", "defence=none", "evaluation.every=1"]
    first = small(*common, "attack=fgsm", folder=tmp_path / "fgsm")
    assert trained == [1, 2] and not first.metrics["reused"]
    second = small(*common, "attack=pgd", folder=tmp_path / "pgd")
    assert trained == [1, 2] and second.metrics["reused"]
    assert [row["uar/original"] for row in first.history] == [row["uar/original"] for row in second.history]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("fgsm", "pgd"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)

    again = small(*common, "attack=pgd", "reuse=false", folder=tmp_path / "again")
    assert trained == [1, 2, 1, 2] and not again.metrics["reused"]
    assert again.history == second.history  # reused or not: the same numbers


def test_a_model_without_the_rounds_to_evaluate_is_trained_again(small, tmp_path, monkeypatch):
    trained = trainings(monkeypatch)
    common = ["seed=15", "defence=none", "attack=none"]
    small(*common, "evaluation.every=2", folder=tmp_path / "two")
    one = small(*common, "evaluation.every=1", folder=tmp_path / "one")
    assert trained == [1, 2, 1, 2] and ["uar/original" in row for row in one.history] == [True, True]
    again = small(*common, "evaluation.every=1", "evaluation.batch_size=8", folder=tmp_path / "again")
    assert trained == [1, 2, 1, 2] and again.metrics["reused"]  # both rounds are kept now
    assert again.history == one.history


def test_damaged_model_is_trained_again(small, tmp_path, caplog):
    from fedser.runs import cache

    common = ["seed=16", "defence=none", "attack=none"]
    first = small(*common, folder=tmp_path / "first")
    files = sorted(cache.folder("models").glob("*/round-00002.safetensors"), key=lambda file: file.stat().st_mtime)
    files[-1].write_bytes(files[-1].read_bytes()[:100])
    second = small(*common, "evaluation.batch_size=8", folder=tmp_path / "second")
    assert not second.metrics["reused"] and "damaged" in caplog.text
    assert second.history == first.history


def test_failing_evaluation_does_not_lose_the_training(small, tmp_path, monkeypatch):
    from fedser.errors import RunError

    trained = trainings(monkeypatch)
    common = ["seed=17", "defence=none", "evaluation.every=2"]
    with pytest.raises(RunError, match="fgsm"):
        small(*common, "attack.box=[0,1]", folder=tmp_path / "outside")  # z-scores leave that box
    assert small(*common, folder=tmp_path / "free").metrics["reused"]
    assert trained == [1, 2]


def test_changed_data_are_not_answered_with_the_old_result(small, tmp_path):
    import pandas as pd
    from conftest import FIXTURES

    clips = [
        {"path": str(clip), "speaker": clip.name[:2], "emotion": clip.name[5]} for clip in FIXTURES.glob("emodb/wav/*")
    ]
    table = pd.DataFrame(sorted(clips, key=lambda clip: clip["path"]))
    manifest = tmp_path / "clips.csv"
    common = ["dataset=manifest", f"dataset.root={manifest}", "defence=none", "attack=none", "rounds=1"]
    table.to_csv(manifest, index=False)
    whole = small(*common)
    table.iloc[::2].to_csv(manifest, index=False)
    half = small(*common)
    assert half.metrics["utterances"] < whole.metrics["utterances"]
    assert (tmp_path / "run.old-1").is_dir()


def test_two_processes_do_not_share_a_folder(small, tmp_path):
    from fedser.runs.folder import RunFolder

    with RunFolder(tmp_path / "run").locked(), pytest.raises(InputError, match="Another fedser"):
        small("rounds=1")
    assert small("rounds=1", "defence=none", "attack=none").metrics["status"] == "finished"


def test_names_of_speakers_are_no_file_names(small, tmp_path):
    import pandas as pd
    from conftest import FIXTURES

    clips = sorted(FIXTURES.glob("emodb/wav/*"))
    rows = [
        {"path": str(c), "speaker": "../../up" if c.name[:2] == "14" else "a/b", "emotion": c.name[5]} for c in clips
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    small("dataset=manifest", f"dataset.root={tmp_path / 'clips.csv'}", "client.optimizer_state=persist", "attack=none",
          "defence=none", folder=tmp_path / "a" / "b" / "run")  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "clips.csv"]


def test_finished_run_returns_at_once(small, tmp_path, monkeypatch):
    trained = trainings(monkeypatch)
    common = ["seed=12", "defence=none", "attack=none"]
    first = small(*common)
    stamp = (tmp_path / "run/summary.json").stat().st_mtime_ns
    assert small(*common).metrics == json.loads(json.dumps(first.metrics))
    assert trained == [1, 2] and (tmp_path / "run/summary.json").stat().st_mtime_ns == stamp
    small(*common, "reuse=false")
    assert trained == [1, 2, 1, 2]
    assert (tmp_path / "run.old-1/summary.json").stat().st_mtime_ns == stamp


def test_another_configurations_folder_is_not_touched(small, tmp_path):
    small("seed=12", "defence=none", "attack=none")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="another configuration"):
        small("seed=13", "defence=none", "attack=none")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_default_folder_is_the_command_lines(tmp_path, monkeypatch):
    from conftest import SMALL

    from fedser.config.identity import run_name
    from fedser.config.validation import validate

    monkeypatch.chdir(tmp_path)
    config = compose([*SMALL, "seed=12", "defence=none", "attack=none"])
    assert run(config).folder.resolve() == tmp_path / "outputs" / run_name(validate(config))


def test_failed_training_leaves_no_model_to_reuse(small, tmp_path, monkeypatch):
    from fedser.errors import RunError
    from fedser.runs import cache

    with pytest.raises(RunError, match="loss became"):
        small("seed=14", "client.lr=1e30", "client.epochs=3")
    models = list((cache.folder("models")).glob("*"))
    assert not any(path.name.startswith(".") for path in models)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed" and "client '14'" in summary["error"]


def test_randomisation_that_does_not_fit_is_refused_before_training(small, tmp_path):
    with pytest.raises(InputError, match="defence.inference"):
        small("defence.inference.frames=[300,310]")
    assert not (tmp_path / "run").exists()


class Fails(Attack):
    """A method that finds out about its settings only when it is called."""

    def __init__(self, model, eps=0.05, steps=1, loss=None):
        super().__init__("Fails", model)

    def forward(self, images, labels):
        raise RuntimeError("as asked")


FAILING = f"attack.method._target_={__name__}.Fails"


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["evaluation.attacks=[deepfool]", "attacks.deepfool.method.overshoot_at=middle"],
         r"attacks\.deepfool\.method\.overshoot_at=middle must be one of end, step"),
        (["evaluation.attacks=[autoattack]", "attacks.autoattack.rand.apgd_ce.method.loss=cw", "evaluation.adaptive=[autoattack]"],
         r"attacks\.autoattack\.rand\.apgd_ce\.method\.loss=cw must be one of ce, dlr, targeted"),
        (["defence=two_stage", "attack=apgd", "attack.method.loss=cw", "evaluation.attacks=[fgsm]"],
         r"attack\.method\.loss=cw must be one of"),
        (["evaluation.attacks=[fgsm]", FAILING], "fgsm: fgsm can't attack with its settings: RuntimeError: as asked"),
        (["evaluation.attacks=[autoattack]", FAILING.replace("attack.", "attacks.autoattack.members.apgd_ce.")],
         "autoattack: apgd_ce can't attack with its settings: RuntimeError: as asked"),
        (["defence=two_stage", "evaluation.attacks=[pgd]", "evaluation.curve=[]", FAILING],
         r"defence\.training: RuntimeError: as asked"),
    ],
)  # fmt: skip
def test_an_attack_that_would_fail_when_it_is_called_is_refused_before_training(small, tmp_path, overrides, words):
    with pytest.raises(InputError, match=words):
        small(*overrides)
    assert not (tmp_path / "run").exists()


def test_an_attack_that_needs_more_classes_is_refused_before_training(small):
    three = ["dataset.classes=[anger,neutral,sadness]", "dataset.drop=[boredom,disgust,fear,happiness]"]
    with pytest.raises(InputError, match="autoattack needs at least 4 classes, emodb has 3: choose another attack"):
        small(*three, "evaluation.attacks=[autoattack]")


@pytest.mark.parametrize("kind", ["zscore_client", "minmax_client", "none"])
def test_other_normalisations_run(small, kind):
    assert small(f"features.normalisation={kind}", "rounds=1").metrics["status"] == "finished"


@pytest.mark.rounding
def test_bf16_runs_and_differs(small, tmp_path):
    half = small("client.precision=bf16", "rounds=1", "attack=none", folder=tmp_path / "half")
    full = small("rounds=1", "attack=none", folder=tmp_path / "full")
    assert half.history[0]["train/loss"] != full.history[0]["train/loss"]
    assert half.history[0]["train/loss"] == pytest.approx(full.history[0]["train/loss"], rel=0.05)
