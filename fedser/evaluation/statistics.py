"""How far to trust a UAR: intervals, tests between two models, and how it spreads over speakers and distances.

`correct` [n] says how often each test utterance was classified correctly, as a fraction of the randomisation's draws
(0 or 1 where nothing is drawn); `labels` [n] are the classes and `clusters`, `speakers` [n] who spoke: integers or
strings. UAR is the mean, over the classes that occur, of the mean of `correct` within the class; with several draws
that is the mean over draws of the UAR. The model is taken as given: how much the training's seed matters is for
`aggregate` to say. Where models of several `seeds` [n] were tested, on test sets that overlap, the UAR is the mean of
the seeds' own, and whoever is resampled is so in all of them together.

Every function raises `InputError` for lengths that differ, missing or impossible values, and where nothing is given.
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, nan, prod, sqrt
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit  # scipy.stats would take a second to import

from fedser.errors import InputError

SAME = 1e-9  # UARs nearer than this differ by rounding


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends are NaN where the data cannot say."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two UARs, its interval, and its two-sided p-value (NaN where the interval is).

    `least` is the smallest p that so many resamples can show: where p equals it, p is at most that.
    """

    difference: float
    interval: Interval
    p: float
    least: float


class McNemar(NamedTuple):
    """Two-sided p-value; how many utterances only model A (`b`) and only model B (`c`) has right."""

    p: float
    b: int
    c: int


class ZTest(NamedTuple):
    """Statistic and one-tailed p-value."""

    z: float
    p: float


class TTest(NamedTuple):
    """Statistic and two-sided p-value; both NaN where one value says nothing of others."""

    t: float
    p: float


class Aggregate(NamedTuple):
    """Mean and sample standard deviation (divisor n − 1; NaN for one value)."""

    mean: float
    sd: float
    n: int


def uar(correct: ArrayLike, labels: ArrayLike) -> float:
    """UAR in [0, 1]."""
    return _mean(_strata(*_utterances(correct=correct, labels=labels)))


def stratified_bootstrap(
    correct: ArrayLike,
    labels: ArrayLike,
    seeds: ArrayLike | None = None,
    utterances: ArrayLike | None = None,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of UAR, utterances resampled with replacement within each class.

    With `seeds`, `utterances` [n] tells which rows are of the same one: it is resampled with all of them.

    It answers for other utterances like these, taken as independent. A class whose utterances all got the same adds no
    width, so that a perfect score has an interval without any. Simulated 95 % intervals of 7 classes cover the truth
    94 % of the time with 10 utterances per class, 87 % with 4.
    """
    if seeds is None:
        strata = _strata(*_utterances(correct=correct, labels=labels))
        return _interval(_resampled(strata, repeats, seed), level)
    columns = _utterances(correct=correct, labels=labels, utterances=utterances, seeds=seeds)
    correct, labels, utterances, seeds = columns
    classes = [labels == label for label in np.unique(labels)]
    cells = [_cells(correct[own], labels[own], utterances[own], seeds[own], np.unique(seeds)) for own in classes]
    resamples = [each.resample(repeats, (seed, place)) for place, each in enumerate(cells)]
    sums, counts = (np.concatenate(parts, axis=-1) for parts in zip(*resamples, strict=True))
    return _interval(_uar(sums, counts), level)


def stratified_bootstrap_of_matrix(
    matrix: ArrayLike, draws: int = 1, repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`stratified_bootstrap` from a confusion matrix [true, predicted] of counts added up over `draws` draws.

    The same interval with one draw. With several, the matrix does not tell which utterance was right how often, so each
    counts as wholly right or wrong: on the safe side, as fractions vary less than zeros and ones of the same mean.
    """
    return _interval(_resampled(_strata_of_matrix(matrix, draws), repeats, seed), level)


def clustered_bootstrap(
    correct: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    seeds: ArrayLike | None = None,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of UAR, speakers (`clusters`) resampled with replacement, each with all of their utterances.

    It answers for other speakers like these. Where a resample lacks a class, its UAR is over the classes that occur.
    The percentiles are expanded for the number of speakers (Hesterberg 2015, Am. Stat. 69(4)): plain ones would make
    the interval 18 % too short with 10 speakers, 3 % with 50. Simulated 95 % intervals cover the truth 95 % of the
    time with 10 speakers or more, 90 % with 5, 73 % with 3. One speaker says nothing about others: NaN.
    """
    columns = {"correct": correct, "labels": labels, "clusters": clusters, "seeds": _one_seed(seeds, correct)}
    cells = _cells(*_utterances(**columns))
    return _interval(cells.resampled(repeats, seed), level, len(cells))


def clustered_bootstrap_of_matrices(
    matrices: Iterable[ArrayLike], repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`clustered_bootstrap` from one confusion matrix [true, predicted] per client, added up over any number of draws.

    Clients without test utterances are left out.
    """
    checked = [_matrix(matrix) for matrix in matrices]
    if len({matrix.shape for matrix in checked}) > 1:
        raise InputError("matrices: their sizes differ; give one per client, all over the same classes")
    occupied = np.array([matrix for matrix in checked if matrix.any()])
    if not len(occupied):
        raise InputError("matrices: there are no test utterances in them")
    cells = _Cells(np.diagonal(occupied, axis1=1, axis2=2)[:, None], occupied.sum(axis=2)[:, None])
    return _interval(cells.resampled(repeats, seed), level, len(cells))


def closed_form(
    correct: ArrayLike,
    labels: ArrayLike,
    seeds: ArrayLike | None = None,
    utterances: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Normal interval of UAR, cut off at 0 and 1: Var(UAR) = 1/K² Σ_k var_k/n_k over the K classes that occur.

    var_k has the divisor n_k (for zeros and ones it is recall·(1 − recall)), which makes this the variance that
    `stratified_bootstrap` has after endless repeats: its check. With `seeds` each of the `utterances` [n] contributes
    the sum of its deviations (correct − recall)/(n_k K) over the seeds that tested it, divided by their number; the
    variance is the sum of the squares.
    """
    if seeds is None:
        return _normal(_strata(*_utterances(correct=correct, labels=labels)), level)
    correct, labels, utterances, seeds = _utterances(correct=correct, labels=labels, utterances=utterances, seeds=seeds)
    mean, deviations = 0.0, np.zeros(len(correct))
    for own in (seeds == each for each in np.unique(seeds)):
        for stratum in (own & (labels == label) for label in np.unique(labels[own])):
            share = 1 / (len(np.unique(labels[own])) * len(np.unique(seeds)))
            recall = correct[stratum].mean()
            mean += share * recall
            deviations[stratum] = share * (correct[stratum] - recall) / stratum.sum()
    sums = np.bincount(np.unique(utterances, return_inverse=True)[1], deviations)
    return _around(mean, float(sums @ sums), level)


def closed_form_of_matrix(matrix: ArrayLike, draws: int = 1, level: float = 0.95) -> Interval:
    """`closed_form` from a confusion matrix; on the safe side in the same way as `stratified_bootstrap_of_matrix`."""
    return _normal(_strata_of_matrix(matrix, draws), level)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Are A and B right equally often? Exact binomial test on the utterances that only one has right (McNemar 1947).

    With several draws an utterance counts as right from half of them on. It compares accuracies, not UARs.
    """
    a, b = (correct >= 0.5 for correct in _utterances(correct_a=correct_a, correct_b=correct_b))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))), only_a, only_b)


def paired_bootstrap(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike | None = None,
    seeds: ArrayLike | None = None,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """UAR of A − UAR of B on the same utterances, resampled in pairs: within classes, or by speaker with `clusters`.

    `seeds` are for the latter: of A and of B, which are paired seed by seed.

    The interval is made as in `stratified_bootstrap` or `clustered_bootstrap`. p is 1 − the level at which it would
    touch 0, so that p < 0.05 where the 95 % interval excludes 0.
    """
    columns = {"correct_a": correct_a, "correct_b": correct_b, "labels": labels}
    if clusters is None:
        a, b, labels = _utterances(**columns)
        strata = _strata(a - b, labels)
        return _difference(_mean(strata), _resampled(strata, repeats, seed), level)
    a, b, labels, clusters, seeds = _utterances(**columns, clusters=clusters, seeds=_one_seed(seeds, labels))
    cells = _cells(a - b, labels, clusters, seeds)
    return _difference(cells.uar(), cells.resampled(repeats, seed), level, len(cells))


def z_test(uar_a: float, uar_b: float, n_a: int, n_b: int) -> ZTest:
    """Is UAR A greater than UAR B? The one-tailed z-test of two proportions, variance pooled, as in Chang et al. 2022.

    They read a UAR as a proportion of n_a or n_b test utterances. For comparison with them only: it is no proportion,
    and models tested on the same utterances are not independent. `paired_bootstrap` respects both.
    """
    (a,), (b,) = _numbers("uar_a", [uar_a], 0, 1), _numbers("uar_b", [uar_b], 0, 1)
    for name, n in (("n_a", n_a), ("n_b", n_b)):
        _require(isinstance(n, Integral) and n >= 1, f"{name}: {n} is no number of utterances")
    pooled = (a * n_a + b * n_b) / (n_a + n_b)
    error = sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    z = float((a - b) / error) if error else 0.0
    return ZTest(z, float(ndtr(-z)))


def t_test(differences: Iterable[float]) -> TTest:
    """Is the mean difference of two models 0, over trainings? Student's t-test of the differences [n], one per seed.

    It answers for other trainings like these on the same speakers, where `paired_bootstrap` answers for other speakers
    and takes the trained models as given. Differences that are all the same, as coarse test sets can make them, tell
    nothing of how they spread: NaN, but p 1 where all are 0.
    """
    mean, sd, n = aggregate(differences)
    if n < 2 or (sd < SAME <= abs(mean)):
        return TTest(nan, nan)
    t = mean / (sd / sqrt(n)) if sd >= SAME else 0.0
    return TTest(float(t), float(2 * stdtr(n - 1, -abs(t))))


def aggregate(values: Iterable[float]) -> Aggregate:
    """Over runs that differ in their seed alone, or anything else that was repeated."""
    values = _numbers("values", values)
    return Aggregate(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else nan, len(values))


def holm(p_values: Iterable[float]) -> np.ndarray:
    """p-values [m] of a family of tests, adjusted for being so many (Holm 1979), in the order given.

    It asks for no independence, no more than Bonferroni's correction does, and rejects at least as often.
    """
    p_values = _numbers("p_values", p_values, 0, 1)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def by_speaker(correct: ArrayLike, labels: ArrayLike, speakers: ArrayLike) -> dict[str | int, float]:
    """Each speaker's UAR over the classes that this speaker has, in the speakers' order."""
    correct, labels, speakers = _utterances(correct=correct, labels=labels, speakers=speakers)
    cells = _cells(correct, labels, speakers, _one_seed(None, labels))
    return dict(zip(np.unique(speakers).tolist(), _uar(cells.sums, cells.counts).tolist(), strict=True))


def spread(values: Iterable[float]) -> tuple[float, float]:
    """The lowest value and the 10 % quantile: how the worst off fare, such as of `by_speaker(…).values()`."""
    values = _numbers("values", values)
    return float(values.min()), float(np.quantile(values, 0.1))


def gap(
    correct: ArrayLike,
    labels: ArrayLike,
    sexes: ArrayLike,
    speakers: ArrayLike,
    seeds: ArrayLike | None = None,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference | None:
    """UAR of the female − UAR of the male speakers, each over the classes they have; None where either is absent.

    `sexes` [n] is `female`, `male`, or None, NaN or empty where unknown: such utterances are left out. Speakers are
    resampled within their sex, the percentiles expanded as in `clustered_bootstrap` for the smaller of the groups.
    """
    sexes = np.array([_sex(sex) for sex in sexes])
    columns = {"correct": correct, "labels": labels, "sexes": sexes, "speakers": speakers}
    correct, labels, sexes, speakers, seeds = _utterances(**columns, seeds=_one_seed(seeds, labels))
    female, male = (sexes == "female"), (sexes == "male")
    if not (female.any() and male.any()):
        return None
    both = np.intersect1d(speakers[female], speakers[male])
    _require(not len(both), f"sexes: speaker {', '.join(map(str, both))} is both female and male")
    women, men = (_cells(correct[group], labels[group], speakers[group], seeds[group]) for group in (female, male))
    replicates = women.resampled(repeats, (seed, 0)) - men.resampled(repeats, (seed, 1))
    return _difference(women.uar() - men.uar(), replicates, level, min(len(women), len(men)))


def resampled_groups(groups: Sequence[np.ndarray], repeats: int = 2000, seed: int = 0) -> np.ndarray:
    """Sums [repeats, groups, ...] over the speakers of `groups`, each [speakers, ...], resampled within theirs."""
    drawn = []
    for place, cells in enumerate(groups):
        weights = _weights(len(cells), repeats, (seed, place))
        drawn.append((weights @ cells.reshape(len(cells), -1)).reshape(repeats, *cells.shape[1:]))
    return np.stack(drawn, axis=1)


def interval_of_distance(distance: float, resampled: np.ndarray, speakers: int, level: float = 0.95) -> Interval:
    """Interval of a distance between groups, which is never below 0; `resampled` [repeats] are those of
    `resampled_groups`, NaN where one cannot say, and `speakers` those of the smallest group.

    Noise adds to a distance, and a resample adds it again: the percentiles are mirrored at the distance itself (the
    basic bootstrap), which takes it off once. Simulated 95 % intervals of the total variation between rows of confusion
    matrices of 2 × 12 speakers cover a distance of 0.26 95 % of the time, where plain percentiles do so 25 %; near 0
    neither is of use.
    """
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Interval(nan, nan)
    ends = _interval(known, level, speakers)
    return Interval(*(max(2 * distance - end, 0.0) for end in (ends.high, ends.low)))


def robustness_curve(distances: ArrayLike, labels: ArrayLike, radii: ArrayLike) -> np.ndarray:
    """UAR [r] within each L2 radius [r]: an utterance counts as right while its flip distance is above the radius.

    `distances` [n] are the norms that a minimal-norm attack needed (DeepFool, Moosavi-Dezfooli et al. 2016), in σ of a
    mel bin: 0 where the clean utterance is wrong already, infinite where the attack failed. An attack need not find the
    nearest flip, so the curve is an upper bound.
    """
    distances, labels = _utterances(distances=distances, labels=labels)
    right = distances > _numbers("radii", radii, 0, inf)[:, None]
    return np.mean([right[:, labels == label].mean(axis=1) for label in np.unique(labels)], axis=0)


def median_flip(distances: ArrayLike) -> float:
    """Median L2 needed to flip an utterance, over those right to begin with (distance above 0), in the distances' unit.

    Infinite where the attack failed on half of them or more; NaN where none was right.
    """
    distances = _numbers("distances", distances, 0, inf)
    right = distances[distances > 0]
    return float(np.median(right)) if len(right) else nan


@dataclass(frozen=True)
class _Stratum:
    """What the `n` utterances of one class got: the distinct values [v], and the share [v] that got each."""

    values: np.ndarray
    shares: np.ndarray
    n: int

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray, n: int | None = None) -> "_Stratum":
        present = counts > 0
        return cls(values[present], counts[present] / counts.sum(), int(counts.sum()) if n is None else n)

    def mean(self) -> float:
        return float(self.shares @ self.values)

    def variance(self) -> float:
        return float(self.shares @ (self.values - self.mean()) ** 2)


def _strata(values: np.ndarray, labels: np.ndarray) -> list[_Stratum]:
    classes = (values[labels == label] for label in np.unique(labels))
    return [_Stratum.of(*np.unique(each, return_counts=True)) for each in classes]


def _strata_of_matrix(matrix: ArrayLike, draws: int) -> list[_Stratum]:
    matrix = _matrix(matrix)
    _require(isinstance(draws, Integral) and draws >= 1, f"draws: {draws} is no number of draws")
    totals = matrix.sum(axis=1)
    _require(not (totals % draws).any(), f"matrix: its rows {totals.tolist()} are not counts over {draws} draws")
    _require(matrix.any(), "matrix: there are no test utterances in it")
    zero_one = np.array([0.0, 1.0])
    return [
        _Stratum.of(zero_one, np.array([total - right, right]), int(total // draws))
        for total, right in zip(totals, np.diag(matrix), strict=True)
        if total
    ]


def _mean(strata: list[_Stratum]) -> float:
    return sum(stratum.mean() for stratum in strata) / len(strata)


def _resampled(strata: list[_Stratum], repeats: int, seed: int) -> np.ndarray:
    """UARs [repeats] of resamples within classes."""
    _check_repeats(repeats)
    rng = np.random.default_rng(seed)
    # How often each distinct value comes up is all that matters: drawing an index per utterance would take far longer.
    recalls = (rng.multinomial(each.n, each.shares, size=repeats) @ each.values / each.n for each in strata)
    return sum(recalls) / len(strata)


def _normal(strata: list[_Stratum], level: float) -> Interval:
    return _around(_mean(strata), sum(stratum.variance() / stratum.n for stratum in strata) / len(strata) ** 2, level)


def _around(mean: float, variance: float, level: float) -> Interval:
    half = -float(ndtri(_tail(level))) * sqrt(variance)
    return Interval(max(mean - half, 0.0), min(mean + half, 1.0))


@dataclass(frozen=True)
class _Cells:
    """Per speaker, seed and class the sum of what the utterances got and their number, [speakers, seeds, classes]."""

    sums: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return self.counts.shape[0]

    def uar(self) -> float:
        return float(_uar(self.sums.sum(axis=0), self.counts.sum(axis=0)))

    def resample(self, repeats: int, seed: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts [repeats, seeds, classes] of resampled speakers."""
        both = np.stack([self.sums, self.counts], axis=1)
        drawn = _weights(len(self), repeats, seed) @ both.reshape(len(self), -1)
        return tuple(drawn.reshape(repeats, *both.shape[1:]).swapaxes(0, 1))

    def resampled(self, repeats: int, seed: int | tuple[int, ...]) -> np.ndarray:
        """UARs [repeats] of resampled speakers."""
        return _uar(*self.resample(repeats, seed))


@functools.lru_cache(maxsize=32)
def _weights(n: int, repeats: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """How often each of n comes up in each resample, [repeats, n]; kept, as tests of one corpus share them."""
    _check_repeats(repeats)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=repeats).astype(float)


def _cells(
    values: np.ndarray, labels: np.ndarray, speakers: np.ndarray, seeds: np.ndarray, known: np.ndarray | None = None
) -> _Cells:
    """The cells of these utterances; `known` are the seeds that get a place, by default those that occur."""
    (classes, column), (names, row) = (np.unique(each, return_inverse=True) for each in (labels, speakers))
    known = np.unique(seeds) if known is None else known
    shape = (len(names), len(known), len(classes))
    cell = np.ravel_multi_index((row, np.searchsorted(known, seeds), column), shape)
    sums, counts = (np.bincount(cell, weights, minlength=prod(shape)) for weights in (values, None))
    return _Cells(sums.reshape(shape), counts.reshape(shape))


def _one_seed(seeds: ArrayLike | None, rows: ArrayLike) -> ArrayLike:
    return np.zeros(np.size(rows), int) if seeds is None else seeds


def _uar(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """UAR over the last axis, the classes that occur, and its mean over the one before, the seeds that do."""
    recalls = np.divide(sums, counts, out=np.zeros(counts.shape), where=counts > 0)
    occurring = (counts > 0).sum(axis=-1)
    uars = recalls.sum(axis=-1) / np.maximum(occurring, 1)
    return uars.sum(axis=-1) / (occurring > 0).sum(axis=-1)


def _difference(difference: float, replicates: np.ndarray, level: float, speakers: int | None = None) -> Difference:
    # Sums of fractions miss 0 by a few 1e-17, and models that do not differ must not be told apart by that.
    beyond = min((replicates <= 1e-12).sum(), (replicates >= -1e-12).sum())
    p, least = (_two_sided(min((b + 1) / (len(replicates) + 1), 0.5), speakers) for b in (beyond, 0))
    return Difference(difference, _interval(replicates, level, speakers), p, least)


def _two_sided(tail: float, speakers: int | None) -> float:
    """p of this share of the resamples on the other side of 0; expanded as the intervals are."""
    if speakers == 1:
        return nan
    if speakers is not None:
        tail = stdtr(speakers - 1, ndtri(tail) * sqrt((speakers - 1) / speakers))
    return float(2 * tail)


def _interval(replicates: np.ndarray, level: float, speakers: int | None = None) -> Interval:
    """Percentile interval; with `speakers` expanded, to be as wide as with t quantiles and the divisor n − 1."""
    tail = _tail(level)
    if speakers == 1:
        return Interval(nan, nan)
    if speakers is not None:
        tail = ndtr(stdtrit(speakers - 1, tail) * sqrt(speakers / (speakers - 1)))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def percentiles(replicates: np.ndarray, speakers: int, level: float = 0.95) -> Interval:
    """Interval of any figure whose values over resamples of so many speakers these are; NaN of one speaker."""
    return _interval(replicates, level, speakers)


def _tail(level: float) -> float:
    _require(0 < level < 1, f"level: {level} is not between 0 and 1; for 95 % give 0.95")
    return (1 - level) / 2


def _check_repeats(repeats: int) -> None:
    _require(isinstance(repeats, Integral) and repeats >= 1, f"repeats: {repeats} is no number of resamples")


def _utterances(**columns: ArrayLike) -> list[np.ndarray]:
    """The columns as arrays of one length: `correct…` in [0, 1], `distances` from 0, others integers or strings."""
    arrays = {name: _column(name, values) for name, values in columns.items()}
    (first, expected), *others = ((name, len(array)) for name, array in arrays.items())
    for name, length in others:
        _require(length == expected, f"{first} has {expected} values, {name} {length}: give one of each per utterance")
    return list(arrays.values())


def _column(name: str, values: ArrayLike) -> np.ndarray:
    if name.startswith("correct"):
        return _numbers(name, values, 0, 1)
    return _numbers(name, values, 0, inf) if name == "distances" else _names(name, values)


def _numbers(
    name: str, values: Iterable[float], low: float = -sys.float_info.max, high: float = sys.float_info.max
) -> np.ndarray:
    """Values as float64 [n], n ≥ 1, each from `low` to `high`: by default any finite numbers."""
    try:
        array = np.asarray(list(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: numbers are wanted ({error})") from None
    _require(array.ndim == 1 and len(array), f"{name}: at least one number in one dimension is wanted")
    wrong = np.flatnonzero(~((array >= low) & (array <= high)))
    if len(wrong):
        wanted = "finite numbers are" if high == sys.float_info.max else f"a number from {low:g} to {high:g} is"
        raise InputError(f"{name}: value {wrong[0]} is {array[wrong[0]]}, {wanted} wanted")
    return array


def _names(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    _require(array.ndim == 1 and len(array), f"{name}: at least one value in one dimension is wanted")
    alike = any(all(isinstance(value, kind) for value in array) for kind in (str, Integral))
    _require(alike, f"{name}: integers or strings are wanted throughout; some are missing or of another type")
    return array


def _sex(sex: object) -> str:
    """Unknown, which may be None or any library's NaN, becomes the empty string."""
    _require(not isinstance(sex, str) or sex in ("female", "male", ""), f"sexes: {sex!r} is neither female nor male")
    return sex if isinstance(sex, str) else ""


def _matrix(matrix: ArrayLike) -> np.ndarray:
    """Counts [classes, classes], int64."""
    try:
        array = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"matrix: counts are wanted ({error})") from None
    square = array.ndim == 2 and array.shape[0] == array.shape[1] > 0
    _require(square, f"matrix: one row and one column per class are wanted, not shape {array.shape}")
    _require(np.isfinite(array).all() and (array >= 0).all() and not (array % 1).any(), "matrix: counts are wanted")
    return array.astype(np.int64)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InputError(message)
