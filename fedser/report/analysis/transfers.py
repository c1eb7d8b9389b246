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
    All are of one attack and budget, the one that was transferred first; on the clips of speakers whom nobody trained
    on where there are such, else on all.
    """
    labels = {run.folder.name: model.label for model in models for run in model.runs}
    found: dict[tuple[str, str], list[float]] = {}
    same = None
    for model, evaluation in ((one, each) for one in models for run in one.runs for each in run.evaluations):
        for variant, attack in evaluation.attacks.items():
            conditions = evaluation.content["unseen"]["conditions"] or evaluation.conditions
            source, condition = attack.settings.get("source"), conditions.get(f"adversarial/{variant}")
            made = ((attack.settings.get("base") or {}).get("name"), attack.eps)
            same = same or (made if source and condition else None)
            if source and condition and made == same:
                name = Path(str(source)).name
                pair = (labels.get(name, name), model.label)
                found.setdefault(pair, []).append(uar(np.asarray(condition["matrix"])))
    victims = {victim for _, victim in found}
    own = {(model.label,) * 2: _itself(model, *same) for model in models if model.label in victims}
    crossed = {pair: fmean(uars) for pair, uars in found.items()}
    return {pair: uar for pair, uar in own.items() if uar is not None} | crossed


def _itself(model: Model, attack: str, eps: float | None) -> float | None:
    """The UAR that the attack leaves of the model itself; None where it was not tested with this budget."""
    estimate = (model.unseen or model.estimates).get(f"adversarial/{attack}")
    settings = [measure.evaluation.attack(measure.variant) for measure in estimate.measures] if estimate else []
    return estimate.uar if settings and all(each.eps == eps for each in settings) else None
