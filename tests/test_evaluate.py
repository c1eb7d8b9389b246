"""`fedser-evaluate` on real finished runs: other attacks, other rounds, what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from fedser import evaluate
from fedser.config.protocol import Protocols
from fedser.errors import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two clients, three rounds, FGSM; evaluated in rounds 2 and 3."""
    from conftest import SMALL

    from fedser import compose, run

    overrides = [*SMALL, "evaluation.every=2", "rounds=3", "evaluation.draws=3"]
    return run(compose(overrides), tmp_path_factory.mktemp("run") / "here")


OVERRIDES = [
    "evaluation.attacks=[fgsm,noise]",
    "evaluation.adaptive=[fgsm]",
    "evaluation.draws=3",
    "simulation=serial",
    "logger=none",
]


@pytest.fixture(scope="module")
def measured(finished):
    return evaluate.evaluate(finished.folder, OVERRIDES)


def test_the_same_conditions_give_the_same_numbers(finished, measured):
    for name in ("original", "randomised", "adversarial/fgsm", "randomised_adversarial/fgsm"):
        assert measured["conditions"][name]["uar"] == finished.metrics[f"uar/{name}"]
    assert measured["conditions"]["randomised"]["draws"] == 3


def test_its_record_is_whole(finished, measured):
    (folder,) = (finished.folder / "evaluations").glob("paper-*")
    assert {file.name for file in folder.iterdir()} == {
        "evaluation.json", "utterances.csv", "example.npz", "times.json",
    }  # fmt: skip
    conditions = ["original", "randomised", "adversarial/fgsm", "adversarial/noise", "randomised_adversarial/fgsm",
                  "randomised_adversarial/noise", "adaptive/fgsm"]  # fmt: skip
    assert list(measured["conditions"]) == conditions
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(
        json.dumps(measured, default=np.ndarray.tolist)
    )
    utterances = pd.read_csv(folder / "utterances.csv", dtype={"client": str, "speaker": str})
    assert len(utterances) == sum(client["utterances"] for client in measured["clients"].values())
    for name in conditions:
        recalls = utterances.groupby("emotion")[f"correct/{name}"].mean()
        assert recalls.mean() == pytest.approx(measured["conditions"][name]["uar"], abs=1e-6)
    with np.load(folder / "example.npz") as example:
        sets = ("fgsm", "noise", "adaptive/fgsm")
        parts = {f"{part}/{name}" for part in ("delta", "predicted") for name in sets}
        assert set(example) == {"title", "x", "predicted/original"} | parts
        assert str(example["predicted/original"]) in measured["classes"]
        assert str(example["predicted/fgsm"]) in measured["classes"]
        assert np.abs(example["delta/noise"]) == pytest.approx(0.05, abs=1e-5)
    assert measured["examples"]["noise"]["linf"] == pytest.approx(0.05, abs=1e-5)
    assert set(json.loads((folder / "times.json").read_text())["examples"]) == {"fgsm", "noise", "adaptive/fgsm"}


def test_what_was_measured_is_not_measured_again(finished, measured, monkeypatch):
    monkeypatch.setattr(evaluate, "_measure", lambda *arguments: pytest.fail("measured again"))
    assert evaluate.evaluate(finished.folder, OVERRIDES)["identity"] == measured["identity"]


def test_an_earlier_round(finished):
    record = evaluate.evaluate(finished.folder, ["evaluation.attacks=[]", "round=2", "simulation=serial"])
    assert record["round"] == 2
    (row,) = [row for row in finished.history if row["round"] == 2]
    assert record["conditions"]["original"]["uar"] == row["uar/original"]


def test_a_subset_is_smaller_and_stratified(finished):
    overrides = ["evaluation.attacks=[]", "evaluation.fraction=0.5", "simulation=serial"]
    record = evaluate.evaluate(finished.folder, overrides)
    whole = json.loads((finished.folder / "evaluation.json").read_text())
    some, everyone = (found["conditions"]["original"]["by_client"] for found in (record, whole))
    for client in ("14", "15"):
        tested, known = np.sum(some[client], axis=1), np.sum(everyone[client], axis=1)
        assert tested.sum() == round(0.5 * known.sum()) == record["clients"][client]["utterances"]
        assert (tested <= known).all() and (np.abs(tested - known / 2) <= 1).all()


def test_the_run_keeps_its_training_and_its_defence(finished):
    settings = evaluate.settings_of(evaluate.RunFolder(finished.folder), ["evaluation=full", "evaluation.eps=0.1"])
    own = yaml.safe_load((finished.folder / "config.yaml").read_text())
    for key in ("dataset", "features", "partition", "model", "client", "strategy", "rounds", "seed", "defence"):
        assert settings.plain[key] == own[key]
    assert settings.attack.node == own["attack"]
    attacks = Protocols.of(settings).attacks
    assert {attacks[name].get("eps") for name in ("fgsm", "pgd_strong", "noise")} == {0.1}


def test_attacks_are_the_runs_unless_told_otherwise(small, tmp_path):
    run = small("attack.eps=0.1", "attacks.pgd.steps=7", "rounds=1", folder=tmp_path / "run").folder
    place = evaluate.RunFolder(run)
    as_it_was = evaluate.settings_of(place, ["evaluation.attacks=[fgsm,pgd]"])
    assert (as_it_was.attack.get("eps"), as_it_was.attacks["pgd"].get("steps")) == (0.1, 7)
    changed = evaluate.settings_of(place, ["attack.eps=0.2", "attacks.pgd.steps=9"])
    assert (changed.attack.get("eps"), changed.attacks["pgd"].get("steps")) == (0.2, 9)
    assert evaluate.settings_of(place, ["attack=pgd"]).attack.name == "pgd"
    assert evaluate.settings_of(place, []).logger.name == "none"
    assert evaluate.settings_of(place, ["logger=wandb"]).logger.name == "wandb"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=vgg15"], "model=vgg15: belongs to the training"),
        (["rounds=30"], "rounds=30: belongs to the training"),
        (["round=1"], "Rounds with weights: 2, 3"),
        (["round=last"], "round=last must be one of the rounds"),
        (["evaluation=fall"], "did you mean evaluation=full?"),
        (["evaluation.attacks=[transfer]"], "source"),
    ],
)
def test_bad_overrides_say_what_to_do(finished, overrides, words):
    with pytest.raises(InputError) as raised:
        evaluate.evaluate(finished.folder, [*overrides, "simulation=serial"])
    assert words in str(raised.value)


def test_folders_without_a_finished_run_are_named(tmp_path, finished, capsys):
    assert evaluate.main([str(tmp_path / "nowhere")]) == 2
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "summary.json").write_text('{"status": "interrupted", "rounds": 1}')
    assert evaluate.main([str(tmp_path), "evaluation.attacks=[]"]) == 2
    told = capsys.readouterr().err
    assert "nowhere: no such folder" in told
    assert "half is interrupted" in told


def test_it_is_a_run_of_its_own_on_the_dashboard(finished):
    import wandb
    from test_tracking import records

    evaluate.evaluate(finished.folder, ["evaluation.attacks=[noise]", "simulation=serial", "logger=wandb"])
    wandb.teardown()
    (folder,) = (file.parent for file in finished.folder.glob("evaluations/*/wandb"))
    (run,) = (record.run for record in records(folder) if record.WhichOneof("record_type") == "run")
    assert run.job_type == "evaluate" and run.run_group == "emodb-cnn4"


def test_changed_data_is_noticed(finished, tmp_path):
    import shutil

    shutil.copytree(finished.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluations"))
    summary = json.loads((tmp_path / "copy" / "summary.json").read_text())
    (tmp_path / "copy" / "summary.json").write_text(json.dumps(summary | {"data": "0" * 16}))
    with pytest.raises(InputError, match="was trained on other data"):
        evaluate.evaluate(tmp_path / "copy", ["evaluation.attacks=[]", "simulation=serial"])


@pytest.mark.ray
def test_the_command_on_ray(finished, measured, capsys):
    """On two actors the numbers are those of the serial run, to the bit."""
    (serial,) = (json.loads(file.read_text()) for file in finished.folder.glob("evaluations/*/evaluation.json")
                 if json.loads(file.read_text())["identity"] == measured["identity"])  # fmt: skip
    words = [
        str(finished.folder),
        *OVERRIDES[:-2],
        "logger=none",
        "simulation=cpu",
        "simulation.actors=2",
        "reuse=false",
    ]
    assert evaluate.main(words) == 0
    assert "1/1 here: 7 conditions" in capsys.readouterr().out
    (again,) = (json.loads(file.read_text()) for file in finished.folder.glob("evaluations/*/evaluation.json")
                if json.loads(file.read_text())["identity"] == measured["identity"])  # fmt: skip
    assert again == serial
