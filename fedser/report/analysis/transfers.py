"""Whose adversarial examples fool whom: one model under examples made on another's (Ren et al. 2020, future work)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from fedser.evaluation.metrics import uar
from fedser.report.analysis.models import Model


def transfers(models: Sequence[Model]) -> dict[tuple[str, str], float]:
    """(whose examples, who is tested) → UAR, a fraction, as a mean over runs; with themselves under the same attack.

    Runs are known by their folders' names, and called as their models are; a source that is not among them by its own.
    """
    labels = {run.folder.name: model.label for model in models for run in model.runs}
    found: dict[tuple[str, str], list[float]] = {}
    bases: dict[str, set[str]] = {}
    for model, evaluation in ((one, each) for one in models for run in one.runs for each in run.evaluations):
        for variant, attack in evaluation.attacks.items():
            source, condition = attack.settings.get("source"), evaluation.conditions.get(f"adversarial/{variant}")
            if source and condition:
                name = Path(str(source)).name
                found.setdefault((labels.get(name, name), model.label), []).append(uar(np.asarray(condition["matrix"])))
                bases.setdefault(model.label, set()).add(str((attack.settings.get("base") or {}).get("name")))
    crossed = {pair: fmean(uars) for pair, uars in found.items()}
    return crossed | {
        (model.label, model.label): own.uar
        for model in models
        for base in bases.get(model.label, ())
        if (own := model.estimates.get(f"adversarial/{base}"))
    }
