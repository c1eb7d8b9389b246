"""What the detectors of adversarial examples of some runs are worth, attack by attack."""

from statistics import fmean
from typing import NamedTuple

from fedser.report.analysis.conditions import attack_title, in_order, parse
from fedser.report.analysis.models import Model

KEYS = ("auc", "auc_unsure", "caught", "wrong", "slipped")


class Detection(NamedTuple):
    """A model under one attack ("" for none), which may know the detector: `KEYS`, as means over runs."""

    attack: str
    knows: bool
    figures: dict[str, float]

    @property
    def title(self) -> str:
        """The attack as people call it."""
        return attack_title(self.attack) + ", which knows it" * self.knows if self.attack else "none: false alarms"


def detections(model: Model) -> list[Detection]:
    """A line per attack, in order. Of each run the newest evaluation with a detector counts, and of these the ones with
    the first one's detector."""
    watched = [[each for each in run.evaluations if each.content.get("detector")] for run in model.runs]
    newest = [max(each, key=lambda one: one.written) for each in watched if each]
    settings = [each.content["detector"].get("settings") for each in newest]
    alike = [each for each, its in zip(newest, settings, strict=True) if its == settings[0]]
    figures = [each.content["detector"].get("figures", {}) for each in alike]
    found = []
    for name in in_order(name for part in figures for name in part):
        values = {key: [part[name][key] for part in figures if part.get(name, {}).get(key) is not None] for key in KEYS}
        attack = parse(name).variant
        knows = any(each.attack(attack).settings.get("evades") for each in alike)
        found.append(Detection(attack, knows, {key: fmean(each) for key, each in values.items() if each}))
    return found


def in_short(model: str, found: list[Detection]) -> str:
    """A sentence on what slips through of the attack that knows the detector, and of the best that does not."""
    best = [
        max((row for row in found if row.attack and row.knows == knows), key=_slipped, default=None)
        for knows in (True, False)
    ]
    told, blind = (row and f"{100 * _slipped(row):.1f} % under {attack_title(row.attack)}, which" for row in best)
    against = f", {blind} does not" if blind else ""
    return f"{model}: of all clips slip through {told} knows the detector{against}." if told else ""


def _slipped(row: Detection) -> float:
    return row.figures.get("slipped", 0.0)
