"""The UAR of a model under one condition, over its seeds, and how far to trust it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval
from fedser.report.conditions import Condition, parse
from fedser.report.runs import SEXES, Evaluation, Run

UNKNOWN = Interval(math.nan, math.nan)
ENOUGH = 0.5  # of the test clips, for an attack to count among those that a model is judged by


@dataclass(frozen=True, eq=False)
class Measure:
    """One condition of one run; `source` is its name in the file, which `condition` may tell apart from others."""

    run: Run
    evaluation: Evaluation
    condition: Condition
    source: str

    @property
    def record(self) -> dict:
        return self.evaluation.conditions[self.source]

    @property
    def attack(self) -> dict:
        """The attack's `settings` and `threat`; empty where the evaluation does not tell."""
        return self.evaluation.part("attacks").get(parse(self.source).variant) or {}

    @property
    def examples(self) -> dict:
        """How far its adversarial examples lie from their originals; empty where the evaluation does not tell."""
        name = parse(self.source).examples
        found = self.evaluation.part("examples").get(name)
        return {"seconds": self.evaluation.times.get(name), **found} if found else {}

    @property
    def draws(self) -> int:
        return int(self.record.get("draws") or 1)

    @property
    def matrix(self) -> np.ndarray:
        """Counts [true, predicted] over all draws."""
        return np.asarray(self.record["matrix"], float)

    @property
    def by_client(self) -> dict[str, np.ndarray]:
        return {client: np.asarray(m, float) for client, m in (self.record.get("by_client") or {}).items()}

    @property
    def uar(self) -> float:
        return float(np.nanmean(recalls(self.matrix)))

    @property
    def rank(self) -> tuple:
        """Of two measures of the same condition the greater one counts: later round, more clips, more draws, newer."""
        evaluation = self.evaluation
        return (evaluation.round, evaluation.fraction, self.draws, evaluation.written)

    def observations(self) -> pd.DataFrame | None:
        """Per `utterance`: `correct` (fraction of draws), `label`, `speaker`, `sex`, and the run's `seed`.

        None without utterances.csv.
        """
        frame, column = self.evaluation.utterances, f"correct/{self.source}"
        if frame is None or column not in frame:
            return None
        known = frame[["utterance", "speaker", "sex", "emotion", column]].assign(seed=self.seed)
        return known.rename(columns={"emotion": "label", column: "correct"}).dropna(subset=["correct"])

    @property
    def seed(self) -> str:
        return str(self.run.setting("seed"))


@dataclass(frozen=True, eq=False)
class Estimate:
    """Measures of one condition, one per seed, put together: means over seeds, whatever else they are means of."""

    condition: Condition
    measures: Sequence[Measure]
    seeds: int  # of the model: how many measures there could be

    @cached_property
    def over_seeds(self) -> statistics.Aggregate:
        """Mean and sd of the seeds' UARs."""
        return statistics.aggregate([measure.uar for measure in self.measures])

    @property
    def uar(self) -> float:
        return self.over_seeds.mean

    @property
    def draw_sd(self) -> float:
        """The sd over draws of the randomisation, a mean over seeds; NaN with one draw."""
        found = [m.record.get("uar_sd") for m in self.measures if m.draws > 1]
        return float(np.mean([sd for sd in found if sd is not None] or [math.nan]))

    @property
    def draws(self) -> int:
        return min(measure.draws for measure in self.measures)

    @property
    def fraction(self) -> float:
        return min(measure.evaluation.fraction for measure in self.measures)

    @property
    def representative(self) -> bool:
        """Whether it was measured on enough of the test clips to stand beside those that were measured on all."""
        return self.fraction >= ENOUGH

    @property
    def limits(self) -> list[str]:
        """Where it is of less than all: `25 % of clips`, `1 of 3 seeds`."""
        part = [f"{100 * self.fraction:.0f} % of clips"] if self.fraction < 1 else []
        return part + ([f"{len(self.measures)} of {self.seeds} seeds"] if len(self.measures) < self.seeds else [])

    @cached_property
    def matrix(self) -> np.ndarray:
        """Counts [true, predicted] over seeds and draws."""
        return sum(measure.matrix for measure in self.measures)

    @cached_property
    def shares(self) -> np.ndarray:
        """What part of each class [true] is taken for which [predicted]; NaN for a class without test utterances."""
        rows = np.array([_row_shares(measure.matrix) for measure in self.measures])
        known = (~np.isnan(rows)).sum(axis=0)
        return np.divide(np.nansum(rows, axis=0), known, out=np.full(known.shape, math.nan), where=known > 0)

    @property
    def utterances(self) -> int:
        """Test utterances, of all seeds together."""
        return round(sum(measure.matrix.sum() / measure.draws for measure in self.measures))

    @cached_property
    def observations(self) -> pd.DataFrame | None:
        """Each seed's test utterances, under their names; another seed may test them too, or train on them.

        None where a seed has no utterances.csv.
        """
        parts = [measure.observations() for measure in self.measures]
        if not parts or any(part is None for part in parts):
            return None
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """`observations`, or what the clients' matrices tell of them: each client taken as one speaker, and each
        utterance as having got the mean of its client and class."""
        if self.observations is not None:
            return self.observations
        parts = [
            _utterances_of(client, matrix).assign(seed=measure.seed)
            for measure in self.measures
            for client, matrix in sorted(measure.by_client.items())
        ]
        found = pd.concat(parts) if parts else pd.DataFrame(columns=["correct", "label", "speaker", "seed"])
        clients = (measure.evaluation.part("clients") for measure in self.measures)
        sexes = {name: entry.get("sex") or "" for part in clients for name, entry in part.items()}
        return found.assign(sex=[sexes.get(speaker, "") for speaker in found["speaker"]]).replace({"sex": SEXES})

    @cached_property
    def clustered(self) -> Interval:
        """95 % interval over speakers; NaN for less than two."""
        if self.rows["speaker"].nunique() < 2:
            return UNKNOWN
        columns = (self.rows[name] for name in ("correct", "label", "speaker", "seed"))
        return statistics.clustered_bootstrap(*columns)

    @cached_property
    def stratified(self) -> Interval:
        """95 % interval over utterances within classes."""
        if self.observations is not None:
            return statistics.stratified_bootstrap(*self._tested)
        return _mean([statistics.stratified_bootstrap_of_matrix(m.matrix, m.draws) for m in self.measures])

    @cached_property
    def closed_form(self) -> Interval:
        """The check of `stratified`."""
        if self.observations is not None:
            return statistics.closed_form(*self._tested)
        return _mean([statistics.closed_form_of_matrix(m.matrix, m.draws) for m in self.measures])

    @property
    def _tested(self) -> list[pd.Series]:
        """As intervals over utterances want it; with one seed they need not be told which is which."""
        names = ["correct", "label", *(["seed", "utterance"] if len(self.measures) > 1 else [])]
        return [self.observations[name] for name in names]

    @property
    def interval(self) -> Interval:
        """The one to show: over speakers, where there are several."""
        return self.stratified if math.isnan(self.clustered.low) else self.clustered

    def by_speaker(self) -> dict[str, float]:
        """Each speaker's UAR over the classes that this speaker has, in all seeds' test sets together."""
        if self.rows.empty:
            return {}
        return statistics.by_speaker(self.rows["correct"], self.rows["label"], self.rows["speaker"])

    def sexes(self) -> dict[str, str]:
        """`female`, `male` or an empty string per speaker."""
        return dict(zip(self.rows["speaker"], self.rows["sex"], strict=True))

    def gap(self) -> statistics.Difference | None:
        """UAR of the female − UAR of the male speakers; None where either is absent."""
        if self.rows.empty or self.rows.groupby("speaker")["sex"].nunique().max() > 1:
            return None
        columns = (self.rows[name] for name in ("correct", "label", "sex", "speaker", "seed"))
        return statistics.gap(*columns)


def recalls(matrix: np.ndarray) -> np.ndarray:
    """Recall per class [classes]; NaN for a class without test utterances."""
    return np.diag(_row_shares(matrix))


def _row_shares(matrix: np.ndarray) -> np.ndarray:
    """A confusion matrix's rows as shares; NaN for a class without test utterances."""
    counts = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, counts, out=np.full(matrix.shape, math.nan), where=counts > 0)


def _mean(intervals: Sequence[Interval]) -> Interval:
    ends = np.array([[each.low, each.high] for each in intervals]).mean(axis=0)
    return Interval(float(ends[0]), float(ends[1]))


def _utterances_of(client: str, matrix: np.ndarray) -> pd.DataFrame:
    """One row per count of the matrix: over draws, which changes no UAR and no resampling of speakers."""
    counts = matrix.sum(axis=1).astype(int)
    labels = np.repeat(np.arange(len(matrix)), counts)
    return pd.DataFrame({"correct": recalls(matrix)[labels], "label": labels, "speaker": client})
