"""The table of Ren et al. 2020: three networks, trained alone or adversarially in two ways at five ε, on real and fake
data of the development and the test speakers. Of runs without federation under FGSM."""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from statistics import fmean
from typing import NamedTuple

from fedser.report.analysis.models import Model
from fedser.report.analysis.runs import Run

PAPER = json.loads((files("fedser.report") / "ren2020.json").read_text(encoding="utf-8"))
NETWORKS = {"cnn4": "CNN-4", "resnet50": "ResNet-50", "vgg16": "VGG-16"}  # in the paper's order
TRAINING = {None: "single", "adversarial_ren": "vanilla", "similarity": "similarity"}  # by our names of it
FAKE = "adversarial/fgsm"
PLACES = {"dev/real": "validation/original", "test/real": "original"}
PLACES |= {"dev/fake": f"validation/{FAKE}", "test/fake": FAKE}


class Row(NamedTuple):
    """One line: how it was trained and tested, and UARs (fractions) by network and place; those of the paper beside."""

    training: str
    eps: str
    ours: Mapping[tuple[str, str], float]
    paper: Mapping[tuple[str, str], float]


def rows(models: Iterable[Model]) -> list[Row]:
    """The paper's lines and others that the models have, in its order; nothing where nobody trained as they did.

    Means over a model's seeds. Of models that have the same place, of other widths or rounds say, the first one counts.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for model in models:
        training, eps = _line(model.runs[0])
        for (network, place), uar in _figures(model.runs).items() if training else ():
            if training != "single" or place.endswith("real"):
                found.setdefault((training, eps), {}).setdefault((network, place), uar)
    if not any(training != "single" for training, _ in found):
        return []
    every = {(name, eps) for name in TRAINING.values() for eps in PAPER[name]} | set(found)
    lines = sorted(every, key=lambda line: (list(TRAINING.values()).index(line[0]), float(line[1])))
    return [Row(*line, found.get(line, {}), _paper(*line)) for line in lines]


def _line(run: Run) -> tuple[str | None, str]:
    """What the paper calls the run's training, None where it is none of theirs, and its ε.

    Theirs are without federation, of one of their networks, trained against FGSM and tested under it at the same ε.
    """
    attack, inner = run.setting("attack") or {}, run.setting("defence.training.attack") or {}
    training = TRAINING.get(run.setting("defence.training.name"))
    if run.setting("strategy.name") != "centralised" or run.setting("model.name") not in NETWORKS:
        return None, ""
    if training == "single":
        return training, "0.00"
    theirs = attack.get("name") == inner.get("name") == "fgsm" and attack.get("eps") == inner.get("eps") is not None
    eps = attack.get("eps") if theirs else 0
    return (training, f"{eps:.2f}" if round(eps, 2) == eps else f"{eps:g}") if theirs else (None, "")


def _figures(runs: Iterable[Run]) -> dict[tuple[str, str], float]:
    """By network and place: of the speakers that nobody trains on where there are any, else of all."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for place, key in PLACES.items():
            uar = run.summary.get(f"uar/unseen/{key}", run.summary.get(f"uar/{key}"))
            if uar is not None:
                found.setdefault((run.setting("model.name"), place), []).append(uar)
    return {place: fmean(uars) for place, uars in found.items()}


def _paper(training: str, eps: str) -> dict[tuple[str, str], float]:
    line = PAPER[training].get(eps, {})
    return {(network, place): uar / 100 for network in line for place, uar in zip(PLACES, line[network], strict=False)}
