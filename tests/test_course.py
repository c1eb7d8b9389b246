"""Which model a training ends with; and settings of the training that can't be meant."""

import numpy as np
import pytest
from conftest import SMALL
from safetensors.numpy import load_file

from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.errors import InputError
from fedser.federation.course import Final

VALIDATION = "partition.validation=0.2"


def weights(result, name=None):
    files = sorted((result.folder / "weights").glob("round-*"))
    return load_file(result.folder / "weights" / name if name else files[-1])


def final(*overrides, scores=()):
    settings = validate(compose([*SMALL, "rounds=6", VALIDATION, *overrides]))
    left = dict(scores)
    return Final(settings, lambda round, weights: left.pop(round), lambda weights: weights, lambda round: True)


def models(chooser):
    """The number in the model after each of six rounds, whose own are 1 to 6, and the rows."""
    made = [chooser(round, {"parameters": np.array([round], np.float32)}) for round in range(1, 7)]
    return [float(model["parameters"][0]) for model, _ in made], [row for _, row in made]


def test_the_last():
    assert models(final()) == ([1, 2, 3, 4, 5, 6], [{}] * 6)


def test_the_best_of_those_looked_at():
    scores = {2: 0.5, 4: 0.7, 6: 0.7}  # of equals the first
    found, rows = models(final("selection=best", "selection.every=2", scores=scores.items()))
    assert found == [1, 2, 2, 4, 4, 4]  # before the first look, the last
    assert [row.get("selection/round") for row in rows] == [None, 2, None, 4, None, 4]
    assert [row.get("selection/uar") for row in rows] == [None, 0.5, None, 0.7, None, 0.7]


def test_the_last_round_is_looked_at_whatever_it_is():
    found, _ = models(final("selection=best", "selection.every=4", scores={4: 0.1, 6: 0.2}.items()))
    assert found == [1, 2, 3, 4, 4, 6]


def test_the_best_of_averages():
    words = ["selection=best", "selection.every=3", "averaging=last_k", "averaging.k=3"]
    found, _ = models(final(*words, scores={3: 0.9, 6: 0.8}.items()))
    assert found == [1, 1.5, 2, 2, 2, 2]


def test_a_run_ends_with_it_and_reports_the_raw_one_beside(small, tmp_path):
    words = ["attack=none", "defence=none", "rounds=3"]
    raw = small(*words)
    averaged = small(*words, "averaging=last_k", "averaging.k=2", folder=tmp_path / "averaged")
    rounds = [load_file(file) for file in sorted((raw.folder / "weights").iterdir())]
    mean = np.mean([each["parameters"] for each in rounds[1:]], axis=0, dtype=np.float64)
    np.testing.assert_array_equal(weights(averaged)["parameters"], mean.astype(np.float32))
    np.testing.assert_array_equal(weights(averaged, "raw.safetensors")["parameters"], rounds[-1]["parameters"])
    assert averaged.metrics["uar/raw/original"] == raw.metrics["uar/original"]
    assert "uar/raw/original" not in raw.metrics
    assert [row["train/loss"] for row in averaged.history] == [row["train/loss"] for row in raw.history]
    again = small(*words, "averaging=last_k", "averaging.k=2", "evaluation.draws=3", folder=tmp_path / "again")
    assert again.metrics["reused"] and again.metrics["uar/raw/original"] == raw.metrics["uar/original"]


def test_validation_utterances_decide_under_an_attack_too(small):
    result = small("rounds=3", "selection=best", "selection.every=1", "selection.attack=fgsm", VALIDATION)
    uars = [row["selection/uar"] for row in result.history]
    assert result.history[-1]["selection/round"] == 1 + int(np.argmax(uars))
    chosen = load_file(result.folder / "weights" / f"round-{result.history[-1]['selection/round']:05d}.safetensors")
    np.testing.assert_array_equal(weights(result)["parameters"], chosen["parameters"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["selection=best"], "selection=best chooses by the clients' validation utterances, of which there are none"),
        (["selection=best", VALIDATION, "selection.attack=fgsn"], "did you mean 'fgsm'"),
        (["selection=best", VALIDATION, "selection.every=null"], "every how many rounds"),
        (
            ["client/schedule=cosine", "client.schedule.rounds=1"],
            "client.schedule.rounds=1: the learning rate would be",
        ),
        (["client/schedule=cosine", "client.schedule.floor=2"], "client.schedule.floor=2 must lie"),
        (["client.label_smoothing=1"], "client.label_smoothing=1 must be"),
        (["client.class_weights=some"], "client.class_weights=some must be"),
        (["averaging=ema", "averaging.decay=1.5"], "averaging.decay=1.5 must be"),
        (["augment=[mixup]", "augment.mixup.most=0.7"], "augment.mixup.most=0.7 must be"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_cannot_be_meant_is_refused(words, says):
    with pytest.raises(InputError) as raised:
        validate(compose([*SMALL, *words]))
    assert says in str(raised.value) and "\n" not in str(raised.value)
