"""Corpora → charts: what is drawn where, in one description that both the files and the page are drawn from.

A model has one colour everywhere, an attack one dash and one marker. UARs are per cent here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fedser.evaluation import statistics
from fedser.report.conditions import ATTACKED, PAPER_ATTACKS, TITLES, attack_title, title
from fedser.report.estimates import Estimate
from fedser.report.models import Corpus, Model
from fedser.report.tables import BY_KIND, flip_distances, minimal_norm

# Okabe & Ito's palette; black is nature's, yellow is left out since it vanishes on white.
COLOURS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MEAN = "mean over seeds"
SHADES = {"adversarial": 0.25, "randomised_adversarial": 0.55, "adaptive": 1.0}
ATTACKERS = {
    "adversarial": "undefended",
    "randomised_adversarial": "oblivious attacker",
    "adaptive": "adaptive attacker",
}
SEXES = {"female": 0, "male": 2, "": 1}  # markers: circle, triangle, square


@dataclass(frozen=True)
class Series:
    """One line, set of bars or cloud of dots; `low` and `high` are the ends of its intervals."""

    name: str
    model: str
    colour: str
    x: Sequence
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    form: Literal["line", "steps", "bars", "dots", "ticks"] = "line"
    style: int = 0  # which dash and marker
    shade: float = 1.0  # of bars: how full the colour is
    curve: str = ""  # MEAN or a seed, where a chart shows single runs too
    texts: Sequence[str] = ()  # of each point; none: made of x and y


@dataclass(frozen=True)
class Panel:
    title: str
    series: Sequence[Series]
    categories: Sequence[str] = ()  # of the x axis; none: it is one of numbers


@dataclass(frozen=True)
class Key:
    """What a dash, marker or shade means."""

    label: str
    form: str
    style: int = 0
    shade: float = 1.0


@dataclass(frozen=True, eq=False)
class Chart:
    name: str  # of its files
    title: str
    caption: str
    alt: str
    panels: Sequence[Panel]
    x: str
    chance: float | None
    y: str = "UAR (%)"
    keys: Sequence[Key] = field(default_factory=tuple)
    columns: int = 2
    marks: bool = True  # a marker at each point of a line
    ticks: Mapping[float, str] = field(default_factory=dict)  # of a logarithmic x axis; none: it is linear

    def __bool__(self) -> bool:
        return bool(self.panels)

    @property
    def series(self) -> list[Series]:
        return [series for panel in self.panels for series in panel.series]

    @property
    def models(self) -> dict[str, str]:
        """Colours by model, in order."""
        return {series.model: series.colour for series in self.series}

    @property
    def curves(self) -> list[str]:
        """The kinds of curve one can choose from; empty where there is no choice."""
        found = list(dict.fromkeys(series.curve for series in self.series if series.curve))
        return sorted(found, key=lambda name: name != MEAN) if len(found) > 1 else []


def all_charts(corpus: Corpus) -> list[Chart]:
    """Every chart that the runs can fill, in the order of the page."""
    made = [rounds(corpus), second_half(corpus), adaptive(corpus), budgets(corpus), distances(corpus), speakers(corpus)]
    return [chart for chart in made if chart]


def colour(model: Model) -> str:
    return COLOURS[model.number % len(COLOURS)]


def style(attack: str) -> int:
    """The attack's dash and marker: the paper's three have the first ones, whatever else is there."""
    return list(TITLES).index(attack) if attack in TITLES else len(TITLES)


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _chance(corpus: Corpus) -> float | None:
    return None if corpus.chance is None else 100 * corpus.chance


# --- UAR per round ---------------------------------------------------------------------------------------------------


def rounds(corpus: Corpus) -> Chart:
    """Fig. 4 of the paper."""
    series = [series for model in corpus.models for series in _curves(model, "original", "")]
    caption = (
        "UAR on the original test data in each evaluated round (Fig. 4 of the paper). With several seeds: their "
        "mean, and a band from the lowest to the highest. It comes from the runs' history.jsonl."
    )
    alt = "Line chart: UAR per round on original data, one line per model."
    panels = _choosable([Panel("Original test data", series)] if series else [])
    return Chart("fig4-rounds", "Fig. 4: UAR per round", caption, alt, panels, "round", _chance(corpus), columns=1)


def second_half(corpus: Corpus) -> Chart:
    """Fig. 5 of the paper."""
    last = max((run.rounds or 0 for model in corpus.models for run in model.runs), default=0)
    panels, drawn = [], set()
    for kind in ("original", "randomised", *ATTACKED[:2]):
        series = []
        for model in corpus.models:
            for attack in [""] if kind in ("original", "randomised") else PAPER_ATTACKS:
                if not attack or model.against in (None, attack):
                    found = _curves(model, f"{kind}/{attack}" if attack else kind, attack, since=last / 2)
                    series += found
                    drawn |= {attack} if found else set()
        if series:
            panels.append(Panel(kind.replace("_", " ").capitalize() + " test data", series))
    caption = (
        "UAR from the second half of the rounds on, under the four conditions (Fig. 5 of the paper). Adversarially "
        "trained models are tested under the attack that they were trained against, nature under each. From "
        "history.jsonl."
    )
    alt = "Line charts: UAR per round on original, randomised, adversarial and randomised adversarial data."
    keys = _attack_keys(attack for attack in PAPER_ATTACKS if attack in drawn)
    heading, chance = "Fig. 5: UAR in the second half of the rounds", _chance(corpus)
    return Chart("fig5-conditions", heading, caption, alt, _choosable(panels), "round", chance, keys=keys)


def _attack_keys(attacks: Iterable[str]) -> list[Key]:
    return [Key(attack_title(name), "line", style(name)) for name in attacks]


def _curves(model: Model, condition: str, attack: str, since: float = 0) -> list[Series]:
    """The mean over the seeds that got furthest, with its band, and the single runs."""
    found = {}
    for seed, (numbers, values) in model.curves(condition).items():
        kept = {number: 100 * value for number, value in zip(numbers, values, strict=True) if number >= since}
        if kept:
            found[seed] = kept
    if not found:
        return []
    name = model.label + (f", under {attack_title(attack)}" if attack else "")
    same = {"model": model.label, "colour": colour(model), "style": style(attack) if attack else 0}
    single = [
        Series(f"{name}, seed {seed}", x=list(curve), y=list(curve.values()), curve=f"seed {seed}", **same)
        for seed, curve in found.items()
    ]
    furthest = max(max(curve) for curve in found.values())
    complete = [curve for curve in found.values() if max(curve) == furthest]
    shared = sorted(set.intersection(*map(set, complete)))
    values = np.array([[curve[number] for number in shared] for curve in complete])
    mean, low, high = (function(axis=0).tolist() for function in (values.mean, values.min, values.max))
    band = {"low": low, "high": high} if len(complete) > 1 else {}
    told = f"{name}, mean" if len(found) > 1 else single[0].name
    return [Series(told, x=shared, y=mean, curve=MEAN, **band, **same), *single]


def _choosable(panels: Sequence[Panel]) -> list[Panel]:
    """Means and single runs to choose from; where every mean is of one run, only those."""
    if len({series.curve for panel in panels for series in panel.series}) > 2:
        return list(panels)
    means = [[replace(s, curve="") for s in panel.series if s.curve == MEAN] for panel in panels]
    return [replace(panel, series=each) for panel, each in zip(panels, means, strict=True)]


# --- Oblivious and adaptive attackers --------------------------------------------------------------------------------


def adaptive(corpus: Corpus) -> Chart:
    """What the randomisation is worth against an attacker who knows of it."""
    attacks = corpus.attacks()
    panels = []
    for model in corpus.models:
        series = [_bars(model, kind, attacks) for kind in ATTACKED]
        if any(bars.y for bars in series):
            categories = [attack_title(name) for name in attacks if any(attack_title(name) in b.x for b in series)]
            panels.append(Panel(model.label, [bars for bars in series if bars.y], categories))
    caption = (
        "UAR under each attack: on the undefended model, with the randomisation worn against an attacker who does "
        "not know of it (what the paper measures), and against one who does (what it lacks). Whiskers: 95 % "
        "intervals over speakers. Where the darkest bar is back at the lightest, the randomisation protected from "
        "nothing but ignorance. From evaluation.json (fedser-evaluate RUN evaluation=full)." + _parts(corpus)
    )
    alt = (
        "Bar charts, one per model: UAR under each attack, undefended, with an oblivious and with an adaptive attacker."
    )
    keys = [Key(ATTACKERS[kind], "bars", shade=SHADES[kind]) for kind in ATTACKED if corpus.attacks(kind)]
    heading = "Oblivious against adaptive attackers"
    return Chart("oblivious-adaptive", heading, caption, alt, panels, "", _chance(corpus), keys=keys)


def _parts(corpus: Corpus) -> str:
    """Which attacks were run on a part of the clips only."""
    estimates = [estimate for model in corpus.models for estimate in model.estimates.values()]
    found = {attack_title(e.condition.variant): e.fraction for e in estimates if e.fraction < 1}
    told = ", ".join(f"{name} ({100 * fraction:.0f} %)" for name, fraction in found.items())
    return f" On a part of the test clips only: {told}." if told else ""


def _bars(model: Model, kind: str, attacks: Sequence[str]) -> Series:
    found = {attack_title(name): model.estimates.get(f"{kind}/{name}") for name in attacks}
    known = {name: estimate for name, estimate in found.items() if estimate}
    ends = _intervals(known.values())
    told = [", ".join([name, *estimate.limits]) + ": " + _told(estimate) for name, estimate in known.items()]
    look = {"form": "bars", "shade": SHADES[kind], "texts": told}
    name = f"{model.label}, {ATTACKERS[kind]}"
    return Series(name, model.label, colour(model), list(known), _uars(known.values()), *ends, **look)


def _told(estimate: Estimate) -> str:
    (low,), (high,) = _intervals([estimate])
    return f"{100 * estimate.uar:.1f} % [{low:.1f}, {high:.1f}]"


def _uars(estimates: Iterable[Estimate]) -> list[float]:
    return [100 * estimate.uar for estimate in estimates]


def _intervals(estimates: Iterable[Estimate]) -> tuple[list[float], list[float]]:
    """The ends, as far as they lie on their side of the UAR: that of several seeds need not lie inside."""
    lows, highs = [], []
    for estimate in estimates:
        interval = estimate.interval
        lows.append(100 * min(interval.low, estimate.uar))
        highs.append(100 * max(interval.high, estimate.uar))
    return lows, highs


# --- Budgets and distances -------------------------------------------------------------------------------------------


def budgets(corpus: Corpus) -> Chart:
    """UAR against ε, for attacks that were run with several."""
    found = {kind: _budget_points(corpus, kind) for kind in ATTACKED}
    curves = [curve for each in found.values() for curve in each]
    ticks = _ticks({eps for _, _, points in curves for eps in points})
    panels = [
        Panel(_first_upper(BY_KIND[kind]), [_budget_curve(*curve, ticks) for curve in each])
        for kind, each in found.items()
        if each
    ]
    caption = (
        "UAR against the budget ε in σ of a mel bin; at ε = 0 stands what the model does without an attack. Bands: "
        "95 % intervals over speakers. Curves should fall, and reach chance or less where ε is large: an attack that "
        "does not is broken. From evaluation.json, conditions …@eps=… (fedser-evaluate RUN evaluation=sweep)."
    )
    alt = "Line charts: UAR against the budget, one line per model and attack."
    keys = _attack_keys(dict.fromkeys(attack for _, attack, _ in curves))
    chance, name, heading = _chance(corpus), "budget-curves", "UAR against the budget"
    return Chart(name, heading, caption, alt, panels, "ε (σ)", chance, keys=keys, ticks=ticks)


def _budget_points(corpus: Corpus, kind: str) -> list[tuple[Model, str, dict[float, Estimate]]]:
    """Per model and attack with several budgets what it left at each, and at 0 what there was before."""
    curves = []
    for model in corpus.models:
        clean = model.estimates.get("original" if kind == "adversarial" else "randomised")
        by_attack: dict[str, dict[float, Estimate]] = {}
        for estimate in model.estimates.values():
            condition, eps = estimate.condition, corpus.eps(estimate.condition)
            if condition.kind == kind and eps is not None and set(condition.settings) <= {"eps"}:
                points = by_attack.setdefault(condition.attack, {})
                points[eps] = estimate if condition.varied else points.get(eps, estimate)
        for attack, points in by_attack.items():
            if len(points) > 1:
                curves.append((model, attack, ({0.0: clean} if clean else {}) | dict(sorted(points.items()))))
    return curves


def _ticks(budgets: set[float]) -> dict[float, str]:
    """Places on a logarithmic axis: 0 stands where half the least budget would, the others are 1, 2 or 5 × 10ⁿ."""
    positive = [eps for eps in budgets if eps > 0]
    if not positive:
        return {}
    decades = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
    round_ = [step * 10.0**power for power in decades for step in (1, 2, 5)]
    shown = [eps for eps in round_ if 0.99 * min(positive) <= eps <= 1.01 * max(positive)]
    return {min(positive) / 2: "0"} | {eps: f"{eps:g}" for eps in shown}


def _budget_curve(model: Model, attack: str, points: Mapping[float, Estimate], ticks: Mapping[float, str]) -> Series:
    name = f"{model.label}, {attack_title(attack)}"
    places = [eps or min(ticks) for eps in points]
    ends = _intervals(points.values())
    told = [", ".join([f"ε {eps:g}", *estimate.limits]) + ": " + _told(estimate) for eps, estimate in points.items()]
    uars = _uars(points.values())
    return Series(name, model.label, colour(model), places, uars, *ends, style=style(attack), texts=told)


def distances(corpus: Corpus) -> Chart:
    """UAR against the L2 that a minimal-norm attack needs."""
    panels = []
    for attack in minimal_norm(corpus):
        found = {model: flip_distances(model, attack) for model in corpus.models}
        known = {model: frame for model, frame in found.items() if frame is not None}
        finite = [d for frame in known.values() for d in frame["distance"] if 0 < d < math.inf]
        if finite:
            radii = np.linspace(0, float(np.quantile(finite, 0.98)) * 1.05, 121)
            panels.append(Panel(attack_title(attack), [_survival(*item, radii, attack) for item in known.items()]))
    caption = (
        "UAR when a clip counts as right until the attack has moved it as far as it needs: the reading that suits an "
        "attack that looks for the smallest change. An upper bound, since it need not find the nearest flip. Means "
        "over seeds, from utterances.csv."
    )
    alt = "Line charts: UAR falling with the L2 norm of the perturbation, one line per model."
    heading = "UAR against the distance"
    return Chart("distance-curves", heading, caption, alt, panels, "L2 (σ)", _chance(corpus), marks=False)


def _survival(model: Model, frame, radii: np.ndarray, attack: str) -> Series:
    curves = [statistics.robustness_curve(each["distance"], each["label"], radii) for _, each in frame.groupby("seed")]
    values = (100 * np.mean(curves, axis=0)).tolist()
    name = f"{model.label}, {attack_title(attack)}"
    return Series(name, model.label, colour(model), np.round(radii, 4).tolist(), values, form="steps")


# --- Speakers --------------------------------------------------------------------------------------------------------


def speakers(corpus: Corpus) -> Chart:
    """One dot per speaker."""
    names = [name for name in corpus.looked_at if name != "randomised"]
    panels = []
    for name in names:
        series = [s for model in corpus.models for s in _speaker_dots(model, name)]
        if series:
            panels.append(Panel(_first_upper(title(name)), series, [model.label for model in corpus.models]))
    caption = (
        "UAR of each speaker, on clean data and under the strongest attack of each kind. The short line is the 10 % "
        "quantile: a defence that serves most speakers can still fail some. From evaluation.json and utterances.csv."
    )
    alt = "Strip plots: one dot per speaker and model, clean and adversarial, with the 10 % quantile."
    keys = [Key(name or "unknown", "dots", marker) for name, marker in SEXES.items() if _has(panels, marker)]
    keys.append(Key("10 % quantile of speakers", "ticks"))
    return Chart("speakers-strip", "Single speakers", caption, alt, panels, "", _chance(corpus), keys=keys)


def _has(panels: Sequence[Panel], marker: int) -> bool:
    return any(series.form == "dots" and series.style == marker for panel in panels for series in panel.series)


def _speaker_dots(model: Model, condition: str) -> list[Series]:
    estimate = model.estimates.get(condition)
    values = estimate.by_speaker() if estimate else {}
    if not values:
        return []
    sexes = estimate.sexes()
    series = []
    for sex, marker in SEXES.items():
        chosen = {speaker: 100 * uar for speaker, uar in values.items() if sexes.get(speaker, "") == sex}
        if chosen:
            told = [f"speaker {speaker}{f', {sex}' if sex else ''}: {uar:.1f} %" for speaker, uar in chosen.items()]
            look = {"form": "dots", "style": marker, "texts": told}
            x = [model.label] * len(chosen)
            series.append(Series(model.label, model.label, colour(model), x, list(chosen.values()), **look))
    minimum, q10 = (100 * value for value in statistics.spread(values.values()))
    told = [f"10 % quantile {q10:.1f} %, worst {minimum:.1f} %"]
    look = {"form": "ticks", "texts": told}
    return [*series, Series(model.label, model.label, colour(model), [model.label], [q10], **look)]
