"""The table of Ren et al. 2020: three networks, trained alone or adversarially in two ways at five ε, on real and fake
data of the development and the test speakers. Of runs without federation under FGSM."""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from statistics import fmean
from typing import NamedTuple

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


def rows(runs: Iterable[Run]) -> list[Row]:
    """The paper's lines and others that the runs have, in its order; nothing where nobody trained as they did."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for run in runs:
        training = _training(run)
        for (network, place), uar in _figures(run).items() if training else ():
            eps = 0.0 if training == "single" else run.setting("attack.eps")
            if training != "single" or place.endswith("real"):
                found.setdefault((training, f"{eps:.2f}"), {}).setdefault((network, place), []).append(uar)
    if not any(training != "single" for training, _ in found):
        return []
    every = {(name, eps) for name in TRAINING.values() for eps in PAPER[name]} | set(found)
    order = list(TRAINING.values())
    return [
        Row(*key, {place: fmean(uars) for place, uars in found.get(key, {}).items()}, _paper(*key))
        for key in sorted(every, key=lambda key: (order.index(key[0]), float(key[1])))
    ]


def _training(run: Run) -> str | None:
    """What the paper calls the run's training; None where it is none of theirs."""
    if run.setting("strategy.name") != "centralised" or run.setting("model.name") not in NETWORKS:
        return None
    return TRAINING.get(run.setting("defence.training.name"))


def _figures(run: Run) -> dict[tuple[str, str], float]:
    """By network and place: of the speakers that nobody trains on where there are any, else of all."""
    network, seen = run.setting("model.name"), run.summary
    uars = {place: seen.get(f"uar/unseen/{key}", seen.get(f"uar/{key}")) for place, key in PLACES.items()}
    return {(network, place): uar for place, uar in uars.items() if uar is not None}


def _paper(training: str, eps: str) -> dict[tuple[str, str], float]:
    line = PAPER[training].get(eps, {})
    return {(network, place): uar / 100 for network in line for place, uar in zip(PLACES, line[network], strict=False)}
