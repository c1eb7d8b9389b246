"""Corpora → tables."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval
from fedser.report.analysis import comparisons, flags
from fedser.report.analysis.claims import PAPER
from fedser.report.analysis.conditions import (
    ATTACKED,
    CLEAN,
    KINDS,
    PAPER_ATTACKS,
    attack_title,
    attacks_in_order,
    parse,
    set_title,
    title,
)
from fedser.report.analysis.estimates import Estimate
from fedser.report.analysis.models import Corpus, Model
from fedser.report.analysis.runs import Run
from fedser.report.cells import MISSING, Cell, Table, between, number, p_text, percent, signed
from fedser.report.text import SWITCHED, caption


def all_tables(corpus: Corpus) -> list[Table]:
    """Every table that the runs can fill."""
    made = [glance(corpus), counts(corpus), threats(corpus), *table3(corpus), *matrices(corpus), budgets(corpus)]
    made += [flips(corpus), speakers(corpus), class_recalls(corpus), *tests(corpus), checks(corpus), everything(corpus)]
    return [table for table in made if table]


def uar_cell(estimate: Estimate | None, shaded: bool = False, attack: bool = False) -> Cell:
    """`81.2 ± 1.3`, its interval below it, and what part of the clips it is of where that is not all."""
    if estimate is None:
        return Cell(MISSING)
    sd, interval = estimate.over_seeds.sd, estimate.interval
    text = percent(estimate.uar) + ("" if math.isnan(sd) else f" ± {percent(sd)}")
    named = attack_title(estimate.condition.variant) if attack else ""
    notes = tuple(filter(None, [between(interval.low, interval.high), *estimate.limits, named]))
    return Cell(text, notes, estimate.uar, estimate.uar if shaded else None)


def records(corpus: Corpus, names: Iterable[str], models: Sequence[Model] | None = None) -> pd.DataFrame:
    """All that is known of the UAR of every model under these conditions, as rows of a CSV file."""
    found = ((model, name) for name in names for model in models or corpus.models if name in model.estimates)
    return pd.DataFrame([_record(corpus, model, name) for model, name in found])


def _record(corpus: Corpus, model: Model, name: str) -> dict[str, Any]:
    estimate, condition = model.estimates[name], parse(name)
    row = {"model": model.label, "condition": name, "kind": condition.kind, "attack": condition.variant}
    row |= {"eps": corpus.eps(condition), "uar": estimate.uar, "sd_over_seeds": estimate.over_seeds.sd}
    row |= {"seeds": len(estimate.measures), "sd_over_draws": estimate.draw_sd, "draws": estimate.draws}
    row |= {"utterances": estimate.utterances, "fraction": estimate.fraction}
    row |= {"accuracy": float(np.trace(estimate.matrix) / estimate.matrix.sum())}
    for method in ("clustered", "stratified", "closed_form"):
        interval = getattr(estimate, method)
        row |= {f"{method}_low": interval.low, f"{method}_high": interval.high}
    return row


def _cell(value: float | None, form: Callable[[Any], str] = number) -> Cell:
    return Cell(form(value), value=None if value is None or math.isnan(value) else value)


def _decibel(value: float | None) -> str:
    return number(value, ".1f")


# --- The verdict's numbers, the corpus, the attacks ------------------------------------------------------------------


def glance(corpus: Corpus) -> Table:
    """Per model what it does on clean speech, and under the worst attack within its budget of each kind."""
    rows, data = [], []
    for model in corpus.models if corpus.conditions else ():
        clean = model.estimates.get("original")
        worst = {kind: corpus.worst(model, kind) for kind in ATTACKED}
        rows.append([model.label, uar_cell(clean), *(uar_cell(each, attack=True) for each in worst.values())])
        data.append({"model": model.label, "original": clean.uar if clean else math.nan})
        data[-1] |= {f"worst_{kind}": found.uar if found else math.nan for kind, found in worst.items()}
        data[-1] |= {f"attack_{kind}": found.condition.variant if found else "" for kind, found in worst.items()}
    columns = ["Model", "Original", *(f"Worst, {SWITCHED[kind]}" for kind in ATTACKED)]
    return Table("at-a-glance", "At a glance", caption("glance"), columns, rows, pd.DataFrame(data))


def counts(corpus: Corpus) -> Table:
    """The paper's Table 2: clips of each class, of the first run that was evaluated on all of them."""
    run, found = next(((run, found) for run in corpus.runs if (found := _counts(run))), (None, {}))
    rows = [[name, *(str(found[part].get(name, 0)) for part in found)] for name in (corpus.classes if found else ())]
    data = pd.DataFrame(
        {"class": corpus.classes} | {part: [c.get(name, 0) for name in corpus.classes] for part, c in found.items()}
    )
    if rows:
        rows.append(["Σ", *(str(sum(part.values())) for part in found.values())])
    if len(found) > 1:
        rows = [[*row, str(sum(map(int, row[1:])))] for row in rows]
    columns = ["Class", *map(str.capitalize, found), *(["Σ"] if len(found) > 1 else [])]
    return Table("counts", "Clips", caption("counts", seed=run and run.setting("seed")), columns, rows, data)


def _counts(run: Run) -> dict[str, dict[str, int]]:
    """As the run wrote them down; else of what it was tested on."""
    if run.counts:
        return {part: run.counts[part] for part in ("train", "test") if part in run.counts}
    for evaluation in run.evaluations:
        record = evaluation.conditions.get("original")
        if record and evaluation.fraction == 1:
            rows = (round(sum(row) / record.get("draws", 1)) for row in record["matrix"])
            return {"test": dict(zip(evaluation.classes, rows, strict=True))}
    return {}


def threats(corpus: Corpus) -> Table:
    """Every attack's threat model, its budget in σ and as SNR."""
    rows, data = [], []
    for name in attacks_in_order(corpus.attacks()):
        eps, snr = corpus.eps(parse(f"adversarial/{name}")), _snr(corpus, name)
        words = corpus.threat(name).removeprefix(f"{name}: ") or MISSING
        rows.append([attack_title(name), words, _cell(eps), _cell(snr, _decibel)])
        data.append({"attack": name, "threat": words, "eps": eps, "snr_db": snr})
    columns = ["Attack", "What it may do and knows", "ε (σ)", "SNR (dB)"]
    return Table("threats", "Attacks", caption("threats"), columns, rows, pd.DataFrame(data), words=2, wrapped=[1])


def _snr(corpus: Corpus, attack: str) -> float:
    """Of an attack that always knows of the randomisation, that of its adaptive examples: it has no others."""
    for name in (attack, f"adaptive/{attack}"):
        found = [each.get("snr_db") for model in corpus.models for each in model.examples.get(name, [])]
        if known := [value for value in found if value is not None]:
            return float(np.mean(known))
    return math.nan


# --- Table 3 ---------------------------------------------------------------------------------------------------------


def table3(corpus: Corpus) -> list[Table]:
    """The paper's Table 3, once for each family of models; empty where nothing of it was measured."""
    several = len(corpus.families) > 1
    return [_table3(corpus, family, place if several else 0) for place, family in enumerate(corpus.families, start=1)]


def _table3(corpus: Corpus, family: Sequence[Model], place: int) -> Table:
    """The rows and columns that have data; in the model's half of the paper a column is an attack's own model."""
    first = {model.against: model for model in reversed(family)}
    models = [first[attack] for attack in (None, *PAPER_ATTACKS) if attack in first]
    names = [*CLEAN, *(f"{kind}/{attack}" for attack in PAPER_ATTACKS for kind in ATTACKED)]
    numbers = records(corpus, [name for name in names if name in corpus.conditions], models)
    halves = {"Nature": lambda _: first.get(None), "Adversarial federated learnt": first.get}
    grid = {(half, kind): _row3(kind, half == "Nature", of) for half, of in halves.items() for kind in KINDS}
    filled = [n for n in range(1 + len(PAPER_ATTACKS)) if any(row[n][0].value is not None for row in grid.values())]
    rows, marks, seen = [], {}, ""
    for (half, kind), row in grid.items():
        if any(row[n][0].value is not None for n in filled):
            marks |= (
                {len(rows): "added"} if kind == "adaptive" else {len(rows): "first"} if seen not in ("", half) else {}
            )
            cells = [cell for n in filled for cell in row[n]]
            rows.append([half if half != seen else "", kind.replace("_", " ").capitalize(), *cells])
            seen = half
    draws = {e.draws for m in models for name in names if (e := m.estimates.get(name)) and e.condition.randomised}
    facts = {"draws": sorted(draws), "paper": PAPER, "corpus": corpus.name}
    heads = [("", 2), *((("No attack", *map(attack_title, PAPER_ATTACKS))[n], 2) for n in filled)]
    notes = [f"{model.label} is not in it: one model per attack." for model in family if model not in models]
    heading = "Table 3" + (
        f" ({models[0].label.partition(' (')[2].rstrip(')') or models[0].label})" if place and models else ""
    )
    columns = ["Models", "Test data", *["ours", "paper"] * len(filled)]
    name = f"table3-{place}" if place else "table3"
    return Table(name, heading, caption("table3", **facts), columns, rows, numbers, heads, 2, notes, marks)


def _row3(kind: str, nature: bool, model_of: Callable[[str | None], Model | None]) -> list[tuple[Cell, Cell]]:
    """Per column, without attack and under each of the paper's, ours beside the paper's; empty where that has none."""
    paper, row = PAPER["nature" if nature else "adversarial"].get(kind), []
    for attack in (None, *PAPER_ATTACKS):
        clean = kind in CLEAN
        if (nature and clean != (attack is None)) or (attack is None and not nature):
            row.append((Cell(""), Cell("")))  # as in the paper: a place for what has no meaning
            continue
        model = model_of(attack)
        estimate = model.estimates.get(kind if clean else f"{kind}/{attack}") if model else None
        value = paper.get(attack) if isinstance(paper, dict) else paper
        row.append((uar_cell(estimate), Cell(f"{value:.2f}" if value else MISSING, value=value, kind="paper")))
    return row


# --- Train-attack × test-attack --------------------------------------------------------------------------------------


def matrices(corpus: Corpus) -> list[Table]:
    """A table for each kind of attacker: a model per row, an attack per column."""
    return [_matrix(corpus, kind) for kind in ATTACKED if corpus.attacks(kind)]


def _matrix(corpus: Corpus, kind: str) -> Table:
    attacks = attacks_in_order(corpus.attacks(kind))
    clean = "original" if kind == "adversarial" else "randomised"
    names = [clean, *(f"{kind}/{attack}" for attack in attacks)]
    rows = [
        [model.label, *(uar_cell(model.estimates.get(name), shaded=True) for name in names)]
        for model in corpus.models
        if any(name in model.estimates for name in names[1:])
    ]
    columns, words = ["Model", clean.capitalize(), *map(attack_title, attacks)], caption("matrix", kind=kind)
    return Table(f"matrix-{kind}", SWITCHED[kind].capitalize(), words, columns, rows, records(corpus, names))


# --- Budgets and distances -------------------------------------------------------------------------------------------

BUDGETS = {"linf": "max", "moved": "min", "zero_gradient": "max"} | dict.fromkeys(
    ("l2", "rms", "snr_db", "seconds"), "mean"
)


def budgets(corpus: Corpus) -> Table:
    """How large each attack's perturbations are, in σ and as SNR: of those with a budget over all models."""
    found = [
        {"set": name, "model": model.label}
        | {key: math.nan if v.get(key) is None else float(v[key]) for key in BUDGETS}
        for model in corpus.models
        for name, seeds in model.examples.items()
        for v in seeds
    ]
    data, rows = pd.DataFrame(found), []
    if found:
        eps = {name: corpus.eps(parse(f"adversarial/{name.removeprefix('adaptive/')}")) for name in data["set"]}
        plain = data[~data["set"].str.contains("@")]
        shown = plain if len(plain) else data
        shown = _by_set(shown.assign(model=shown["model"].mask(shown["set"].map(eps).notna(), "all")))
        rows = [_budget_row(eps[row["set"]], row) for row in shown.to_dict("records")]
        data = _by_set(data)
    columns = ["Examples", "Model", "ε (σ)", "L∞ (σ)", "L2 (σ)", "SNR (dB)", "moved (%)", "no gradient (%)", "seconds"]
    return Table("budgets", "Budgets", caption("budgets"), columns, rows, data, words=2)


def _by_set(data: pd.DataFrame) -> pd.DataFrame:
    """Each set and model once, attack by attack, the oblivious before the adaptive."""
    data = data.groupby(["set", "model"], sort=False, as_index=False).agg(BUDGETS)
    bare = {name: name.removeprefix("adaptive/") for name in data["set"]}
    attacks = attacks_in_order(name.partition("@")[0] for name in bare.values())
    order = sorted(bare, key=lambda n: (attacks.index(bare[n].partition("@")[0]), "@" in n, n.count("/"), bare[n]))
    return data.sort_values("set", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def _budget_row(eps: float | None, row: dict[str, Any]) -> list[Cell | str]:
    shares = [_cell(row[key], percent) for key in ("moved", "zero_gradient")]
    snr, seconds = (_cell(row[key], _decibel) for key in ("snr_db", "seconds"))
    return [set_title(row["set"]), row["model"], *map(_cell, (eps, row["linf"], row["l2"])), snr, *shares, seconds]


def flips(corpus: Corpus) -> Table:
    """What the median utterance needs to be flipped."""
    rows, data = [], []
    for attack in corpus.minimal_norm:
        for model in corpus.models:
            if (found := model.flips(attack)) is not None:
                right = found[found["distance"] > 0]
                l2, snr = (
                    statistics.median_flip(found["distance"]),
                    float(right["snr"].median()) if len(right) else math.nan,
                )
                flipped = float(np.isfinite(right["distance"]).mean())
                cells = [_cell(l2), _cell(snr, _decibel), percent(flipped), str(len(right))]
                rows.append([attack_title(attack), model.label, *cells])
                data.append({"attack": attack, "model": model.label, "l2": l2, "snr_db": snr})
                data[-1] |= {"flipped": flipped, "clips": len(right)}
    columns = ["Attack", "Model", "median L2 (σ)", "median SNR (dB)", "flipped (%)", "clips right at first"]
    return Table(
        "flips", "The smallest change that flips", caption("flips"), columns, rows, pd.DataFrame(data), words=2
    )


# --- Speakers, sexes, classes ----------------------------------------------------------------------------------------


def _looked_at(corpus: Corpus) -> Iterable[tuple[str, Model, Estimate]]:
    """Every model under the conditions that are looked at closely."""
    for name in corpus.looked_at:
        for model in corpus.models:
            if name in model.estimates:
                yield name, model, model.estimates[name]


def speakers(corpus: Corpus) -> Table:
    """How the worst off speakers fare, and the female beside the male ones."""
    rows, data = [], []
    for name, model, estimate in _looked_at(corpus):
        if values := list(estimate.by_speaker().values()):
            row = _speaker_record(estimate, values)
            shares = [_cell(row[key], percent) for key in ("median", "q10", "minimum")]
            ends = between(row["gap_low"], row["gap_high"], signed)
            gap = Cell(signed(row["gap"]), (ends,) if ends else (), row["gap"])
            p = Cell(p_text(row["gap_p"], row["gap_p_at_most"]), value=row["gap_p"])
            rows.append([title(name), model.label, *shares, str(len(values)), gap, p])
            data.append({"condition": name, "model": model.label, **row})
    columns = ["Test data", "Model", "median", "10 % quantile", "worst", "speakers", "female − male", "p"]
    return Table("speakers", "Speakers", caption("speakers"), columns, rows, pd.DataFrame(data), words=2)


def _speaker_record(estimate: Estimate, values: Sequence[float]) -> dict[str, float]:
    minimum, q10 = statistics.spread(values)
    row = {"uar": estimate.uar, "median": float(np.median(values)), "q10": q10, "minimum": minimum}
    unknown = statistics.Difference(math.nan, Interval(math.nan, math.nan), math.nan, math.nan)
    difference, interval, p, least = estimate.gap() or unknown
    row |= {"speakers": len(values), "gap": difference, "gap_low": interval.low, "gap_high": interval.high}
    return row | {"gap_p": p, "gap_p_at_most": p == least}


def class_recalls(corpus: Corpus) -> Table:
    """Recall of each class, clean and adversarial."""
    rows, data = [], []
    for name, model, estimate in _looked_at(corpus):
        found = np.diag(estimate.shares)
        shaded = [Cell(percent(r), value=r, shade=None if math.isnan(r) else r) for r in found]
        rows.append([title(name), model.label, *shaded])
        data.append({"condition": name, "model": model.label, **dict(zip(corpus.classes, found, strict=True))})
    columns = ["Test data", "Model", *corpus.classes]
    return Table("recall", "Recall of each class", caption("recall"), columns, rows, pd.DataFrame(data), words=2)


# --- Tests, checks, all numbers --------------------------------------------------------------------------------------


def tests(corpus: Corpus) -> list[Table]:
    """Models against each other, then each model with the randomisation and without."""
    models = _tests("tests-models", "Models compared", "Test data", comparisons.between_models(corpus))
    about = comparisons.of_the_randomisation(corpus)
    return [models, _tests("tests-defence", "What the randomisation changes", "Model and attack", about)]


def _tests(name: str, heading: str, shared: str, pairs: Iterable[comparisons.Pair]) -> Table:
    data, missing = comparisons.tested(pairs)
    notes = []
    if missing:
        notes.append(f"{missing} pairs are left out: no seed of both tests the same clips, or has an utterances.csv.")
    columns = [shared, "A", "B", "A − B", "p (Holm)", "clips"]
    rows = [_test_row(row) for row in data.to_dict("records")]
    return Table(name, heading, caption("tests"), columns, rows, data, words=3, notes=notes)


def _test_row(row: dict[str, Any]) -> list[Cell | str]:
    ends = between(row["low"], row["high"], signed)
    difference = Cell(signed(row["difference"]), (ends,) if ends else (), row["difference"])
    p = row["bootstrap_p_holm"]
    corrected = Cell(p_text(p, row["bootstrap_p_at_most"]), value=p, kind="significant" if p < 0.05 else "")
    return [row["shared"], row["a"], row["b"], difference, corrected, str(row["utterances"])]


def checks(corpus: Corpus) -> Table:
    """Every check of every model."""
    data = [{"model": model.label} | vars(flag) for model in corpus.models for flag in flags.of_model(model)]
    rows = [
        [
            row["model"],
            row["title"] or row["flag"],
            Cell(" ".join(filter(None, [row["status"], row["severity"]]))),
            row["detail"],
        ]
        for row in data
    ]
    columns = ["Model", "Check", "Status", "Figures"]
    return Table("flags", "Checks", caption("flags"), columns, rows, pd.DataFrame(data), words=4, wrapped=[3])


def everything(corpus: Corpus) -> Table:
    """Every UAR with all that is known of it."""
    data = records(corpus, corpus.conditions)
    rows = [_everything_row(row) for row in data.to_dict("records")]
    columns = ["Model", "Test data", "ε (σ)", "UAR", "sd, seeds", "sd, draws", "over speakers", "over clips"]
    columns += ["closed form", "accuracy", "seeds", "draws", "clips"]
    return Table("all-numbers", "All numbers", caption("everything"), columns, rows, data, words=2)


def _everything_row(row: dict[str, Any]) -> list[Cell | str]:
    shares = [_cell(row[key], percent) for key in ("uar", "sd_over_seeds", "sd_over_draws")]
    intervals = [
        between(row[f"{m}_low"], row[f"{m}_high"]) or MISSING for m in ("clustered", "stratified", "closed_form")
    ]
    counted = [str(row[key]) for key in ("seeds", "draws", "utterances")]
    accuracy = _cell(row["accuracy"], percent)
    return [row["model"], title(row["condition"]), _cell(row["eps"]), *shares, *intervals, accuracy, *counted]
