"""Fairness: published figures, plain loops, and what the report's table makes of finished runs."""

import json
from functools import partial
from itertools import combinations
from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from runs import SPEAKERS, Made, make_run

from fedser import report
from fedser.errors import InputError
from fedser.evaluation import fairness, statistics
from fedser.evaluation.fairness import demographic_parity, equality_of_opportunity, grouped, statistical_parity
from fedser.report import tables
from fedser.report.analysis import models

GROUPS = "AAAABBBBCC"
PREDICTED = (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)
TRUE = (0, 1, 1, 0, 1, 0, 2, 1, 2, 1)


def counted(groups, true, predicted, classes=3):
    found = np.zeros((len(set(groups)), classes, classes))
    np.add.at(found, ([sorted(set(groups)).index(group) for group in groups], true, predicted), 1)
    return found


@pytest.fixture
def clients():
    """Ten clients' counts [2 seeds, 4, 4], in two groups."""
    rng = np.random.default_rng(3)
    return {f"c{n}": rng.integers(0, 4, (2, 4, 4)) for n in range(10)}, {f"c{n}": "fm"[n % 2] for n in range(10)}


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_holisticais_example():
    counts = counted(GROUPS, TRUE, PREDICTED)
    assert statistical_parity(counts) == pytest.approx(0.5)
    assert statistical_parity(counts, aggregate="mean") == pytest.approx(1 / 3)
    assert equality_of_opportunity(counts, aggregate="mean", empty="uniform") == pytest.approx(0.7963, abs=5e-5)


def test_two_classes_by_hand():
    # Recalls of 0.9 and 0.2 in the one class, 0.8 and 0.1 in the other.
    counts = [[[9, 1], [2, 8]], [[2, 8], [9, 1]]]
    assert equality_of_opportunity(counts) == equality_of_opportunity(counts, empty="uniform") == pytest.approx(0.7)
    # A third of the one group's, half of the other's are taken for the first class.
    assert statistical_parity([[[1, 1], [1, 3]], [[2, 1], [1, 2]]]) == pytest.approx(1 / 6)
    assert demographic_parity([[[1, 1], [1, 3]], [[2, 1], [1, 2]]]) == pytest.approx(1 / 6)


def test_a_class_that_a_group_never_has_is_skipped_or_guessed():
    counts = [[[4, 0], [0, 0]], [[3, 1], [1, 3]]]
    assert equality_of_opportunity(counts) == pytest.approx(0.25)
    assert equality_of_opportunity(counts, empty="uniform") == pytest.approx((0.25 + 0.25) / 2)
    lone = [[[4, 0], [0, 0]], [[0, 0], [1, 3]]]
    assert isnan(equality_of_opportunity(lone))
    assert equality_of_opportunity(lone, empty="uniform") == pytest.approx((0.5 + 0.25) / 2)


def test_a_class_that_nobody_has_changes_nothing():
    counts = counted(GROUPS, TRUE, PREDICTED)
    wider = np.pad(counts, ((0, 0), (0, 1), (0, 1)))
    for metric in fairness.METRICS.values():
        assert metric(wider) == pytest.approx(float(metric(counts)))


@pytest.mark.parametrize("aggregate", ["worst", "mean"])
@pytest.mark.parametrize("predictions", ["all", "correct"])
def test_demographic_parity_is_that_of_a_loop_over_utterances(aggregate, predictions):
    rng = np.random.default_rng(0)
    groups, true, predicted = rng.choice(list("ABCD"), 200), rng.integers(0, 5, 200), rng.integers(0, 5, 200)

    def share(group, label):
        own = [(t, p) for g, t, p in zip(groups, true, predicted, strict=True) if g == group]
        return sum(p == label and (predictions == "all" or t == label) for t, p in own) / len(own)

    pairs = [max(abs(share(g, c) - share(h, c)) for c in range(5)) for g, h in combinations("ABCD", 2)]
    expected = max(pairs) if aggregate == "worst" else sum(pairs) / len(pairs)
    counts = counted(groups, true, predicted, 5)
    assert demographic_parity(counts, aggregate, predictions) == pytest.approx(expected)


def test_many_at_once_are_as_one_by_one():
    counts = np.random.default_rng(0).integers(0, 3, (6, 2, 3, 4, 4))
    for metric in fairness.METRICS.values():
        one_by_one = [[float(metric(each)) for each in row] for row in counts]
        np.testing.assert_allclose(metric(counts), one_by_one)


def test_a_fair_model_has_0_and_order_does_not_matter():
    counts = counted(GROUPS, TRUE, PREDICTED)
    for metric in fairness.METRICS.values():
        assert metric([counts[0], 3 * counts[0]]) == pytest.approx(0)
        assert metric(counts[::-1]) == pytest.approx(float(metric(counts)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda counts: statistical_parity(counts[0]), "two or more groups"),
        (lambda counts: statistical_parity(counts[:1]), "two or more groups"),
        (lambda counts: statistical_parity(counts, "median"), "aggregate: 'median' is none of worst, mean"),
        (lambda counts: equality_of_opportunity(counts, empty="zero"), "empty: 'zero' is none of"),
        (lambda counts: demographic_parity(counts, predictions="wrong"), "predictions: 'wrong' is none of"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call(counted(GROUPS, TRUE, PREDICTED))


# --- Groups ----------------------------------------------------------------------------------------------------------


def test_a_figure_is_the_mean_of_the_seeds(clients):
    counts, sexes = clients
    per_seed = [
        np.array([sum(counts[c][seed] for c in counts if sexes[c] == sex) for sex in "fm"]) for seed in range(2)
    ]
    found = grouped(counts, sexes)
    assert found.sizes == {"f": 5, "m": 5}
    for metric in fairness.METRICS.values():
        assert found.figure(metric) == pytest.approx(np.mean([metric(each) for each in per_seed]))


def test_small_groups_and_unknown_ones_are_left_out_and_named():
    counts = {"a": [[3, 0], [0, 3]], "b": [[3, 1], [0, 3]], "c": [[1, 0], [0, 1]], "d": [[9, 0], [0, 9]]}
    found = grouped(counts, {"a": "x", "b": "y", "c": "z", "d": None}, min_support=5)
    assert found.sizes == {"x": 1, "y": 1} and found.left_out == ["z", "d"]
    with pytest.raises(InputError, match="two with at least 7 test utterances are wanted, found: y"):
        grouped(counts, {"a": "x", "b": "y", "d": "y"}, min_support=7)


def test_support_is_that_of_the_seed_with_the_fewest():
    counts = {"a": [[[3, 0], [0, 3]], [[1, 0], [0, 0]]], "b": np.ones((2, 2, 2)), "c": np.ones((2, 2, 2))}
    assert grouped(counts, {"a": "a", "b": "b", "c": "c"}, min_support=2).left_out == ["a"]


def test_a_group_that_a_seed_does_not_test_is_compared_in_the_others():
    one, other = [[3, 0], [0, 3]], [[0, 3], [3, 0]]
    nothing = np.zeros((2, 2))
    counts = {"a": [one, one], "b": [other, nothing], "c": [nothing, one]}
    found = grouped(counts, {"a": "a", "b": "b", "c": "c"}, min_support=5)
    assert found.sizes == {"a": 1, "b": 1, "c": 1} and not found.left_out
    for empty in ("skip", "uniform"):
        metric = partial(equality_of_opportunity, empty=empty)
        assert found.figure(metric) == pytest.approx((1 + 0) / 2)
    trust = found.trust({"sp": statistical_parity})["sp"]
    assert isnan(trust.chance) and isnan(trust.interval.low)  # one speaker each


def test_groups_are_any_column_that_is_the_same_within_a_client():
    table = pd.DataFrame({"client": list("aabb"), "age": [30, 30, 60, nan], "take": [1, 2, 1, 2], "room": ["x"] * 4})
    assert fairness.by_column(table.assign(age=["30", "30", "60", None]), "age") == {"a": "30", "b": "60"}
    for column, words in [
        ("height", "no column height"),
        ("take", "take is not the same in all utterances of client a"),
        ("room", "room tells no groups apart, its values are: x"),
    ]:
        with pytest.raises(InputError, match=words):
            fairness.by_column(table, column)


# --- Intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_resamples_speakers_within_their_group_in_all_seeds(clients):
    counts, sexes = clients
    found, metric = grouped(counts, sexes), equality_of_opportunity
    figure, rng, again = found.figure(metric), np.random.default_rng(5), []
    cells = [np.array([counts[c] for c in counts if sexes[c] == sex]) for sex in "fm"]
    for _ in range(600):
        sums = np.array([each[rng.integers(0, 5, 5)].sum(axis=0) for each in cells])  # [groups, seeds, …]
        again.append(np.mean([metric(sums[:, seed]) for seed in range(2)]))
    expected = statistics.interval_of_distance(figure, np.array(again), 5)
    trust = found.trust({"eo": metric})["eo"]
    assert (trust.interval.low, trust.interval.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_an_interval_is_mirrored_and_never_below_0():
    resampled = np.linspace(0.2, 0.4, 2001)
    interval = statistics.interval_of_distance(0.25, resampled, 1000)
    assert (interval.low, interval.high) == pytest.approx((0.105, 0.295), abs=1e-3)
    assert statistics.interval_of_distance(0.15, resampled, 1000).low == 0
    assert isnan(statistics.interval_of_distance(0.25, np.full(9, nan), 5).low)
    assert isnan(statistics.interval_of_distance(0.25, resampled, 1).high)  # one speaker tells nothing of others


def test_groups_that_differ_stand_out_from_chance_and_others_do_not():
    rng = np.random.default_rng(2)
    good, bad = [[0.9, 0.1], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5]]

    def made(rows):
        return np.array([rng.multinomial(20, row) for row in rows])

    sexes = {f"c{n}": "fm"[n % 2] for n in range(12)}
    unfair = grouped({c: made(good if sex == "f" else bad) for c, sex in sexes.items()}, sexes)
    fair = grouped({c: made(good) for c in sexes}, sexes)
    metric = {"eo": equality_of_opportunity}
    told, untold = unfair.trust(metric)["eo"], fair.trust(metric)["eo"]
    assert told.interval.low < 0.4 < told.interval.high and told.p < 0.01 and told.chance < 0.2
    assert untold.p > 0.05 and untold.interval.high < 0.1


def test_groups_with_no_class_in_common_have_no_figure_and_no_p():
    sexes = {"a": "f", "b": "f", "c": "m", "d": "m"}
    found = grouped({c: [[4, 1], [0, 0]] if sex == "f" else [[0, 0], [1, 3]] for c, sex in sexes.items()}, sexes)
    trust = found.trust({"eo": equality_of_opportunity})["eo"]
    assert isnan(found.figure(equality_of_opportunity)) and isnan(trust.p) and isnan(trust.interval.low)


# --- The report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        make_run(folder / str(seed), Made("pgd", seed), full=False)
    (found,) = models.corpora(report.load([folder]))
    return found


def test_the_table_has_the_figures_of_the_clients_matrices(corpus):
    table = tables.fairness(corpus)
    assert table.groups == [("", 2), ("By sex", 3), ("By speaker", 3)] and "Fairness" in table.title
    assert [row[0].text for row in table.cells] == ["original", f"adversarial · {strongest(corpus)}"]
    seeds = [run.evaluations[0].conditions["original"]["by_client"] for run in corpus.runs]
    sums = [
        [sum(np.array(m) for c, m in by.items() if SPEAKERS[c] == sex) for sex in ("female", "male")] for by in seeds
    ]
    expected = np.mean([statistical_parity(each) for each in sums])
    cell = table.cells[0][2]
    assert cell.value == pytest.approx(expected) and cell.text == f"{100 * expected:.1f}"
    assert cell.notes[0].startswith("[") and cell.notes[1].startswith("chance ")
    assert table.notes[0] == "By sex: 5 female and 5 male speakers."


def strongest(corpus):
    from fedser.report.analysis.conditions import attack_title

    return attack_title(corpus.strongest("adversarial"))


def test_the_file_has_every_attack_and_trust_ser_s_figures(corpus):
    data = tables.fairness(corpus).data.set_index("condition")
    assert {"original", "randomised", "adversarial/deepfool", "randomised_adversarial/fgsm"} <= set(data.index)
    assert (
        data["statistical_parity/sex/low"].notna().all() and data["equality_of_opportunity_uniform/sex"].notna().all()
    )
    assert (data["demographic_parity/speaker"] >= data["demographic_parity/speaker/mean"]).all()
    assert (data["demographic_parity/sex"] <= data["statistical_parity/sex"] + 1e-9).all()


def edited(tmp_path, change):
    folder = make_run(tmp_path / "run", full=False)
    content = json.loads((folder / "evaluation.json").read_text())
    change(content)
    (folder / "evaluation.json").write_text(json.dumps(content))
    (corpus,) = models.corpora(report.load([folder]))
    return tables.fairness(corpus)


def test_draws_are_not_taken_for_clips(tmp_path):
    """A speaker with four clips is left out, whatever the draws."""

    def change(content):
        for record in content["conditions"].values():
            record["by_client"]["03"] = np.diag([4 * record["draws"], 0, 0, 0, 0, 0, 0]).tolist()

    table = edited(tmp_path, change)
    assert table.notes[-1] == "Left out, of unknown sex or with fewer than 5 clips in a seed: 03."


def test_unknown_sexes_are_named(tmp_path):
    def change(content):
        content["clients"]["08"]["sex"] = None

    table = edited(tmp_path, change)
    assert table.notes[0] == "By sex: 4 female and 5 male speakers."
    assert table.notes[-1] == "Left out, of unknown sex or with fewer than 5 clips in a seed: 08."


def test_without_sexes_there_are_speakers_and_without_clients_nothing(tmp_path):
    table = edited(tmp_path / "a", lambda content: content.update(clients={}))
    assert table.groups == [("", 2), ("By speaker", 3)] and "chance" not in table.caption and not table.notes
    table = edited(tmp_path / "b", lambda content: [r.pop("by_client") for r in content["conditions"].values()])
    assert not table


def test_unseen_speakers_have_rows_of_their_own(tmp_path):
    def change(content):
        record = content["conditions"]["original"]
        none = np.zeros((7, 7), int).tolist()  # who is there to select a model by
        held = record | {"by_client": record["by_client"] | {"99": none}}
        content["unseen"] = {"conditions": {"original": held}, "clients": content["clients"]}

    table = edited(tmp_path, change)
    seen, unseen = table.cells[:2]
    assert unseen[0].text == "original, unseen speakers" and unseen[2].text == seen[2].text
    assert table.notes == ["By sex: 5 female and 5 male speakers."]
