"""Conditions, protocols, confusion matrices and UAR, by hand."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedser.config import protocol
from fedser.config.components import Component
from fedser.config.compose import compose
from fedser.config.paths import directory
from fedser.config.protocol import Protocol, Protocols
from fedser.config.validation import validate
from fedser.data.partition import stratified
from fedser.defences.randomisation import Randomise
from fedser.errors import InputError, RunError
from fedser.evaluation import measure, metrics, record, results


def test_uar_by_hand():
    matrix = np.array([[8, 2], [10, 30]])
    assert metrics.uar(matrix) == pytest.approx((0.8 + 0.75) / 2)
    assert metrics.accuracy(matrix) == pytest.approx(38 / 50)


def test_class_without_test_utterances_is_left_out():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    assert np.isnan(metrics.recalls(matrix)[1])
    assert metrics.uar(matrix) == pytest.approx((0.75 + 0.5) / 2)


def test_confusion_counts_true_by_predicted():
    matrix = metrics.confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


# --- the protocol ---


def names(*arguments, **options):
    return [condition.name for condition in Protocol(*arguments, **options).conditions]


def test_conditions_are_table_3s_and_the_adaptive_ones():
    assert names(randomised=False) == ["original"]
    assert names(["pgd"], randomised=False) == ["original", "adversarial/pgd"]
    assert names(["fgsm", "pgd"], ["pgd"]) == [
        "original", "randomised", "adversarial/fgsm", "adversarial/pgd",
        "randomised_adversarial/fgsm", "randomised_adversarial/pgd", "adaptive/pgd",
    ]  # fmt: skip
    assert names(["pgd"], ["pgd"], randomised=False) == ["original", "adversarial/pgd"]  # there is nothing to know


def test_a_protocol_survives_the_way_to_the_clients():
    one = Protocol(("pgd",), ("pgd",), draws=3, gradients=True, fraction=0.5)
    assert Protocol(**json.loads(json.dumps(one.plain()))).conditions == one.conditions


def settled(*overrides):
    return validate(compose(overrides))


def test_a_sweep_varies_what_has_the_key():
    settings = settled("evaluation=sweep", "evaluation.attacks=[fgsm,deepfool]", "evaluation.grid.eps=[0.05,0.1]")
    assert Protocols.of(settings).final.attacks == ["fgsm", "deepfool", "fgsm@eps=0.1"]  # 0.05 is fgsm itself
    attacks = Protocols.of(settings).attacks
    assert attacks["fgsm@eps=0.1"].node == attacks["fgsm"].node | {"eps": 0.1}


def test_what_is_varied_already_keeps_that():
    settings = settled("evaluation.attacks=['fgsm@eps=0.1','pgd@steps=20']", "evaluation.grid.eps=[0.2]")
    assert Protocols.of(settings).final.attacks == ["fgsm@eps=0.1", "pgd@steps=20", "pgd@steps=20,eps=0.2"]
    probed = settled("evaluation.sanity={attack:'pgd_strong@eps=0.1',steps_factor:2,eps_factors:[2]}")
    assert Protocols.of(probed).final.attacks[-2:] == ["pgd_strong@eps=0.1,steps=20", "pgd_strong@eps=0.1,eps=0.2"]


def test_what_always_knows_the_defence_has_no_oblivious_version():
    settings = settled("attack=eot_pgd", "evaluation.attacks=[fgsm,eot_pgd]", "defence=randomise")
    assert [condition.name for condition in Protocols.of(settings).final.conditions] == [
        "original", "randomised", "adversarial/fgsm", "randomised_adversarial/fgsm", "adaptive/eot_pgd",
    ]  # fmt: skip
    assert Protocols.of(settled("attack=eot_pgd", "defence=none")).final.attacks == ["eot_pgd"]


def test_one_eps_for_all_attacks_bounded_in_linf():
    attacks = Protocols.of(settled("evaluation.attacks=[fgsm,'pgd@steps=20',deepfool]", "evaluation.eps=0.2")).attacks
    assert {name: attack.get("eps") for name, attack in attacks.items()} == {
        "fgsm": 0.2,
        "pgd@steps=20": 0.2,
        "deepfool": None,
    }
    assert attacks["pgd@steps=20"].get("steps") == 20


def test_what_an_attack_is_composed_of_gets_its_eps():
    member = {"name": "pgd", "eps": 0.05, "norm": "Linf"}
    whole = {"name": "both", "eps": 0.05, "norm": "Linf", "members": [member, {"name": "deepfool", "eps": None}]}
    varied = protocol._with_eps(Component("attack", "both", whole), 0.1).node
    assert [part["eps"] for part in varied["members"]] == [0.1, None]
    assert whole["members"][0]["eps"] == 0.05


def test_the_sanity_flags_ask_for_steps_and_budgets():
    settings = settled(
        "evaluation.attacks=[fgsm]",
        "evaluation.sanity={attack:pgd_strong,steps_factor:2,eps_factors:[2,20]}",
    )
    assert Protocols.of(settings).final.attacks == [
        "fgsm", "pgd_strong", "pgd_strong@steps=20", "pgd_strong@eps=0.1", "pgd_strong@eps=1",
    ]  # fmt: skip
    assert Protocols.of(settings).curve.attacks == ["fgsm"]
    assert Protocols.of(settings).final.adaptive == []


def test_more_steps_are_asked_of_the_adaptive_attack_too():
    settings = settled("evaluation=matrix", "defence=randomise")
    names = ["fgsm", "pgd", "deepfool", "pgd_strong", "pgd_strong@steps=20", "pgd_strong@eps=1", "eot_pgd"]
    assert Protocols.of(settings).final.adaptive == names


def test_full_has_every_attack_of_every_knowledge():
    every = {path.stem for path in (directory() / "attack").glob("*.yaml")}
    apart = {name for name in every if name.startswith("snr_")}  # on the waveform: evaluation=safety
    assert apart == set(Protocols.of(settled("evaluation=safety")).final.attacks) & every
    files = every - apart - {"none", "transfer", "evading"}  # the one needs a source, the other a detector
    full = Protocols.of(settled("evaluation=full", "defence=randomise")).final
    own = {name for name in full.attacks if "@" not in name}
    assert own == files - {"eot_pgd", "eot_margin"}  # which always know
    assert {name for name in full.adaptive if "@" not in name} == files - {"noise"}  # which never knows
    assert {"eot_pgd@steps=20", "eot_margin@steps=60"} <= set(full.adaptive)  # by which a flag sees if they converged


def test_the_curve_is_of_the_clips_that_are_tested_in_the_end():
    assert Protocols.of(settled("evaluation.fraction=0.5")).curve.fraction == 0.5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.attacks=[pgdd]", "did you mean 'pgd'?"),
        ("evaluation.attacks=['pgd@overshoot=3']", "has only the keys"),
        ("evaluation.grid.eps=[0.1,0.05]", "out of order: [0.05,0.1]"),
        ("evaluation.grid.eps=[0.1,0.1]", "without repetitions"),
        ("evaluation.sanity={attack:deepfool,steps_factor:2,eps_factors:[2]}", "has no eps"),
        ("evaluation.draws=0", "evaluation.draws=0"),
        ("evaluation.eps=0", "evaluation.eps=0"),
        ("evaluation.grid=5", "evaluation.grid=5 must be keys and values, or null"),
        (
            "evaluation.sanity=pgd_strong",
            "evaluation.sanity=pgd_strong must have the keys attack, steps_factor, eps_factors, or null",
        ),
        (
            "evaluation.sanity=[1]",
            "evaluation.sanity=[1] must have the keys attack, steps_factor, eps_factors, or null",
        ),
        ("evaluation.sanity={}", "The configuration lacks evaluation.sanity.attack"),
        ("evaluation.sanity.attack=null", "evaluation.sanity.attack=null must be a word"),
        (
            "evaluation.sanity.steps_factor=null",
            "evaluation.sanity.steps_factor=null must be a whole number of at least 2",
        ),
        ("evaluation.sanity.steps_factor=1", "evaluation.sanity.steps_factor=1 must be a whole number of at least 2"),
        ("evaluation.sanity.eps_factors=null", "evaluation.sanity.eps_factors=null must be a list"),
        ("evaluation.sanity.eps_factors=[2,0]", "evaluation.sanity.eps_factors[1]=0 must be greater than 0 and finite"),
    ],
)
def test_impossible_protocols_are_refused(override, words):
    with pytest.raises(InputError) as raised:
        settled(*(["evaluation=matrix"] if override.startswith("evaluation.sanity.") else []), override)
    assert words in str(raised.value)


def test_a_subset_has_its_share_of_each_class():
    """Of 20 and 10 lie exactly 6 and 3 on the first 0.3 of the line, wherever they start."""
    labels = np.array([2] * 5 + [0] * 20 + [2] * 5 + [1] * 10)
    rows = np.flatnonzero(labels < 2)  # what is of class 2 is another client's
    chosen = stratified(labels, rows, 0.3, seed=0)
    for seed in range(20):
        assert np.bincount(labels[stratified(labels, rows, 0.3, seed=seed)]).tolist() == [6, 3]
    assert (np.diff(chosen) > 0).all()
    assert (stratified(labels, rows, 0.3, seed=0) == chosen).all()
    assert (stratified(labels, rows, 0.3, seed=1) != chosen).any()


@pytest.mark.parametrize(
    ("size", "fraction", "count"),
    [(7, 0.01, 1), (1, 0.5, 1), (3, 0.5, 2), (5, 0.5, 2), (7, 0.8, 6), (7, 1, 7), (0, 0.5, 0)],
)
def test_a_subset_is_rounded_and_at_least_one(size, fraction, count):
    labels, rows = np.arange(20) % 3, np.arange(3, 3 + size)
    chosen = stratified(labels, rows, fraction, seed=0)
    assert len(chosen) == count and set(chosen) <= set(rows)


def test_classes_that_do_not_divide_are_off_by_less_than_one():
    labels = np.repeat([0, 1, 2], [7, 4, 2])
    for seed in range(20):
        counts = np.bincount(labels[stratified(labels, np.arange(13), 0.5, seed=seed)], minlength=3)
        assert counts.sum() == 6 and (np.abs(counts - [3.5, 2, 1]) <= 1).all()


def test_a_subset_knows_nothing_of_other_clients():
    labels = np.random.default_rng(0).integers(3, size=40)
    rows, others = np.arange(10, 30), np.r_[:10, 30:40]
    changed = labels.copy()
    changed[others] = 2 - labels[others]
    assert (stratified(labels, rows, 0.4, seed=0) == stratified(changed, rows, 0.4, seed=0)).all()
    assert (stratified(labels[rows], np.arange(20), 0.4, seed=0) + 10 == stratified(labels, rows, 0.4, seed=0)).all()


# --- measuring ---


class Sign(nn.Module):
    """Class 1 where the sum is positive."""

    def forward(self, x):
        total = x.flatten(1).sum(dim=1)
        return torch.stack([-total, total], dim=1)


class Flip:
    """Turns every sample around; one who knows of a defence that adds 1.5 goes further."""

    name = "flip"

    def __call__(self, model, x, y, seed, predictions, randomise):
        return -x - 3 if randomise else -x


def add(x, generator=None):
    return x + 1.5


X = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1)
Y = torch.tensor([1, 0, 1])


def measured(told, x=X, y=Y, randomise=add, model=None):
    model = model or Sign()
    return measure.evaluate(model, x, y, told, attacks={"flip": Flip()}, randomise=randomise, batch_size=2, seed=0)


def test_each_condition_sees_its_own_version():
    predictions = measured(Protocol(["flip"], ["flip"])).predictions
    assert {name: draws.tolist() for name, draws in predictions.items()} == {
        "original": [[1, 0, 1]],
        "randomised": [[1, 1, 1]],  # −1 + 1.5 > 0
        "adversarial/flip": [[0, 1, 0]],
        "randomised_adversarial/flip": [[1, 1, 0]],  # −2 + 1.5 < 0 < −1 + 1.5
        "adaptive/flip": [[0, 0, 0]],
    }


def test_examples_are_measured():
    examples = measured(Protocol(["flip"], gradients=True)).examples["flip"]
    assert examples["linf"].tolist() == examples["l2"].tolist() == [2.0, 2.0, 4.0]
    assert examples["snr"].tolist() == pytest.approx([-6.0206] * 3, abs=1e-4)  # 20·log10(1/2)
    assert examples["flat"].tolist() == [0, 0, 0]


def test_vanished_gradients_are_counted():
    class Step(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)).sign(), 0 * x.sum((1, 2, 3))], dim=1)

    found = measured(Protocol(["flip"], gradients=True), model=Step()).examples["flip"]
    assert found["flat"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("worst", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_no_prediction(worst):
    class Broken(Sign):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where(x.flatten(1) == 2, worst, logits)

    assert measure.predict(Broken(), X[:2], 2).tolist() == [1, 0]
    with pytest.raises(RunError, match="NaN or infinite.* client.lr"):
        measure.predict(Broken(), X, 2)


def test_one_utterance_is_shown_with_its_classes():
    shown = measured(Protocol(["flip"], ["flip"]), y=1 - Y).shown  # all wrong: the first one
    assert int(shown["predicted/original"]) == 1 and int(shown["predicted/flip"]) == 0
    found = measured(Protocol(["flip"], ["flip"]), y=torch.tensor([0, 0, 1]))
    assert found.shown["x"].tolist() == [[-1]]  # the first that is right
    with np.load(io.BytesIO(results.example(found, "a", ["calm", "angry"]))) as file:
        told = {name: str(file[name]) for name in file if name.startswith("predicted/")}
    assert told == {"predicted/original": "calm", "predicted/flip": "angry", "predicted/adaptive/flip": "calm"}


def test_draws_are_fresh_and_repeatable():
    def jitter(x, generator=None):
        return x + torch.randn(x.shape, generator=generator)

    told = Protocol(["flip"], draws=20)
    once, again = (measured(told, randomise=jitter).predictions["randomised"] for _ in range(2))
    assert once.shape == (20, 3)
    assert torch.equal(once, again)
    assert len(once.unique(dim=0)) > 1


def test_no_test_utterances_give_empty_matrices():
    empty, none = torch.zeros(0, 1, 6, 4), torch.zeros(0, dtype=torch.long)
    nothing = measured(
        Protocol(["flip"], ["flip"], draws=2, gradients=True), empty, none, Randomise((6, 8), (4, 5), (8, 5))
    )
    told = results.answer(nothing, none, np.array([], int), 2, True)
    assert np.sum(told["counts"]["original"]) == 0
    assert np.shape(told["counts"]["randomised"]) == (2, 2, 2)


# --- the results ---


NOTHING = {"validation": {"original": [[0, 0], [0, 0]]}}  # a client without validation utterances


@pytest.fixture
def both():
    """Two clients: rows 0 to 2 of a table, and row 3."""
    told = Protocol(["flip"], draws=2)
    parts = {"a": (X, Y, np.array([0, 1, 2])), "b": (X[:1], 1 - Y[:1], np.array([3]))}
    answers = {
        name: json.loads(json.dumps(results.answer(measured(told, x, y), y, rows, 2, True) | NOTHING))
        for name, (x, y, rows) in parts.items()
    }
    return results.Results(told, ["calm", "angry"], answers)


def test_results_add_up(both):
    record = both.record()
    original = record["conditions"]["original"]
    assert original["matrix"].tolist() == [[1, 1], [0, 2]]
    assert original["uar"] == pytest.approx((0.5 + 1) / 2)
    defended = record["conditions"]["randomised"]
    assert defended["draws"] == 2 and defended["uar_sd"] == 0 and defended["attack"] is None
    assert defended["matrix"].tolist() == [[0, 4], [0, 4]]
    assert defended["by_client"]["b"].tolist() == [[0, 2], [0, 0]]
    assert both.metrics()["uar/adversarial/flip"] == pytest.approx(original["uar"] * 0 + (1 / 2 + 0) / 2)
    assert both.tested() == {"a": 3, "b": 1}


def test_results_tell_what_became_of_each_utterance(both):
    table = pd.DataFrame(
        {"path": [f"/x/{'ab'[i > 2]}/clip{i % 3}.flac" for i in range(4)], "speaker": list("aaab"), "sex": ["f", "f", "f", None],
         "emotion": ["angry", "calm", "angry", "calm"], "label": [0, 1, 0, 1]}
    )  # fmt: skip
    told = both.utterances(table, "/x")
    assert told["utterance"].tolist() == ["a/clip0.flac", "a/clip1.flac", "a/clip2.flac", "b/clip0.flac"]
    assert told["client"].tolist() == list("aaab")
    assert told["emotion"].tolist() == [both.classes[label] for label in table["label"]]
    assert told["sex"].tolist()[:3] == ["female"] * 3 and pd.isna(told["sex"][3])
    assert told["correct/original"].tolist() == [1, 1, 1, 0]
    assert told["correct/randomised_adversarial/flip"].tolist() == [1, 0, 0, 0]
    assert told["l2/flip"].tolist() == [2, 2, 4, 2]


def test_validation_figures_are_by_condition_and_those_of_old_records_of_original_data():
    old, new = {"uar": 0.5, "accuracy": 0.6}, {"original": {"uar": 0.5, "accuracy": 0.6}}
    for validation in (old, new):
        apart = {"conditions": {}, "validation": validation}
        found = record.metrics({"classes": [], "conditions": {}, "validation": validation, "unseen": apart})
        named = {f"{metric}/{who}validation/original" for metric in old for who in ("", "unseen/")}
        assert found.keys() == named and found["uar/unseen/validation/original"] == 0.5
    assert record.metrics({"classes": [], "conditions": {}, "validation": None}) == {}
