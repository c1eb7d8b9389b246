"""The UAR of a model under one condition, over its seeds, and how far to trust it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fedser.evaluation import metrics, statistics
from fedser.evaluation.statistics import Interval
from fedser.report.analysis.conditions import Condition, parse
from fedser.report.analysis.runs import SEXES, Evaluation, Run

UNKNOWN = Interval(math.nan, math.nan)
ENOUGH = 0.5  # of the test clips, for an attack to count among those that a model is judged by
CLIPS = 5  # of a speaker, for a UAR of this speaker alone to say anything


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
    def variant(self) -> str:
        """The attack, as its file calls it."""
        return parse(self.source).variant

    @property
    def examples(self) -> dict:
        """How far its adversarial examples lie from their originals; empty where that is not known."""
        name = parse(self.source).examples
        found = self.evaluation.content["examples"].get(name)
        return {"seconds": self.evaluation.times.get(name), **found} if found else {}

    @property
    def draws(self) -> int:
        return int(self.record.get("draws") or 1)

    @property
    def matrix(self) -> np.ndarray:
        """Counts [true, predicted] over all draws."""
        return np.asarray(self.record["matrix"], float)

    @property
    def uar(self) -> float:
        return metrics.uar(self.matrix)

    @property
    def rank(self) -> tuple:
        """Of two measures of the same condition the greater one counts: later round, more clips, more draws, newer."""
        evaluation = self.evaluation
        return (evaluation.content.get("round") or 0, evaluation.fraction, self.draws, evaluation.written)

    @property
    def seed(self) -> str:
        return str(self.run.setting("seed"))

    @property
    def tested(self) -> dict[str, dict]:
        """What is known of each client."""
        return self.evaluation.content["clients"]

    @property
    def sexes(self) -> dict[str, str]:
        """`female`, `male` or an empty string per client."""
        known = {client: each for client, each in self.tested.items() if isinstance(each, dict)}
        letters = {client: str(each.get("sex") or "") for client, each in known.items()}
        return {client: SEXES.get(sex, sex) for client, sex in letters.items()}

    def observations(self) -> pd.DataFrame | None:
        """Per `utterance`: `correct` (fraction of draws), `label`, `speaker`, `sex`, and the run's `seed`.

        None without utterances.csv.
        """
        frame, column = self.evaluation.utterances, f"correct/{self.source}"
        if frame is None or column not in frame:
            return None
        known = frame[["utterance", "speaker", "sex", "emotion", column]].assign(seed=self.seed)
        return known.rename(columns={"emotion": "label", column: "correct"}).dropna(subset=["correct"])

    def clients(self) -> Iterable[pd.DataFrame]:
        """The like of each client's matrix: the client taken as one speaker, each clip and draw as having got the mean
        of its client and class, which changes no UAR and no resampling of speakers."""
        sexes = self.sexes
        for client, counts in sorted((self.record.get("by_client") or {}).items()):
            matrix = np.asarray(counts, float)
            labels = np.repeat(np.arange(len(matrix)), matrix.sum(axis=1).astype(int))
            who = {"speaker": client, "sex": sexes.get(client, ""), "seed": self.seed}
            clips = [f"{self.seed} {row // self.draws}" for row in range(len(labels))]
            yield pd.DataFrame({"correct": metrics.recalls(matrix)[labels], "label": labels, "utterance": clips} | who)


class OfUnseen(Measure):
    """The same condition on the clips of speakers whom nobody trained on."""

    @property
    def record(self) -> dict:
        return self.evaluation.content["unseen"]["conditions"][self.source]

    @property
    def tested(self) -> dict[str, dict]:
        found = self.evaluation.content["unseen"].get("clients")
        return found if isinstance(found, dict) else {}

    @property
    def speakers(self) -> int:
        """How many of them there are clips of."""
        return sum(bool(np.any(matrix)) for matrix in (self.record.get("by_client") or {}).values())

    def observations(self) -> None:
        """What is known of clips is of the others."""


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
        """What part of each class [true] is classified as which [predicted]; NaN for a class without test clips."""
        totals = [measure.matrix.sum(axis=1, keepdims=True) for measure in self.measures]
        rows = np.array([m.matrix / np.where(n > 0, n, np.nan) for m, n in zip(self.measures, totals, strict=True)])
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
        """`observations`, or what the clients' matrices say of them."""
        if self.observations is not None:
            return self.observations
        parts = [part for measure in self.measures for part in measure.clients()]
        return pd.concat(parts) if parts else pd.DataFrame(columns=["correct", "label", "utterance", "speaker", "sex"])

    @cached_property
    def clustered(self) -> Interval:
        """95 % interval over speakers; NaN for less than two."""
        if self.rows["speaker"].nunique() < 2:
            return UNKNOWN
        return statistics.clustered_bootstrap(*self._columns("correct", "label", "speaker", "seed"))

    @cached_property
    def stratified(self) -> Interval:
        """95 % interval over utterances within classes."""
        return self._over_clips(statistics.stratified_bootstrap, statistics.stratified_bootstrap_of_matrix)

    @cached_property
    def closed_form(self) -> Interval:
        """The check of `stratified`."""
        return self._over_clips(statistics.closed_form, statistics.closed_form_of_matrix)

    def _over_clips(self, of_clips: Callable, of_matrix: Callable) -> Interval:
        if self.observations is not None:  # with one seed its clips need no name
            return of_clips(*self._columns("correct", "label", *["seed", "utterance"] * (len(self.measures) > 1)))
        intervals = [of_matrix(measure.matrix, measure.draws) for measure in self.measures]
        return Interval(*np.array([[each.low, each.high] for each in intervals]).mean(axis=0).tolist())

    def _columns(self, *names: str) -> list[pd.Series]:
        return [self.rows[name] for name in names]

    @property
    def interval(self) -> Interval:
        """The one to show: over speakers, where there are several."""
        return self.stratified if math.isnan(self.clustered.low) else self.clustered

    def by_speaker(self) -> dict[str, float]:
        """The UAR of each speaker with at least five clips, over the classes that this speaker has, in all seeds' test
        sets together."""
        clips = self.rows.drop_duplicates(["speaker", "utterance"])["speaker"].value_counts()
        rows = self.rows[self.rows["speaker"].isin(clips.index[clips >= CLIPS]) & (self.rows["speaker"] != "")]
        return statistics.by_speaker(rows["correct"], rows["label"], rows["speaker"]) if len(rows) else {}

    def by_corpus(self) -> dict[str, tuple[float, int]]:
        """UAR and clips of each of mixed corpora, by the names before their speakers'; UARs are means over seeds."""
        corpora = self.rows["speaker"].str.extract("^(.+?)/", expand=False)
        rows = self.rows.assign(corpus=corpora).dropna(subset=["corpus"])
        groups = [group for _, group in rows.groupby("seed")]
        uars = pd.DataFrame([statistics.by_speaker(g["correct"], g["label"], g["corpus"]) for g in groups]).mean()
        counts = rows.drop_duplicates(["corpus", "utterance"])["corpus"].value_counts()
        return {name: (float(uars[name]), int(counts[name])) for name in sorted(uars.index)}

    def sexes(self) -> dict[str, str]:
        """`female`, `male` or an empty string per speaker."""
        return dict(zip(self.rows["speaker"], self.rows["sex"], strict=True))

    def gap(self) -> statistics.Difference | None:
        """UAR of the female − UAR of the male speakers; None where either is absent."""
        if self.rows.empty or self.rows.groupby("speaker")["sex"].nunique().max() > 1:
            return None
        return statistics.gap(*self._columns("correct", "label", "sex", "speaker", "seed"))
