"""How differently a model treats groups of speakers, from the clients' confusion matrices alone; 0 is fair.

`counts` are [..., groups, true, predicted]: how many utterances of a group g and a class y were taken for p. A metric
is a distance D(g, h) in [0, 1] between every two groups, of which it gives the worst or the mean; NaN where there is
nothing to compare. Definitions: Feng et al. 2023 (Trust-SER), who use those of holisticai for more than two classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fedser.errors import InputError
from fedser.evaluation import groups as by_value
from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval

Metric = Callable[[np.ndarray], np.ndarray]
SHUFFLES = 500


def statistical_parity(counts: ArrayLike, aggregate: str = "worst") -> np.ndarray:
    """D(g, h) = ½ Σ_c |P(p=c | g) − P(p=c | h)|: [...].

    Groups that speak other classes differ in it even where every prediction is right.
    """
    groups = _groups(counts)
    return _over_pairs(_shares(groups, groups.sum(axis=-2)), lambda difference: difference.sum(axis=-1) / 2, aggregate)


def equality_of_opportunity(counts: ArrayLike, aggregate: str = "worst", empty: str = "skip") -> np.ndarray:
    """D(g, h) = mean over y of ½ Σ_c |P(p=c | y, g) − P(p=c | y, h)|: [...].

    `empty`: what becomes of a class that one of two groups never has. "skip" compares them in the classes that both
    have. "uniform" is holisticai's, which adds 1e-32 to every count: such a group counts as guessing, and the mean is
    over all classes that anybody speaks or is taken for.
    """
    groups = _groups(counts)
    _among("empty", empty, ("skip", "uniform"))
    totals = groups.sum(axis=-1, keepdims=True)
    if empty == "uniform":
        everybody = groups.sum(axis=0)
        known = (everybody.sum(axis=-1) + everybody.sum(axis=-2)) > 0
        spoken = groups.sum(axis=(-2, -1), keepdims=True) > 0
        guess = spoken * known[..., None] * known[..., None, :] * 1e-32
        groups, totals = groups + guess, totals + guess.sum(axis=-1, keepdims=True)
    rates = np.divide(groups, totals, out=np.full(groups.shape, nan), where=totals > 0)
    return _over_pairs(rates, lambda difference: _mean(difference.sum(axis=-1) / 2, axis=-1), aggregate)


def demographic_parity(counts: ArrayLike, aggregate: str = "worst", predictions: str = "all") -> np.ndarray:
    """D(g, h) = max over c of |P(p=c | g) − P(p=c | h)|: [...].

    `predictions`: "all", or as Trust-SER's code has it "correct" ones only, P(p=c, y=c | g).
    """
    groups = _groups(counts)
    _among("predictions", predictions, ("all", "correct"))
    chosen = groups.sum(axis=-2) if predictions == "all" else np.diagonal(groups, axis1=-2, axis2=-1)
    return _over_pairs(_shares(groups, chosen), lambda difference: difference.max(axis=-1), aggregate)


METRICS: dict[str, Metric] = {
    "statistical_parity": statistical_parity,
    "equality_of_opportunity": equality_of_opportunity,
    "demographic_parity": demographic_parity,
    "equality_of_opportunity_uniform": partial(equality_of_opportunity, empty="uniform"),
    "demographic_parity_correct": partial(demographic_parity, predictions="correct"),
}
"""What a report's file has; its table has the first three."""


class Trust(NamedTuple):
    """A figure's 95 % interval over speakers; what groups of as many speakers come to that are drawn at random, a mean
    (`chance`), and how often to as much (`p`): few utterances alone set groups, and intervals, apart from 0."""

    interval: Interval
    chance: float
    p: float


@dataclass(frozen=True, eq=False)
class Grouped:
    """Clients in groups: `counts` [clients, seeds, true, predicted] and the `group` [clients] of each; `left_out` are
    groups of too few utterances, and clients whose group nobody knows."""

    counts: np.ndarray
    group: np.ndarray
    left_out: list[str]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many clients each group has."""
        return dict(zip(*(each.tolist() for each in np.unique(self.group, return_counts=True)), strict=True))

    def figure(self, metric: Metric, aggregate: str = "worst") -> float:
        """The mean over seeds."""
        own = self.group == np.array(list(self.sizes))[:, None]  # [groups, clients]
        return float(_over_seeds(self._summed(own), metric, aggregate))

    def trust(self, metrics: Mapping[str, Metric], aggregate: str = "worst") -> dict[str, Trust]:
        """How far to trust each figure; speakers (clients) are resampled, and shuffled, in all seeds at once."""
        random, places = np.random.default_rng(0), np.unique(self.group, return_inverse=True)[1]
        drawn = np.array([random.permutation(places) for _ in range(SHUFFLES)])
        shuffled = self._summed(drawn[:, None] == np.arange(len(self.sizes))[:, None])
        resampled = statistics.resampled_groups([self.counts[self.group == name] for name in self.sizes])
        found = {}
        for name, metric in metrics.items():
            figure = self.figure(metric, aggregate)
            others, again = (_over_seeds(sums, metric, aggregate) for sums in (shuffled, resampled))
            interval = statistics.interval_of_distance(figure, again, min(self.sizes.values()))
            p = (1 + np.sum(others >= figure - statistics.SAME)) / (1 + SHUFFLES)
            alone = np.isnan(figure) or len(self.group) == len(self.sizes)  # one speaker each: nothing to draw
            found[name] = Trust(interval, *(nan, nan) if alone else (float(_mean(others, axis=0)), float(p)))
        return found

    def _summed(self, own: np.ndarray) -> np.ndarray:
        """Counts [..., groups, seeds, true, predicted] of the clients that are each group's `own` [..., clients]."""
        flat = own.astype(float) @ self.counts.reshape(len(self.counts), -1)
        return flat.reshape(*own.shape[:-1], *self.counts.shape[1:])


def grouped(counts: Mapping[str, ArrayLike], groups: Mapping[str, str | None], min_support: float = 1) -> Grouped:
    """Clients' `counts` [true, predicted] or [seeds, true, predicted] by their `groups`, without those of fewer than
    `min_support` utterances in a seed that has any of them. Raises `InputError` where less than two groups are left."""
    known = [client for client in counts if groups.get(client)]
    cells = np.array([np.asarray(counts[client], float) for client in known])
    cells = cells[:, None] if cells.ndim == 3 else cells
    group = np.array([groups[client] for client in known], dtype=str)
    sums = {name: cells[group == name].sum(axis=(0, 2, 3)) for name in np.unique(group).tolist()}
    support = {name: each[each > 0].min() if each.any() else 0 for name, each in sums.items()}
    kept = [name for name, least in support.items() if least >= min_support]
    if len(kept) < 2:
        found = ", ".join(kept) or "none"
        raise InputError(f"groups: two with at least {min_support:g} test utterances are wanted, found: {found}")
    chosen = np.isin(group, kept)
    left_out = [*(name for name in support if name not in kept), *(name for name in counts if name not in known)]
    return Grouped(cells[chosen], group[chosen], left_out)


def by_column(table: pd.DataFrame, column: str) -> dict[str, str | None]:
    """The group of each `client` of a corpus's table by one of its columns, None where it is missing."""
    by_value.check(table, column)
    values = table.groupby(table["client"].astype(str))[column]
    found = {client: sorted(set(each.dropna().astype(str))) for client, each in values}
    if mixed := [client for client, each in found.items() if len(each) > 1]:
        raise InputError(f"groups: {column} is not the same in all utterances of client {mixed[0]}")
    return {client: each[0] if each else None for client, each in found.items()}


def _over_seeds(counts: np.ndarray, metric: Metric, aggregate: str) -> np.ndarray:
    """Counts [..., groups, seeds, true, predicted] → means over seeds [...]."""
    return _mean(metric(np.moveaxis(counts, -3, -4), aggregate=aggregate), axis=-1)


def _groups(counts: ArrayLike) -> np.ndarray:
    """Groups first: [groups, ..., true, predicted]."""
    counts = np.asarray(counts, float)
    if counts.ndim < 3 or counts.shape[-1] != counts.shape[-2] or counts.shape[-3] < 2:
        raise InputError(f"counts: [two or more groups, true, predicted] are wanted, not shape {counts.shape}")
    return np.moveaxis(counts, -3, 0)


def _shares(groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """What part of a group's utterances is among the chosen ones of each class; NaN of none."""
    totals = groups.sum(axis=(-2, -1))[..., None]
    return np.divide(chosen, totals, out=np.full(chosen.shape, nan), where=totals > 0)


def _over_pairs(shares: np.ndarray, distance: Metric, aggregate: str) -> np.ndarray:
    """Shares [groups, ...] → distances of their absolute differences, together; a group at a time, to save memory."""
    _among("aggregate", aggregate, ("worst", "mean"))
    pairs = np.concatenate([distance(np.abs(one - shares[place:])) for place, one in enumerate(shares[:-1], start=1)])
    return np.fmax.reduce(pairs, axis=0) if aggregate == "worst" else _mean(pairs, axis=0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Over what is known; NaN where that is nothing."""
    known = np.sum(~np.isnan(values), axis=axis)
    return np.divide(np.nansum(values, axis=axis), known, out=np.full(np.shape(known), nan), where=known > 0)[()]


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}: {value!r} is none of {', '.join(known)}")
