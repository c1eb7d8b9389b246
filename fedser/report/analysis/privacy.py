"""What was inferred from models and updates (`fedser-privacy`), and what the noise of their training guarantees."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedser.report.analysis.models import Model
from fedser.report.analysis.runs import Run

FIGURES = ("value", "low", "high", "chance")


@dataclass(frozen=True)
class Inferred:
    """One figure of a model: `record` is a finding as `privacy.json` has it, its figures means over `runs` runs."""

    model: Model
    record: dict[str, Any]
    runs: int
    shown: bool  # of an update's layers the first, of a probe the UAR


def inferred(models: Sequence[Model]) -> list[Inferred]:
    """Model by model, as the runs have them."""
    return [each for model in models for each in _of(model)]


def guarantees(models: Sequence[Model]) -> list[str]:
    """A line for each model whose training added noise."""
    found = [(model.label, run.summary.get("privacy")) for model in models for run in model.runs[:1]]
    return [f"{label}: {told['text']}." for label, told in found if isinstance(told, dict) and "text" in told]


def _of(model: Model) -> list[Inferred]:
    found: dict[tuple, list[dict]] = {}
    for run in model.runs:
        for each in _findings(run):
            key = tuple(each.get(name) for name in ("what", "source", "whose", "metric"))
            found.setdefault(key, []).append(each)
    layers: list[str] = []
    rows = []
    for same in found.values():
        layer = same[0]["source"].partition(", ")[0].partition(" of ")[2].rpartition("of ")[2]
        layers += [layer] if layer and layer not in layers else []
        means = {name: _mean([each.get(name) for each in same]) for name in FIGURES}
        shown = same[0]["metric"] != "accuracy" and layer in ("", *layers[:1])
        rows.append(Inferred(model, same[0] | means, len(same), shown))
    return rows


def _findings(run: Run) -> list[dict]:
    """Those that are whole."""
    needed = {"what", "source", "whose", "metric", *FIGURES}
    listed = run.privacy.get("findings")
    return [each for each in listed if needed <= set(each)] if isinstance(listed, list) else []


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(values)
