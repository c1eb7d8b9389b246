"""Attacks on the waveform: what they leave and how often they succeed, level by level, with noise beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval
from fedser.report.analysis.conditions import parse
from fedser.report.analysis.estimates import UNKNOWN, Estimate
from fedser.report.analysis.models import Model

WAYS = ("adversarial", "randomised_adversarial", "adaptive")  # kinds of conditions, of one attack


@dataclass(frozen=True)
class Level:
    """What a model is worth under one attack at one level: means over runs, UARs by kind of condition.

    snr: dB that the speech is above the change, on the waveform. success: of the clips right at first, the share that
    is wrong under attack. sure: its 95 % interval over speakers. rms: of the change behind the front end, in σ of a
    mel bin.
    """

    model: Model
    condition: str  # without randomisation
    attack: str
    snr: float
    uar: dict[str, float]
    success: float | None
    sure: Interval
    rms: float | None


def levels(models: Sequence[Model]) -> list[Level]:
    """Attack by attack, the quietest change first."""
    found = [level for model in models for level in _of(model)]
    attacks = list(dict.fromkeys(level.attack for level in found))
    order = {model.label: place for place, model in enumerate(models)}
    return sorted(found, key=lambda each: (order[each.model.label], attacks.index(each.attack), -each.snr))


def _of(model: Model) -> list[Level]:
    found = []
    for name, estimate in model.estimates.items():
        condition = parse(name)
        settings = [measure.evaluation.attack(measure.variant).settings for measure in estimate.measures]
        if condition.kind != WAYS[0] or not settings or any(each.get("snr") is None for each in settings):
            continue
        others = {kind: model.estimates.get(name.replace(WAYS[0], kind, 1)) for kind in WAYS}
        uars = {kind: each.uar for kind, each in others.items() if each}
        told = [measure.examples for measure in estimate.measures]
        success, rms = (_mean([each.get(key) for each in told]) for key in ("success", "rms"))
        attack = condition.variant.partition("@")[0]
        sure = success_interval(model.estimates.get("original"), estimate)
        found.append(Level(model, name, attack, float(settings[0]["snr"]), uars, success, sure, rms))
    return found


def success_interval(clean: Estimate | None, attacked: Estimate) -> Interval:
    """The success rate's 95 % interval over speakers; NaN where no clips are told of, or all of them went alike."""
    if clean is None or clean.observations is None or attacked.observations is None:
        return UNKNOWN
    clips = ["seed", "utterance"]
    right = clean.observations[clean.observations["correct"] == 1][clips]
    found = attacked.observations.merge(right, on=clips)
    if found["speaker"].nunique() < 2 or found["correct"].nunique() < 2:
        return UNKNOWN
    alike = np.zeros(len(found), int)  # of one label UAR is accuracy
    return statistics.clustered_bootstrap(1 - found["correct"], alike, found["speaker"], found["seed"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
