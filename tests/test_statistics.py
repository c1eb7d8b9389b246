"""Intervals, tests and distributions: by hand, against SciPy and statsmodels, and by how often they cover the truth."""

import subprocess
import sys
from math import inf, isnan, nan, sqrt

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest

from fedser.errors import InputError
from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval


@pytest.fixture
def speech():
    """Two models on 300 utterances of 4 unequal classes and 12 speakers, ten draws each."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2, 3], [150, 80, 50, 20])
    speakers = rng.integers(12, size=300)
    a, b = (rng.binomial(10, p + 0.1 * (labels == 1) - 0.02 * speakers) / 10 for p in (0.7, 0.65))
    return a, b, labels, speakers


def matrix_of(correct, labels, classes):
    """A confusion matrix in which every error is taken for the next class."""
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (labels, np.where(correct, labels, (labels + 1) % classes)), 1)
    return matrix


def ends(interval):
    return [interval.low, interval.high]


# UAR and its intervals


def test_uar_is_the_mean_over_the_classes_that_occur():
    assert statistics.uar([1, 1, 1, 0, 0.5], [0, 0, 0, 0, 6]) == pytest.approx((0.75 + 0.5) / 2)


def test_closed_form_by_hand():
    # Recalls 3/4 and 1/2: variances 3/16 over 4 and 1/4 over 2, together / 2².
    half = 1.281552 * sqrt((3 / 16 / 4 + 1 / 4 / 2) / 4)
    expected = pytest.approx([0.625 - half, 0.625 + half], abs=1e-6)
    assert ends(statistics.closed_form([1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1], level=0.8)) == expected
    assert ends(statistics.closed_form_of_matrix([[3, 1, 0], [1, 1, 0], [0, 0, 0]], level=0.8)) == expected


def test_closed_form_takes_the_variance_of_fractions_and_stays_a_fraction():
    half = 1.644854 * sqrt(0.04 / 2)  # 0.3 and 0.7 are 0.2 from their mean
    assert ends(statistics.closed_form([0.3, 0.7], [2, 2], level=0.9)) == pytest.approx(
        [0.5 - half, 0.5 + half], abs=1e-6
    )
    assert statistics.closed_form([1, 0], [0, 0]) == Interval(0, 1)


def test_stratified_bootstrap_is_scipys(speech):
    correct, _, labels, _ = speech
    uar = lambda *recalls, axis: np.mean([each.mean(axis=axis) for each in recalls], axis=0)  # noqa: E731
    reference = scipy.stats.bootstrap(
        [correct[labels == label] for label in range(4)], uar, n_resamples=9999, method="percentile", rng=0
    )
    ours = statistics.stratified_bootstrap(correct, labels, repeats=9999)
    assert ends(ours) == pytest.approx(list(reference.confidence_interval), abs=0.002)
    assert ends(ours) == pytest.approx(ends(statistics.closed_form(correct, labels)), abs=0.002)


def test_clustered_bootstrap_is_scipys_at_the_expanded_level(speech):
    correct, _, labels, speakers = speech

    def uar(chosen, axis):
        resamples = np.atleast_2d(chosen).astype(int)
        rows = [np.concatenate([np.flatnonzero(speakers == speaker) for speaker in each]) for each in resamples]
        return np.squeeze([statistics.uar(correct[row], labels[row]) for row in rows])

    level = 1 - 2 * scipy.stats.norm.cdf(scipy.stats.t.ppf(0.025, 11) * sqrt(12 / 11))
    reference = scipy.stats.bootstrap(
        [np.arange(12)], uar, confidence_level=level, n_resamples=1500, method="percentile", rng=0
    )
    ours = statistics.clustered_bootstrap(correct, labels, speakers, repeats=9999)
    assert ends(ours) == pytest.approx(list(reference.confidence_interval), abs=0.01)
    assert ends(ours) != pytest.approx(ends(statistics.stratified_bootstrap(correct, labels)), abs=0.01)


def test_a_matrix_gives_the_interval_of_its_utterances(speech):
    correct, _, labels, speakers = speech
    right = correct >= 0.6
    matrix = matrix_of(right, labels, 4)
    clients = [matrix_of(right[speakers == each], labels[speakers == each], 4) for each in range(12)]
    assert statistics.stratified_bootstrap_of_matrix(matrix) == statistics.stratified_bootstrap(right, labels)
    assert statistics.closed_form_of_matrix(matrix) == statistics.closed_form(right, labels)
    expected = statistics.clustered_bootstrap(right, labels, speakers)
    assert statistics.clustered_bootstrap_of_matrices(clients) == expected
    assert statistics.clustered_bootstrap_of_matrices([*clients, np.zeros((4, 4))]) == expected


def test_draws_of_a_matrix_are_not_taken_for_utterances(speech):
    _, _, labels, speakers = speech
    right = speakers < 6
    ten = [10 * matrix_of(right[speakers == each], labels[speakers == each], 4) for each in range(12)]
    assert statistics.stratified_bootstrap_of_matrix(sum(ten), draws=10) == statistics.stratified_bootstrap(
        right, labels
    )
    assert statistics.closed_form_of_matrix(sum(ten), draws=10) == statistics.closed_form(right, labels)
    assert statistics.clustered_bootstrap_of_matrices(ten) == statistics.clustered_bootstrap(right, labels, speakers)


def test_of_fractions_a_matrix_only_gives_an_interval_on_the_safe_side(speech):
    correct, _, labels, _ = speech
    right = np.array([correct[labels == label].sum() * 10 for label in range(4)]).round()
    matrix = np.diag(right)
    matrix[:, 0] += np.array([1500, 800, 500, 200]) - matrix.sum(axis=1)
    matrix[0] = [right[0], 1500 - right[0], 0, 0]
    (low, high), (lower, higher) = (
        ends(statistics.closed_form(correct, labels)), ends(statistics.closed_form_of_matrix(matrix, draws=10))
    )  # fmt: skip
    assert lower < low and high < higher
    assert low + high == pytest.approx(lower + higher)


def test_a_resample_without_a_class_counts_the_others():
    # Speaker x has only class 0, all right, y only class 1, all wrong: (x, x) gives 1, (y, y) 0, (x, y) 1/2.
    correct, labels, speakers = [1, 1, 0], [0, 0, 1], ["x", "x", "y"]
    assert statistics.clustered_bootstrap(correct, labels, speakers) == Interval(0, 1)


def test_the_seed_decides(speech):
    correct, other, labels, speakers = speech
    for method, arrays in (
        (statistics.stratified_bootstrap, (correct, labels)),
        (statistics.clustered_bootstrap, (correct, labels, speakers)),
        (statistics.paired_bootstrap, (correct, other, labels)),
        (statistics.gap, (correct, labels, np.where(speakers < 5, "female", "male"), speakers)),
    ):
        assert method(*arrays, seed=3) == method(*arrays, seed=3) != method(*arrays, seed=4)


def simulate(rng, speakers, deviation):
    """Correctness of a model of recalls 0.8, 0.6, 0.4 that suits some speakers better: 4 utterances per class and speaker."""
    shift = rng.uniform(-deviation, deviation, size=(speakers, 1, 1))
    correct = rng.random((speakers, 3, 4)) < np.array([0.8, 0.6, 0.4])[:, None] + shift
    labels, who = np.broadcast_to(np.arange(3)[:, None], correct.shape), np.arange(speakers)[:, None, None]
    return correct.ravel(), labels.ravel(), np.broadcast_to(who, correct.shape).ravel()


def coverage(interval, deviation, speakers=10):
    rng = np.random.default_rng(0)
    samples = (interval(*simulate(rng, speakers, deviation)) for _ in range(300))
    return np.mean([sample.low <= 0.6 <= sample.high for sample in samples])


def test_intervals_cover_the_truth():
    stratified = lambda correct, labels, who: statistics.stratified_bootstrap(correct, labels, repeats=500)  # noqa: E731
    clustered = lambda *sample: statistics.clustered_bootstrap(*sample, repeats=500)  # noqa: E731
    closed = lambda correct, labels, who: statistics.closed_form(correct, labels)  # noqa: E731
    assert 0.90 <= coverage(stratified, 0) <= 0.98
    assert 0.90 <= coverage(closed, 0) <= 0.98
    assert 0.90 <= coverage(clustered, 0.2) <= 0.98
    assert coverage(stratified, 0.2) < 0.88  # utterances of one speaker are not independent


# Several seeds: each tests a part of the same utterances


@pytest.fixture
def seeds(speech):
    """The utterances of `speech` in the test sets of three seeds, 120 each, with the seed's own luck."""
    _, _, labels, speakers = speech
    rng = np.random.default_rng(2)
    tested = np.concatenate([rng.permutation(300)[:120] for _ in range(3)])
    hard = rng.random(300)  # some utterances are so for every model
    which = np.repeat(["a", "b", "c"], 120)
    correct = (rng.random(360) < 0.3 + 0.6 * hard[tested]).astype(float)
    return correct, labels[tested], speakers[tested], which, tested


def mean_uar(correct, labels, which):
    return np.mean([statistics.uar(correct[which == seed], labels[which == seed]) for seed in np.unique(which)])


def test_one_seed_is_as_none(speech):
    correct, other, labels, speakers = speech
    one = np.zeros(300, int)
    assert statistics.clustered_bootstrap(correct, labels, speakers, one) == statistics.clustered_bootstrap(
        correct, labels, speakers
    )
    assert statistics.paired_bootstrap(correct, other, labels, speakers, one) == statistics.paired_bootstrap(
        correct, other, labels, speakers
    )
    closed = statistics.closed_form(correct, labels, one, np.arange(300))
    assert ends(closed) == pytest.approx(ends(statistics.closed_form(correct, labels)))
    stratified = statistics.stratified_bootstrap(correct, labels, one, np.arange(300), repeats=20_000)
    assert ends(stratified) == pytest.approx(ends(statistics.stratified_bootstrap(correct, labels)), abs=0.006)


def test_a_speaker_is_resampled_with_all_seeds(seeds):
    correct, labels, speakers, which, _ = seeds

    def uar(chosen, axis):
        resamples = np.atleast_2d(chosen).astype(int)
        rows = [np.concatenate([np.flatnonzero(speakers == speaker) for speaker in each]) for each in resamples]
        return np.squeeze([mean_uar(correct[row], labels[row], which[row]) for row in rows])

    level = 1 - 2 * scipy.stats.norm.cdf(scipy.stats.t.ppf(0.025, 11) * sqrt(12 / 11))
    reference = scipy.stats.bootstrap(
        [np.arange(12)], uar, confidence_level=level, n_resamples=1500, method="percentile", rng=0
    )
    ours = statistics.clustered_bootstrap(correct, labels, speakers, which, repeats=9999)
    assert ends(ours) == pytest.approx(list(reference.confidence_interval), abs=0.012)


def test_an_utterance_is_resampled_with_all_seeds(seeds):
    correct, labels, _, which, tested = seeds
    ours = statistics.stratified_bootstrap(correct, labels, which, tested, repeats=20_000)
    assert ends(statistics.closed_form(correct, labels, which, tested)) == pytest.approx(ends(ours), abs=0.01)
    rng, replicates = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = np.concatenate([rng.choice(known, len(known)) for label in range(4)
                                if len(known := np.unique(tested[labels == label]))])  # fmt: skip
        rows = np.concatenate([np.flatnonzero(tested == utterance) for utterance in drawn])
        replicates.append(mean_uar(correct[rows], labels[rows], which[rows]))
    assert ends(ours) == pytest.approx(np.quantile(replicates, [0.025, 0.975]).tolist(), abs=0.015)


def test_seeds_that_share_utterances_say_less_than_as_many_others(seeds):
    correct, labels, _, which, tested = seeds
    same, other = (ends(statistics.closed_form(correct, labels, which, who)) for who in (tested, np.arange(360)))
    assert same[1] - same[0] > 1.03 * (other[1] - other[0])


def test_differences_are_of_the_mean_over_seeds(seeds):
    correct, labels, speakers, which, _ = seeds
    worse = correct * (which != "b")
    found = statistics.paired_bootstrap(correct, worse, labels, speakers, which)
    assert found.difference == pytest.approx(mean_uar(correct, labels, which) - mean_uar(worse, labels, which))
    sexes = np.where(speakers < 5, "female", "male")
    women = sexes == "female"
    expected = [mean_uar(correct[group], labels[group], which[group]) for group in (women, ~women)]
    gap = statistics.gap(correct, labels, sexes, speakers, which)
    assert gap.difference == pytest.approx(expected[0] - expected[1])


# Two models


def test_mcnemar_by_hand():
    # Ten utterances tell them apart, 8 of them in A's favour: 2 · (1 + 10 + 45) / 2¹⁰.
    a, b = np.array([1] * 8 + [0] * 2 + [1, 0]), np.array([0] * 8 + [1] * 2 + [1, 0])
    assert statistics.mcnemar(a, b) == (pytest.approx(112 / 1024), 8, 2)
    assert statistics.mcnemar(b, a) == (pytest.approx(112 / 1024), 2, 8)
    assert statistics.mcnemar(a, a) == (1, 0, 0)
    assert statistics.mcnemar([1, 0], [0, 1]) == (1, 1, 1)
    assert statistics.mcnemar([0.5, 0.6], [0.4, 1.0]).b == 1  # half of the draws are enough


def test_mcnemar_is_statsmodels_and_scipys(speech):
    a, b = (correct >= 0.5 for correct in speech[:2])
    ours = statistics.mcnemar(*speech[:2])
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert ours.p == pytest.approx(reference_mcnemar(table, exact=True).pvalue)
    assert ours.p == pytest.approx(scipy.stats.binomtest(ours.b, ours.b + ours.c).pvalue)


def test_paired_bootstrap_sees_what_pairs_share(speech):
    a, b, labels, speakers = speech
    uar = lambda correct: statistics.uar(correct, labels)  # noqa: E731
    for clusters in (None, speakers):
        paired = statistics.paired_bootstrap(a, b, labels, clusters)
        swapped = statistics.paired_bootstrap(b, a, labels, clusters)
        assert paired.difference == pytest.approx(uar(a) - uar(b)) == pytest.approx(-swapped.difference)
        assert ends(paired.interval) == pytest.approx([-swapped.interval.high, -swapped.interval.low], abs=0.01)
        assert paired.p == pytest.approx(swapped.p, abs=0.01)
    # B is A with three utterances lost: far surer than the two intervals, which overlap, would tell.
    b = a.copy()
    b[np.flatnonzero((a > 0.5) & (labels == 3))[:6]] = 0
    paired, apart = (
        statistics.paired_bootstrap(a, b, labels),
        [statistics.stratified_bootstrap(x, labels) for x in (a, b)],
    )
    assert paired.interval.low > 0 and paired.p < 0.05
    assert apart[0].low < apart[1].high


def test_paired_bootstrap_is_scipys(speech):
    a, b, labels, _ = speech
    uar = lambda *recalls, axis: np.mean([each.mean(axis=axis) for each in recalls], axis=0)  # noqa: E731
    reference = scipy.stats.bootstrap(
        [(a - b)[labels == label] for label in range(4)], uar, n_resamples=9999, method="percentile", rng=0
    )
    ours = statistics.paired_bootstrap(a, b, labels, repeats=9999)
    assert ends(ours.interval) == pytest.approx(list(reference.confidence_interval), abs=0.003)
    z = ours.difference / reference.standard_error
    assert ours.p == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.02)


@pytest.mark.parametrize("clustered", [False, True])
def test_p_agrees_with_the_interval_and_errs_as_often_as_it_says(clustered):
    rng = np.random.default_rng(0)
    found, agree = [], []
    for _ in range(300):
        a, labels, speakers = simulate(rng, 12, 0)
        b, *_ = simulate(rng, 12, 0)
        paired = statistics.paired_bootstrap(a, b, labels, speakers if clustered else None, repeats=400)
        found.append(paired.p < 0.05)
        agree.append(found[-1] == (not paired.interval.low <= 0 <= paired.interval.high))
    assert 0.02 <= np.mean(found) <= 0.09
    assert np.mean(agree) > 0.97


def test_the_interval_of_level_one_minus_p_touches_zero(speech):
    a, b, labels, _ = speech
    closer = np.where(np.arange(300) % 2, a, b)
    p = statistics.paired_bootstrap(a, closer, labels, repeats=9999).p
    assert 0.001 < p < 0.1
    low = statistics.paired_bootstrap(a, closer, labels, repeats=9999, level=1 - p).interval.low
    assert low == pytest.approx(0, abs=1e-3)


def test_p_of_two_speakers_by_hand():
    # One gains, one does not: a quarter of the resamples is at 0. Φ⁻¹(1/4) · √(1/2) = −0.4769, and t with 1 degree of
    # freedom is Cauchy's: 1/2 + arctan(−0.4769)/π = 0.3584 on each side.
    found = statistics.paired_bootstrap([1, 1], [0, 1], [0, 0], ["x", "y"], repeats=9999)
    assert found.p == pytest.approx(0.7167, abs=0.02)


def test_no_p_is_smaller_than_the_resamples_can_show(speech):
    a, _, labels, speakers = speech
    for clusters, tail in ((None, 1 / 501), (speakers, None)):
        found = statistics.paired_bootstrap(np.ones(300), 0.5 * a, labels, clusters, repeats=500)
        assert found.p == found.least
        if tail:
            assert found.p == pytest.approx(2 * tail)
    assert statistics.paired_bootstrap(a, a[::-1], labels, speakers).p > found.least


def test_models_that_do_not_differ_have_p_one():
    a, labels, speakers = [0.3, 0.7, 0.1, 1], [0, 0, 1, 1], [1, 2, 1, 2]
    for clusters in (None, speakers):
        assert statistics.paired_bootstrap(a, a, labels, clusters)[:3] == (0, Interval(0, 0), 1)
    # One each of −0.1 and +0.1 cancel but for rounding: 0.3 − 0.2 is not 0.2 − 0.1.
    assert statistics.paired_bootstrap([0.3, 0.1], [0.2, 0.2], [0, 0]).p == 1
    assert statistics.paired_bootstrap([0.2, 0.2], [0.3, 0.1], [0, 0]).p == 1


def test_z_test_by_hand_and_statsmodels():
    # (0.6 − 0.4) / sqrt(0.5 · 0.5 · 2/100)
    assert statistics.z_test(0.6, 0.4, 100, 100) == pytest.approx((2.828427, 0.002339), abs=1e-6)
    reference = proportions_ztest([350, 280], [500, 430], alternative="larger")
    assert statistics.z_test(350 / 500, 280 / 430, 500, 430) == pytest.approx(reference)
    assert statistics.z_test(0.4, 0.6, 100, 100).p > 0.99
    assert statistics.z_test(1, 1, 10, 10) == (0, 0.5)


def test_t_test_over_trainings_by_hand_and_scipy():
    assert statistics.t_test([0.148, 0.188, 0.354]).p == pytest.approx(
        scipy.stats.ttest_1samp([0.148, 0.188, 0.354], 0).pvalue
    )
    assert statistics.t_test([0.148, 0.188, 0.354]).p == pytest.approx(0.067, abs=0.001)
    assert statistics.t_test([-0.1, 0.1]) == (0, 1)
    assert statistics.t_test([0.0, 0.0]).p == statistics.t_test([1e-16, 1e-16, 2e-16]).p == 1
    assert np.isnan([statistics.t_test([0.2]), statistics.t_test([-0.1, -0.1])]).all()


def test_z_test_finds_the_papers_improvement():
    assert statistics.z_test(0.7134, 0.0296, 1874, 1874).p < 0.001


def test_holm_by_hand_and_statsmodels():
    # 3 · 0.01, 2 · 0.02, then 1 · 0.03, raised to the one before
    assert statistics.holm([0.03, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    p_values = np.random.default_rng(0).random(20) ** 4
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


# Seeds, speakers, sexes


def test_aggregate_has_the_sample_deviation():
    assert statistics.aggregate(iter([0.5, 0.6, 0.7])) == pytest.approx((0.6, 0.1, 3))
    mean, sd, n = statistics.aggregate([0.5])
    assert (mean, n) == (0.5, 1) and isnan(sd)


def test_by_speaker_is_over_the_speakers_own_classes():
    correct, labels = [1, 0, 1, 0, 0.5], [0, 0, 1, 2, 2]
    assert statistics.by_speaker(correct, labels, ["b", "b", "b", "a", "a"]) == {"a": 0.25, "b": 0.75}
    assert list(statistics.by_speaker(correct, labels, [9, 9, 9, 10, 10])) == [9, 10]


def test_spread_by_hand():
    values = dict(enumerate(np.linspace(0.2, 0.7, 11))).values()
    assert statistics.spread(values) == pytest.approx((0.2, 0.25))


def test_gap_by_hand():
    # Female: recalls 1 and 1/2, male: 1/2 and 0; the unknown does not count.
    correct, labels = [1, 1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0, 1, 1]
    sexes = ["female"] * 4 + ["male"] * 3 + [None]
    found = statistics.gap(correct, labels, sexes, [1, 2, 1, 2, 3, 4, 3, 5])
    assert found.difference == pytest.approx(0.75 - 0.25)
    # Speaker 1 has UAR 1, speaker 2 has 1/2, 3 has 1/2, 4 has only class 0: (1, 1) against (4, 4) and (2, 2) against (3, 3).
    assert found.interval == Interval(0, 1)


@pytest.mark.parametrize("unknown", [None, nan, "", pd.NA])
def test_no_gap_where_a_sex_is_absent_or_unknown(unknown):
    assert statistics.gap([1, 0], [0, 1], ["female", "female"], [1, 2]) is None
    assert statistics.gap([1, 0], [0, 1], [unknown, "male"], [1, 2]) is None
    assert statistics.gap([1, 0], [0, 1], pd.Series([unknown, unknown]), [1, 2]) is None


def test_gap_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        correct, labels, speakers = simulate(rng, 14, 0.2)
        found = statistics.gap(correct, labels, np.where(speakers < 6, "female", "male"), speakers, repeats=500)
        covered.append(found.interval.low <= 0 <= found.interval.high)
    assert 0.90 <= np.mean(covered) <= 0.99


# Distances


def test_robustness_curve_by_hand():
    # Class 0: wrong already, flipped at 1, never; class 1: flipped at 2. Right at r = 0: 2/3 and 1; at 1: 1/3 and 1; …
    curve = statistics.robustness_curve([0, 1, inf, 2], [0, 0, 0, 1], [0, 1, 1.5, 2, 100])
    assert curve == pytest.approx([5 / 6, 2 / 3, 2 / 3, 1 / 6, 1 / 6])


def test_median_flip_is_over_what_was_right():
    assert statistics.median_flip([0, 0, 0, 1, 2, inf]) == 2
    assert statistics.median_flip([1, inf]) == inf
    assert isnan(statistics.median_flip([0, 0]))


# At the edge


def test_all_right_leaves_no_width(speech):
    _, _, labels, speakers = speech
    everything = np.ones(300)
    assert statistics.stratified_bootstrap(everything, labels) == Interval(1, 1)
    assert statistics.clustered_bootstrap(everything, labels, speakers) == Interval(1, 1)
    assert statistics.closed_form(everything, labels) == Interval(1, 1)


def test_one_class_has_its_recall_for_uar():
    correct, labels = [1, 0, 1, 1], [4, 4, 4, 4]
    assert statistics.uar(correct, labels) == 0.75
    assert statistics.stratified_bootstrap(correct, labels).low < 0.75
    assert statistics.stratified_bootstrap([1], [0]) == Interval(1, 1)


def test_one_speaker_says_nothing_about_others():
    correct, labels, one = [1, 0, 1], [0, 0, 1], ["a"] * 3
    found = [
        statistics.clustered_bootstrap(correct, labels, one),
        statistics.clustered_bootstrap_of_matrices([[[1, 1], [0, 1]]]),
        statistics.paired_bootstrap(correct, [1, 1, 0], labels, one).interval,
        statistics.gap(correct, labels, ["male", "male", "female"], ["a", "a", "b"]).interval,
    ]
    assert all(isnan(end) for interval in found for end in ends(interval))
    assert isnan(statistics.paired_bootstrap(correct, [1, 1, 0], labels, one).p)


def test_two_speakers_span_what_there_is():
    found = statistics.clustered_bootstrap([1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 2, 2])
    assert found == Interval(0.5, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s.uar([1, 0, 1], [0, 1]), "correct has 3 values, labels 2"),
        (lambda s: s.clustered_bootstrap([1, 0], [0, 1], ["a"]), "correct has 2 values, clusters 1"),
        (lambda s: s.mcnemar([1, 0], [1]), "correct_a has 2 values, correct_b 1"),
        (lambda s: s.paired_bootstrap([1], [1], [0, 1]), "correct_a has 1 values, labels 2"),
        (lambda s: s.gap([1, 0], [0, 1], ["male"], [1, 2]), "correct has 2 values, sexes 1"),
        (lambda s: s.robustness_curve([1.0], [0, 1], [1]), "distances has 1 values, labels 2"),
        (lambda s: s.uar([1, nan], [0, 1]), "correct: value 1 is nan, a number from 0 to 1 is wanted"),
        (lambda s: s.closed_form([1, 2], [0, 1]), "correct: value 1 is 2.0"),
        (lambda s: s.mcnemar([1], [-0.1]), "correct_b: value 0 is -0.1"),
        (lambda s: s.uar(["yes"], [0]), "correct: numbers are wanted"),
        (lambda s: s.uar([[1]], [0]), "correct: at least one number in one dimension"),
        (lambda s: s.uar([], []), "correct: at least one number"),
        (lambda s: s.uar([1, 1], [0, nan]), "labels: integers or strings are wanted"),
        (lambda s: s.by_speaker([1, 1], [0, 1], ["a", None]), "speakers: integers or strings are wanted"),
        (
            lambda s: s.by_speaker([1, 1], [0, 1], np.zeros((2, 1), int)),
            "speakers: at least one value in one dimension",
        ),
        (lambda s: s.gap([1, 0], [0, 1], ["male", "f"], [1, 2]), "'f' is neither female nor male"),
        (lambda s: s.gap([1, 0], [0, 1], ["male", "female"], ["q", "q"]), "speaker q is both"),
        (lambda s: s.stratified_bootstrap([1], [0], level=95), "level: 95"),
        (lambda s: s.stratified_bootstrap([1], [0], repeats=0), "repeats: 0"),
        (lambda s: s.clustered_bootstrap([1], [0], [0], repeats=0.5), "repeats: 0.5"),
        (lambda s: s.closed_form_of_matrix([[1, 2, 3]]), "not shape (1, 3)"),
        (lambda s: s.closed_form_of_matrix([[1, 2], [3]]), "matrix: counts are wanted"),
        (lambda s: s.closed_form_of_matrix([[1, -2], [3, 0]]), "matrix: counts are wanted"),
        (lambda s: s.closed_form_of_matrix([[1, nan], [3, 0]]), "matrix: counts are wanted"),
        (lambda s: s.closed_form_of_matrix([[0.5, 0.5], [0, 1]]), "matrix: counts are wanted"),
        (lambda s: s.closed_form_of_matrix([[0, 0], [0, 0]]), "matrix: there are no test utterances"),
        (lambda s: s.closed_form_of_matrix([[5, 4], [10, 0]], draws=10), "[9, 10] are not counts over 10 draws"),
        (lambda s: s.closed_form_of_matrix([[5]], draws=0), "draws: 0"),
        (lambda s: s.clustered_bootstrap_of_matrices([[[1]], [[1, 0], [0, 1]]]), "matrices: their sizes differ"),
        (lambda s: s.clustered_bootstrap_of_matrices([]), "matrices: there are no test utterances"),
        (lambda s: s.z_test(71.34, 0.03, 10, 10), "uar_a: value 0 is 71.34"),
        (lambda s: s.z_test(0.7, 0.03, 10, 0), "n_b: 0"),
        (lambda s: s.aggregate([]), "values: at least one number"),
        (lambda s: s.aggregate([0.1, nan]), "values: value 1 is nan, finite numbers are wanted"),
        (lambda s: s.spread([inf]), "values: value 0 is inf"),
        (lambda s: s.holm([0.1, 1.2]), "p_values: value 1 is 1.2"),
        (lambda s: s.median_flip([1, -1]), "distances: value 1 is -1.0"),
        (lambda s: s.median_flip([nan]), "distances: value 0 is nan"),
        (lambda s: s.robustness_curve([1], [0], [-1]), "radii: value 0 is -1.0"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message):
    with pytest.raises(InputError) as error:
        call(statistics)
    assert message in str(error.value)


def test_a_report_does_not_wait_for_torch():
    code = "import sys, fedser.evaluation.statistics; sys.exit(bool({'torch', 'pandas', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_columns_of_a_table_and_lists_will_do(speech):
    correct, _, labels, speakers = speech
    table = pd.DataFrame({"correct": correct, "label": labels, "speaker": [f"{each:02}" for each in speakers]})
    expected = statistics.clustered_bootstrap(correct, labels, speakers)
    assert statistics.clustered_bootstrap(table.correct, table.label, table.speaker) == expected
    emotions = table.label.map({0: "anger", 1: "disgust", 2: "fear", 3: "joy"})
    assert statistics.clustered_bootstrap(correct.tolist(), emotions, speakers.tolist()) == expected
