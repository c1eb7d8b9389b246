"""What is drawn but has no points to hover: Fig. 2, an utterance under attack, and Fig. 6, confusion matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedser.report.analysis.conditions import ATTACKED, PAPER_ATTACKS, attack_title, attacks_in_order, set_title, title
from fedser.report.analysis.models import Corpus, Model
from fedser.report.analysis.runs import Evaluation
from fedser.report.charts.drawn import panels
from fedser.report.text import prose

SPEECH = "magma"
CHANGE = "RdBu_r"


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure and what is said of it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    form: Literal["png", "svg"]  # what suits it on a page


def all_pictures(corpus: Corpus) -> list[Picture]:
    """Both, as far as the runs can fill them."""
    return list(filter(None, (example(corpus), confusions(corpus))))


def example(corpus: Corpus) -> Picture | None:
    """Fig. 2: a log-Mel, what each attack makes of it, and what it adds; None without an example.npz."""
    found = _example(corpus)
    if found is None:
        return None
    model, evaluation, arrays = found
    attacks = _shown_attacks([key.removeprefix("delta/") for key in arrays if key.startswith("delta/")], corpus)
    facts = {"title": arrays.get("title", "One test utterance"), "model": model.label, "evaluation": evaluation.name}
    facts |= {"predicted": any(key.startswith("predicted/") for key in arrays), "attacks": map(set_title, attacks)}
    return Picture("fig2-example", *prose("fig2-example", **facts), _draw_example(arrays, attacks), "png")


def _draw_example(arrays: dict[str, np.ndarray], attacks: Sequence[str]) -> Figure:
    """A row for the original and one for each attack: what is heard at the left, what was added at the right."""
    x, deltas = arrays["x"], [100 * arrays[f"delta/{attack}"] for attack in attacks]
    figure = Figure(figsize=(8.6, 1.75 * (len(attacks) + 1) + 0.4), layout="constrained")
    grid = figure.subplots(len(attacks) + 1, 2, sharex=True, sharey=True, squeeze=False)
    limits = np.quantile(x, [0.005, 0.995])
    # A few cells of a minimal-norm attack go far: at their scale nothing of the others would be seen.
    largest = max(1e-6, *(float(np.quantile(np.abs(delta), 0.99)) for delta in deltas))
    speech = _spectrogram(grid[0][0], x, "original" + _classified(arrays, "original"), SPEECH, *limits)
    grid[0][1].set_axis_off()
    for row, attack, delta in zip(grid[1:], attacks, deltas, strict=True):
        _spectrogram(row[0], x + delta / 100, set_title(attack) + _classified(arrays, attack), SPEECH, *limits)
        change = _spectrogram(row[1], delta, "its perturbation × 100", CHANGE, -largest, largest)
    for axes in grid[-1]:
        axes.set_xlabel("frame")
    for axes in grid[:, 0]:
        axes.set_ylabel("mel bin")
    for column, image, label in ((0, speech, "σ of a mel bin"), (1, change, "σ of a mel bin × 100")):
        place = {"location": "bottom", "aspect": 40, "pad": 0.01, "extend": "both"}
        figure.colorbar(image, ax=grid[:, column], label=label, **place).outline.set_visible(False)
    return figure


def _classified(arrays: dict[str, np.ndarray], name: str) -> str:
    """What the model classifies it as, where the example holds that."""
    return f": classified as {arrays[f'predicted/{name}']}" if f"predicted/{name}" in arrays else ""


def _example(corpus: Corpus) -> tuple[Model, Evaluation, dict[str, np.ndarray]] | None:
    """Of the first model with one (nature, where it is there) the example with the most attacks."""
    for model in corpus.models:
        loaded = [(model, evaluation, evaluation.example) for run in model.runs for evaluation in run.evaluations]
        usable = [found for found in loaded if "x" in found[2] and any(key.startswith("delta/") for key in found[2])]
        if usable:
            return max(usable, key=lambda found: len(found[2]))
    return None


def _shown_attacks(names: Sequence[str], corpus: Corpus) -> list[str]:
    """The paper's three and the strongest; where they are missing, the first few."""
    plain = attacks_in_order(name for name in names if "@" not in name) or list(names)
    strongest = (corpus.strongest("adversarial") or "").partition("@")[0]
    return [name for name in plain if name in (*PAPER_ATTACKS, strongest)] or plain[:4]


def _spectrogram(axes: Axes, values: np.ndarray, heading: str, colours: str, low: float, high: float) -> Any:
    axes.set_title(heading, fontsize=8.5, loc="left", pad=3)
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=7.5)
    return axes.imshow(values.T, origin="lower", aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="none")


def confusions(corpus: Corpus) -> Picture | None:
    """Fig. 6: adversarially trained models on randomised adversarial data; nature where there is no other."""
    shown, strongest = [], corpus.strongest("adversarial")
    for model in corpus.models:
        attack = model.against or (strongest if all(m.against is None for m in corpus.models) else None)
        kinds = (f"{kind}/{attack}" for kind in (ATTACKED[1], ATTACKED[0]))
        name = next((name for name in kinds if name in model.estimates), None)
        if name:
            shown.append((model, name))
    if not shown:
        return None
    side = max(2.6, 0.44 * len(corpus.classes))
    figure, places = panels(len(shown), 3 if len(shown) != 4 else 2, side, side + 0.2, 0.1)
    for axes, (model, name) in zip(places, shown, strict=True):
        estimate = model.estimates[name]
        _draw_matrix(axes, 100 * estimate.shares, corpus.classes)
        attacked = attack_title(estimate.condition.variant)
        axes.set_title(f"{model.label} under {attacked}\nUAR {100 * estimate.uar:.1f} %", fontsize=9)
        axes.set_xlabel("classified as")
    places[0].set_ylabel("true")
    words = prose("fig6-confusion", shown=[f"{model.label} on {title(name)}" for model, name in shown])
    return Picture("fig6-confusion", *words, figure, "svg")


def _draw_matrix(axes: Axes, shares: np.ndarray, classes: Sequence[str]) -> None:
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [shorten(str(name), 14) for name in classes]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, fontsize=8, **slanted)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.5):  # a zero in every empty cell would hide the others
        colour = "white" if shares[row, column] > 55 else "#222222"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7.5, color=colour)


def shorten(text: str, length: int) -> str:
    """At most `length` characters; what is too much is taken from the middle, where sweeps' names differ least."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
