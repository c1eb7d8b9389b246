"""Corpora → charts. A model has one colour everywhere, an attack one dash and one marker. UARs are per cent here."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedser.evaluation import statistics
from fedser.report.analysis.conditions import ATTACKED, CLEAN, PAPER_ATTACKS, attack_title, place, title
from fedser.report.analysis.estimates import Estimate
from fedser.report.analysis.models import Corpus, Model
from fedser.report.charts import COLOURS, MEAN, Chart, Key, Panel, Series
from fedser.report.text import SWITCHED, partial, prose, verdicts

SHADES = dict(zip(("original", *ATTACKED), (0.15, 0.35, 0.65, 1.0), strict=True))
SEXES = {"female": 0, "male": 2, "": 1}  # markers: circle, triangle, square


def all_charts(corpus: Corpus) -> list[Chart]:
    """Every chart that the runs can fill."""
    made = [verdict(corpus), rounds(corpus), second_half(corpus), adaptive(corpus), budgets(corpus)]
    return [chart for chart in [*made, distances(corpus), speakers(corpus)] if chart]


def colour(model: Model) -> str:
    return COLOURS[model.number % len(COLOURS)]


def _chart(corpus: Corpus, name: str, panels: Sequence[Panel], x: str = "", facts: Mapping = {}, **look) -> Chart:
    chance = None if corpus.chance is None else 100 * corpus.chance
    return Chart(name, *prose(name, **facts), panels, x, chance, **look)


def _points(model: Model, name: str, estimates: Mapping, more: str = "", **look) -> Series:
    """A series of estimates by their places, with intervals and what is shown where the pointer is."""
    texts = [
        ", ".join(filter(None, [f"{more}{x}", *e.limits])) + ": " + _interval_text(e) for x, e in estimates.items()
    ]
    low, high = ([ends[side] for ends in map(_ends, estimates.values())] for side in (0, 1))
    uars = [100 * estimate.uar for estimate in estimates.values()]
    return Series(name, model.label, colour(model), list(estimates), uars, low, high, texts=texts, **look)


def _interval_text(estimate: Estimate) -> str:
    low, high = _ends(estimate)
    return f"{100 * estimate.uar:.1f} % [{low:.1f}, {high:.1f}]"


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Of the interval, as far as they lie on their side of the UAR: that of several seeds need not lie inside."""
    interval, uar = estimate.interval, estimate.uar
    return 100 * min(interval.low, uar), 100 * max(interval.high, uar)


def verdict(corpus: Corpus) -> Chart:
    """Per model what it does on clean speech, and under the worst attack of each kind."""
    series, kinds = [], []
    for each in verdicts(corpus):
        label = each.model.label
        for kind, estimate in {"original": each.clean, **each.worst}.items():
            if estimate:
                named = ", ".join(filter(None, [SWITCHED[kind], attack_title(estimate.condition.variant)]))
                text = f"{named}: {_interval_text(estimate)}"
                points = _points(each.model, label, {label: estimate}, form="bars", shade=SHADES[kind])
                series.append(replace(points, texts=[text]))
                kinds.append(kind)
    panels = [Panel("", series, list(dict.fromkeys(s.model for s in series)))] if set(kinds) - {"original"} else []
    keys = [Key(SWITCHED[kind], "bars", shade=shade) for kind, shade in SHADES.items() if kind in kinds]
    return _chart(corpus, "worst-attacks", panels, keys=keys, columns=1)


def rounds(corpus: Corpus) -> Chart:
    """Fig. 4 of the paper."""
    series = [series for model in corpus.models for series in _curves(model, "original", "")]
    panels = _choosable([Panel("Original test data", series)] if series else [])
    return _chart(corpus, "fig4-rounds", panels, "round", columns=1)


def second_half(corpus: Corpus) -> Chart:
    """Fig. 5 of the paper."""
    last = max((run.rounds or 0 for model in corpus.models for run in model.runs), default=0)
    panels, drawn = [], set()
    for kind in (*CLEAN, *ATTACKED[:2]):
        series = []
        for model in corpus.models:
            for attack in [""] if kind in CLEAN else PAPER_ATTACKS:
                if not attack or model.against in (None, attack):
                    found = _curves(model, f"{kind}/{attack}" if attack else kind, attack, since=last / 2)
                    series += found
                    drawn |= {attack} if found else set()
        if series:
            panels.append(Panel(kind.replace("_", " ").capitalize() + " test data", series))
    keys = _attack_keys(attack for attack in PAPER_ATTACKS if attack in drawn)
    return _chart(corpus, "fig5-conditions", _choosable(panels), "round", keys=keys)


def _attack_keys(attacks: Iterable[str]) -> list[Key]:
    return [Key(attack_title(name), "line", place(name)) for name in attacks]


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
    same = {"model": model.label, "colour": colour(model), "style": place(attack) if attack else 0}
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
    named = f"{name}, mean" if len(found) > 1 else single[0].name
    return [Series(named, x=shared, y=mean, curve=MEAN, **band, **same), *single]


def _choosable(panels: Sequence[Panel]) -> list[Panel]:
    """Means and single runs to choose from; where every mean is of one run, only those."""
    if len({series.curve for panel in panels for series in panel.series}) > 2:
        return list(panels)
    means = [[replace(s, curve="") for s in panel.series if s.curve == MEAN] for panel in panels]
    return [replace(panel, series=each) for panel, each in zip(panels, means, strict=True)]


def adaptive(corpus: Corpus) -> Chart:
    """What the randomisation is worth against an attacker who knows of it."""
    attacks = corpus.attacks()
    panels = []
    for model in corpus.models:
        found = {kind: _under(model, kind, attacks) for kind in ATTACKED}
        series = [
            _points(model, f"{model.label}, {SWITCHED[kind]}", known, form="bars", shade=SHADES[kind])
            for kind, known in found.items()
            if known
        ]
        if series:
            titles = [attack_title(name) for name in attacks]
            panels.append(Panel(model.label, series, [t for t in titles if any(t in s.x for s in series)]))
    keys = [Key(SWITCHED[kind], "bars", shade=SHADES[kind]) for kind in ATTACKED if corpus.attacks(kind)]
    return _chart(corpus, "oblivious-adaptive", panels, facts={"partial": partial(corpus)}, keys=keys)


def _under(model: Model, kind: str, attacks: Sequence[str]) -> dict[str, Estimate]:
    found = {attack_title(name): model.estimates.get(f"{kind}/{name}") for name in attacks}
    return {name: estimate for name, estimate in found.items() if estimate}


def budgets(corpus: Corpus) -> Chart:
    """UAR against ε."""
    found = {kind: _budget_points(corpus, kind) for kind in ATTACKED}
    curves = [curve for each in found.values() for curve in each]
    ticks = _ticks({eps for *_, points in curves for eps in points})
    panels = [
        Panel(SWITCHED[kind].capitalize(), [_budget_curve(*curve, ticks) for curve in each])
        for kind, each in found.items()
        if each
    ]
    keys = _attack_keys(dict.fromkeys(attack for _, attack, _ in curves))
    return _chart(corpus, "budget-curves", panels, "ε (σ)", keys=keys, ticks=ticks)


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
    series = _points(model, name, {f"{eps:g}": estimate for eps, estimate in points.items()}, "ε ", style=place(attack))
    return replace(series, x=[eps or min(ticks) for eps in points])


def distances(corpus: Corpus) -> Chart:
    """UAR against the L2 that a minimal-norm attack needs."""
    panels = []
    for attack in corpus.minimal_norm:
        found = {model: model.flips(attack) for model in corpus.models}
        known = {model: frame for model, frame in found.items() if frame is not None}
        finite = [d for frame in known.values() for d in frame["distance"] if 0 < d < math.inf]
        if finite:
            radii = np.linspace(0, float(np.quantile(finite, 0.98)) * 1.05, 121)
            panels.append(Panel(attack_title(attack), [_survival(*item, radii, attack) for item in known.items()]))
    return _chart(corpus, "distance-curves", panels, "L2 (σ)", marks=False)


def _survival(model: Model, frame, radii: np.ndarray, attack: str) -> Series:
    curves = [statistics.robustness_curve(each["distance"], each["label"], radii) for _, each in frame.groupby("seed")]
    values = (100 * np.mean(curves, axis=0)).tolist()
    name = f"{model.label}, {attack_title(attack)}"
    return Series(name, model.label, colour(model), np.round(radii, 4).tolist(), values, form="steps")


def speakers(corpus: Corpus) -> Chart:
    """One dot per speaker."""
    panels = []
    for name in corpus.looked_at:
        series = [s for model in corpus.models for s in _speaker_dots(model, name)] if name != "randomised" else []
        if series:
            heading = title(name)[0].upper() + title(name)[1:]
            panels.append(Panel(heading, series, list(dict.fromkeys(s.model for s in series))))
    drawn = {(series.form, series.style) for panel in panels for series in panel.series}
    keys = [Key(name or "unknown", "dots", marker) for name, marker in SEXES.items() if ("dots", marker) in drawn]
    keys.append(Key("10 % quantile of speakers", "ticks"))
    return _chart(corpus, "speakers-strip", panels, keys=keys)


def _speaker_dots(model: Model, condition: str) -> list[Series]:
    estimate = model.estimates.get(condition)
    values = estimate.by_speaker() if estimate else {}
    if not values:
        return []
    same, sexes, series = (model.label, model.label, colour(model)), estimate.sexes(), []
    for sex, marker in SEXES.items():
        chosen = {speaker: 100 * uar for speaker, uar in values.items() if sexes.get(speaker, "") == sex}
        if chosen:
            texts = [f"speaker {speaker}{f', {sex}' if sex else ''}: {uar:.1f} %" for speaker, uar in chosen.items()]
            look = {"form": "dots", "style": marker, "texts": texts}
            series.append(Series(*same, [model.label] * len(chosen), list(chosen.values()), **look))
    minimum, q10 = (100 * value for value in statistics.spread(values.values()))
    texts = [f"10 % quantile {q10:.1f} %, worst {minimum:.1f} %"]
    return [*series, Series(*same, [model.label], [q10], form="ticks", texts=texts)]
