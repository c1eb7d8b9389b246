"""What was inferred, figure by figure, and the file in the run's folder that has it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fedser import __version__
from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval
from fedser.runs.files import dumps, write_whole


@dataclass(frozen=True)
class Finding:
    """One figure; rates are fractions.

    what: that is inferred ("sex", "speaker"). source: from what ("embeddings", "log-Mel statistics", a layer's update).
    whose: "seen" speakers, whom the network was trained on, or "unseen" ones. metric: "uar", "accuracy", "eer", or
        "eer_within_sex": among impostors of the same sex alone.
    low, high: 95 % interval over speakers; NaN where they are too few. chance: what guessing comes to.
    samples: clips, or updates. protocol: in a line.
    """

    what: str
    source: str
    whose: str
    metric: str
    value: float
    low: float
    high: float
    chance: float
    speakers: int
    samples: int
    protocol: str

    @property
    def text(self) -> str:
        """For people."""
        ends = "" if np.isnan(self.low) else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        metric = self.metric.upper().replace("_", " ")
        return (
            f"{self.what} from {self.source}: {metric} {100 * self.value:.1f} %{ends}, chance "
            f"{100 * self.chance:.1f} ({self.speakers} {self.whose} speakers, {self.samples} samples)"
        )


def of_classes(right: np.ndarray, labels: np.ndarray, speakers: np.ndarray, own: np.ndarray, **more) -> list[Finding]:
    """UAR and accuracy of predictions that were `right` [n], of the rows that are `own` [n]; nothing of one class."""
    right, labels, speakers = right[own].astype(float), labels[own], speakers[own]
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2:
        return []
    sizes = {"speakers": len(np.unique(speakers)), "samples": len(labels)}
    uar = statistics.clustered_bootstrap(right, labels, speakers)
    accuracy = statistics.clustered_bootstrap(right, np.zeros(len(labels), int), speakers)
    return [
        _made("uar", statistics.uar(right, labels), uar, 1 / len(names), **sizes, **more),
        _made("accuracy", float(right.mean()), accuracy, counts.max() / counts.sum(), **sizes, **more),
    ]


def of_speakers(right: np.ndarray, speakers: np.ndarray, own: np.ndarray, candidates: int, **more) -> list[Finding]:
    """How often speakers were told from so many `candidates`, a mean over those of the rows that are `own` [n]."""
    names = np.unique(speakers[own])
    if not len(names):
        return []
    recalls = np.array([right[own & (speakers == name)].mean() for name in names])
    interval = statistics.clustered_bootstrap(recalls, np.zeros(len(names), int), names)
    sizes = {"speakers": len(names), "samples": int(own.sum())}
    return [_made("uar", float(recalls.mean()), interval, 1 / candidates, **sizes, **more)]


def of_pairs(metric: str, found: tuple[float, Interval], speakers: np.ndarray, **more) -> list[Finding]:
    """An equal error rate of clips [n] of these speakers [n]; nothing where there were no pairs."""
    sizes = {"speakers": len(np.unique(speakers)), "samples": len(speakers)}
    return [] if np.isnan(found[0]) else [_made(metric, *found, 0.5, **sizes, **more)]


def _made(metric: str, value: float, interval: Interval, chance: float, **more) -> Finding:
    told = interval.low < interval.high  # where all are right, or wrong, resamples can't say how sure that is
    ends = {"low": interval.low if told else np.nan, "high": interval.high if told else np.nan}
    return Finding(metric=metric, value=float(value), **ends, chance=float(chance), **more)


def written(folder: Path, summary: dict, column: str, found: Sequence[Finding]) -> dict:
    """Writes `privacy.json` to a run's folder and returns its content: `findings`, each with a `text`, and the
    `guarantee` that the run's noise gives, None where it adds none."""
    content = {
        "format": 1,
        "version": __version__,
        "column": column,
        "guarantee": summary.get("privacy"),
        "findings": [asdict(each) | {"text": each.text} for each in found],
    }
    write_whole(folder / "privacy.json", dumps(content, indent=1).encode())
    return content
