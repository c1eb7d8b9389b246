"""Corpora → tables."""

import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval
from fedser.report.conditions import ATTACKED, KINDS, PAPER_ATTACKS, attack_title, attacks_in_order, parse, title
from fedser.report.estimates import Estimate
from fedser.report.models import Corpus, Model
from fedser.report.tabular import MISSING, Cell, Table

PAPER = json.loads((files("fedser.report") / "chang2022.json").read_text(encoding="utf-8"))
BY_KIND = {
    "adversarial": "randomisation not worn",
    "randomised_adversarial": "randomisation worn, attacker oblivious of it",
    "adaptive": "randomisation worn, attacker adapted to it",
}


def all_tables(corpus: Corpus) -> list[Table]:
    """Every table that the runs can fill, in the order of the page."""
    from fedser.report import comparisons

    made = [glance(corpus), *table3(corpus), *matrices(corpus), budgets(corpus), flips(corpus), speakers(corpus)]
    made += [class_recalls(corpus), *comparisons.tables(corpus), everything(corpus), flags(corpus)]
    return [table for table in made if table]


# --- Numbers as people read them -------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    """`0.8125` → `81.2`."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def between(interval: Interval) -> str:
    """`[76.0, 85.1]`, or nothing where the data cannot say."""
    return "" if math.isnan(interval.low) else f"[{percent(interval.low)}, {percent(interval.high)}]"


def signed(value: float) -> str:
    """Percentage points with their sign."""
    if math.isnan(value):
        return MISSING
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}".replace("-", "−")


def number(value: Any, form: str = ".3g") -> str:
    """Any number in few digits; null, NaN and infinity as signs."""
    if value is None or math.isnan(value):
        return MISSING
    return "∞" if math.isinf(value) else f"{value:{form}}"


def uar_cell(estimate: Estimate | None, shaded: bool = False) -> Cell:
    """`81.2 ± 1.3`, its interval below it, and what part of the clips it is of where that is not all."""
    if estimate is None:
        return Cell(MISSING)
    sd = estimate.over_seeds.sd
    text = percent(estimate.uar) + ("" if math.isnan(sd) else f" ± {percent(sd)}")
    notes = tuple(filter(None, [between(estimate.interval), *estimate.limits]))
    return Cell(text, notes, estimate.uar, estimate.uar if shaded else None)


def record(model: Model, name: str, estimate: Estimate, eps: float | None) -> dict[str, Any]:
    """All that is known of one UAR, as a row of a CSV file."""
    condition = estimate.condition
    row = {"model": model.label, "condition": name, "kind": condition.kind, "attack": condition.variant, "eps": eps}
    row |= {"uar": estimate.uar, "sd_over_seeds": estimate.over_seeds.sd, "seeds": len(estimate.measures)}
    row |= {"sd_over_draws": estimate.draw_sd, "draws": estimate.draws, "utterances": estimate.utterances}
    row |= {"fraction": estimate.fraction, "accuracy": float(np.trace(estimate.matrix) / estimate.matrix.sum())}
    for method in ("clustered", "stratified", "closed_form"):
        interval = getattr(estimate, method)
        row |= {f"{method}_low": interval.low, f"{method}_high": interval.high}
    return row


def records(corpus: Corpus, names: Iterable[str], models: Sequence[Model] | None = None) -> pd.DataFrame:
    """`record` of every model under these conditions."""
    rows = [
        record(model, name, model.estimates[name], corpus.eps(parse(name)))
        for name in names
        for model in models or corpus.models
        if name in model.estimates
    ]
    return pd.DataFrame(rows)


# --- At a glance -----------------------------------------------------------------------------------------------------


def glance(corpus: Corpus) -> Table:
    """Per model what it does on clean speech, and under the worst attack within its budget of each kind."""
    rows, data = [], []
    for model in corpus.models:
        clean = model.estimates.get("original")
        worst_of = {kind: worst(corpus, model, kind) for kind in ATTACKED}
        raised = sum(flag["status"] == "raised" for flag in model_flags(model))
        rows.append([model.label, uar_cell(clean), *map(_named, worst_of.values()), _raised(raised, model)])
        data.append({"model": model.label, "original": clean.uar if clean else math.nan, "flags_raised": raised})
        data[-1] |= {f"worst_{kind}": found.uar if found else math.nan for kind, found in worst_of.items()}
        data[-1] |= {f"attack_{kind}": found.condition.variant if found else "" for kind, found in worst_of.items()}
    columns = [
        "Model",
        "Original",
        "Worst attack, not worn",
        "Worst attack, oblivious",
        "Worst attack, adaptive",
        "Flags",
    ]
    caption = (
        "UAR in %: mean ± sd over seeds, and a 95 % interval over speakers. Worst: of the attacks with a budget that "
        "were run on at least half of the test clips, each at its usual ε. A defence is worth what the last column of "
        "UARs says."
    )
    return Table("at-a-glance", "At a glance", caption, columns, rows if corpus.conditions else [], pd.DataFrame(data))


def worst(corpus: Corpus, model: Model, kind: str) -> Estimate | None:
    """The model's lowest UAR under an attack of this kind: of those with a budget, at their usual ε."""
    found = [
        estimate
        for estimate in model.estimates.values()
        if estimate.condition.kind == kind
        and not estimate.condition.varied
        and estimate.representative
        and corpus.eps(estimate.condition) is not None
    ]
    return min(found, key=lambda estimate: estimate.uar, default=None)


def _named(estimate: Estimate | None) -> Cell:
    cell = uar_cell(estimate)
    if estimate is None:
        return cell
    return Cell(cell.text, (*cell.notes, attack_title(estimate.condition.variant)), cell.value)


def _raised(count: int, model: Model) -> Cell:
    if not model_flags(model):
        return Cell("not checked")
    return Cell(f"{count} raised" if count else "none raised", value=count, kind="raised" if count else "clear")


# --- Table 3 ---------------------------------------------------------------------------------------------------------


def table3(corpus: Corpus) -> list[Table]:
    """The paper's Table 3, once for each family of models; empty where nothing of it was measured."""
    several = len(corpus.families) > 1
    return [_table3(corpus, family, place if several else 0) for place, family in enumerate(corpus.families, start=1)]


def _table3(corpus: Corpus, family: Sequence[Model], place: int) -> Table:
    first = {model.against: model for model in reversed(family)}
    nature, trained = first.get(None), {name: first.get(name) for name in PAPER_ATTACKS}
    rows = [_row3("Nature", kind, lambda _: nature) for kind in KINDS]
    rows += [_row3("Adversarial federated learnt", kind, trained.get) for kind in KINDS]
    models = [model for model in [nature, *trained.values()] if model]
    names = ["original", "randomised", *(f"{kind}/{attack}" for attack in PAPER_ATTACKS for kind in ATTACKED)]
    numbers = records(corpus, [name for name in names if name in corpus.conditions], models)
    heads = [("", 2), *((name, 2) for name in ("No attack", *map(attack_title, PAPER_ATTACKS)))]
    caption = (
        "UAR in %: mean ± sd over seeds, 95 % interval over speakers. In each column the adversarially trained model "
        f"is the one trained against that attack.{_draws(models, names)} Paper: {PAPER['source']} "
        f"({PAPER['setting']}).{_otherwise(corpus)} The last row of each half is what the paper lacks: the attacker "
        "knows of the randomisation."
    )
    name = f"table3-{place}" if place else "table3"
    worn = ["ours", "paper"] * (1 + len(PAPER_ATTACKS))
    own = f" ({_family_words(models)})" if place else ""
    filled = rows if len(numbers) else []
    columns, marks = ["Models", "Test data", *worn], {4: "added", 5: "first", 9: "added"}
    notes = [f"{model.label} is not in it: one model per attack." for model in family if model not in models]
    return Table(name, f"Table 3{own}", caption, columns, filled, numbers, heads, words=2, notes=notes, marks=marks)


def _otherwise(corpus: Corpus) -> str:
    if corpus.name.lower().startswith("demos"):
        return ""
    return f" Ours are of {corpus.name}: compare patterns, not numbers."


def _draws(models: Sequence[Model], names: Sequence[str]) -> str:
    """How many draws of the randomisation the numbers are means of."""
    estimates = [model.estimates[name] for model in models for name in names if name in model.estimates]
    found = sorted({estimate.draws for estimate in estimates if estimate.condition.worn})
    return f" Where the randomisation is worn: means of {' or '.join(map(str, found))} draws." if found else ""


def _family_words(models: Sequence[Model]) -> str:
    """What tells a family from others, as its first model's label has it in brackets."""
    return models[0].label.partition(" (")[2].rstrip(")") or models[0].label


def _row3(models: str, kind: str, model_of) -> list[Cell | str]:
    """One row: the model of each column under this kind, each beside the paper's number."""
    paper = PAPER["nature" if models == "Nature" else "adversarial"].get(kind)
    clean = kind in ("original", "randomised")
    row: list[Cell | str] = [models if kind == KINDS[0] else "", kind.replace("_", " ").capitalize()]
    for attack in (None, *PAPER_ATTACKS):
        if (models == "Nature" and clean != (attack is None)) or (attack is None and models != "Nature"):
            row += ["", ""]  # as in the paper: a place for what has no meaning
            continue
        model = model_of(attack)
        estimate = model.estimates.get(kind if clean else f"{kind}/{attack}") if model else None
        told = paper.get(attack) if isinstance(paper, dict) else paper
        row += [uar_cell(estimate), Cell(f"{told:.2f}" if told else MISSING, value=told, kind="paper")]
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
    caption = (
        f"UAR in % of each model (row) under each attack (column), {BY_KIND[kind]}. Mean ± sd "
        "over seeds, 95 % interval over speakers."
    )
    heading = f"Trained against × tested under: {BY_KIND[kind]}"
    columns = ["Model", clean.capitalize(), *map(attack_title, attacks)]
    return Table(f"matrix-{kind}", heading, caption, columns, rows, records(corpus, names))


# --- Budgets and distances -------------------------------------------------------------------------------------------


def budgets(corpus: Corpus) -> Table:
    """How large each attack's perturbations are, in σ and as SNR."""
    data = pd.DataFrame([row for model in corpus.models for row in _budget_rows(model)])
    rows = []
    if len(data):
        bounded = [
            corpus.eps(parse(f"adversarial/{name.removeprefix('adaptive/')}")) is not None for name in data["set"]
        ]
        shown = data.assign(model=data["model"].mask(bounded, "all")).groupby(
            ["set", "model"], sort=False, as_index=False
        )
        rows = [_budget_row(corpus, row) for row in _by_set(shown.agg(BUDGETS)).to_dict("records")]
        data = _by_set(data.groupby(["set", "model"], sort=False, as_index=False).agg(BUDGETS))
    columns = ["Examples", "Model", "ε (σ)", "L∞ (σ)", "L2, median (σ)", "RMS (σ)", "SNR (dB)", "moved (%)"]
    columns += ["no gradient (%)", "seconds"]
    caption = (
        "How far the examples lie from their originals, in standard deviations σ of a mel bin. L∞: the largest "
        "change of any cell. L2, RMS and SNR = 20·log₁₀(‖x‖/‖δ‖) on the log-Mel: medians over the clips that moved, "
        "means over seeds, and for attacks with a budget over models. Moved: the smallest share of any run. No "
        "gradient: the largest. Seconds: a mean."
    )
    return Table("budgets", "Budgets", caption, columns, rows, data, words=2)


BUDGETS = {"linf": "max", "moved": "min", "zero_gradient": "max"} | dict.fromkeys(
    ("l2", "rms", "snr_db", "seconds"), "mean"
)


def _by_set(data: pd.DataFrame) -> pd.DataFrame:
    order = {name: place for place, name in enumerate(_set_order(data["set"]))}
    return data.sort_values("set", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _budget_rows(model: Model) -> Iterable[dict[str, Any]]:
    wanted = ("linf", "l2", "rms", "snr_db", "moved", "zero_gradient", "seconds")
    for name, seeds in model.examples.items():
        for told in seeds:
            values = {key: math.nan if told.get(key) is None else float(told[key]) for key in wanted}
            yield {"set": name, "model": model.label, **values}


def _set_order(names: Iterable[str]) -> list[str]:
    """Sets of examples attack by attack, the oblivious before the adaptive."""
    distinct = list(dict.fromkeys(names))
    attacks = attacks_in_order(name.removeprefix("adaptive/").partition("@")[0] for name in distinct)
    bare = {name: name.removeprefix("adaptive/") for name in distinct}
    return sorted(distinct, key=lambda n: (attacks.index(bare[n].partition("@")[0]), "@" in n, n.count("/"), bare[n]))


def set_title(name: str) -> str:
    """`adaptive/pgd` → `PGD, adaptive`."""
    bare = name.removeprefix("adaptive/")
    return attack_title(bare) + (", adaptive" if bare != name else "")


def _budget_row(corpus: Corpus, row: dict[str, Any]) -> list[Cell | str]:
    eps = corpus.eps(parse(f"adversarial/{row['set'].removeprefix('adaptive/')}"))
    sizes = [Cell(number(row[key]), value=row[key]) for key in ("linf", "l2", "rms")]
    shares = [Cell(percent(row[key]), value=row[key]) for key in ("moved", "zero_gradient")]
    snr, seconds = (Cell(number(row[key], ".1f"), value=row[key]) for key in ("snr_db", "seconds"))
    first = [set_title(row["set"]), row["model"], Cell(number(eps), value=eps)]
    return [*first, *sizes, snr, *shares, seconds]


def flip_distances(model: Model, attack: str) -> pd.DataFrame | None:
    """Per utterance of all seeds: the L2 (`distance`, σ) at which this attack flips it, its `snr`, `label` and `seed`.

    0 where the clean utterance is wrong already, infinite where the attack failed. None without utterances.csv.
    """
    parts = []
    for measure in model.measures.get(f"adversarial/{attack}", {}).values():
        frame, source = measure.evaluation.utterances, parse(measure.source).variant
        columns = ("correct/original", f"correct/{measure.source}", f"l2/{source}", f"snr/{source}")
        if frame is None or any(column not in frame for column in columns):
            return None
        clean, right, l2, snr = (frame[column].to_numpy() for column in columns)
        distance = np.where(clean < 0.5, 0.0, np.where((right < 0.5) & np.isfinite(l2), l2, math.inf))
        needed = np.where(distance == 0, math.inf, np.where(np.isinf(distance), -math.inf, snr))
        columns = {"distance": distance, "snr": needed, "label": frame["emotion"], "seed": measure.seed}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True) if parts else None


def minimal_norm(corpus: Corpus) -> list[str]:
    """Attacks without a budget: they look for the smallest change that flips."""
    return [name for name in corpus.attacks("adversarial") if corpus.eps(parse(f"adversarial/{name}")) is None]


def flips(corpus: Corpus) -> Table:
    """What the median utterance needs to be flipped."""
    data = []
    for attack in minimal_norm(corpus):
        for model in corpus.models:
            found = flip_distances(model, attack)
            if found is not None:
                right = found[found["distance"] > 0]
                row = {"attack": attack, "model": model.label, "l2": statistics.median_flip(found["distance"])}
                row |= {"snr_db": float(right["snr"].median()) if len(right) else math.nan}
                data.append(row | {"flipped": float(np.isfinite(right["distance"]).mean()), "clips": len(right)})
    rows = [_flip_row(row) for row in data]
    columns = ["Attack", "Model", "median L2 (σ)", "median SNR (dB)", "flipped (%)", "clips right at first"]
    caption = (
        "An attack without a budget says how far it had to go, not how often it won: median L2 and SNR over the "
        "clips that the model gets right at first (all seeds), those that were not flipped counted as infinitely "
        "far. Higher L2 and lower SNR: more robust."
    )
    return Table("flips", "The smallest change that flips", caption, columns, rows, pd.DataFrame(data), words=2)


def _flip_row(row: dict[str, Any]) -> list[Cell | str]:
    snr = "−∞" if row["snr_db"] == -math.inf else number(row["snr_db"], ".1f")
    distances = [Cell(number(row["l2"]), value=row["l2"]), Cell(snr, value=row["snr_db"])]
    return [attack_title(row["attack"]), row["model"], *distances, percent(row["flipped"]), str(row["clips"])]


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
        values = list(estimate.by_speaker().values())
        if values:
            row = _speaker_record(estimate, values)
            shares = [Cell(percent(row[key]), value=row[key]) for key in ("uar", "median", "q10", "minimum")]
            ends = _signed_between(Interval(row["gap_low"], row["gap_high"]))
            between_sexes = Cell(signed(row["gap"]), (ends,) if ends else (), row["gap"])
            rows.append([title(name), model.label, *shares, str(len(values)), between_sexes, _p(row)])
            data.append({"condition": name, "model": model.label, **row})
    columns = ["Test data", "Model", "UAR", "median speaker", "10 % quantile", "worst speaker", "speakers"]
    columns += ["female − male", "p"]
    caption = (
        "UAR in % of single speakers, each over the classes that the speaker has in the test set; and UAR of the "
        "female minus UAR of the male speakers in points, with a 95 % interval over speakers and its p-value (not "
        "corrected)."
    )
    return Table("speakers", "Speakers", caption, columns, rows, pd.DataFrame(data), words=2)


def p_text(p: float, at_most: bool = False) -> str:
    """A p-value; `at_most` where so many resamples can show no smaller one."""
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{'≤ ' * at_most}{p:.3f}"


def _speaker_record(estimate: Estimate, values: Sequence[float]) -> dict[str, float]:
    minimum, q10 = statistics.spread(values)
    row = {"uar": estimate.uar, "median": float(np.median(values)), "q10": q10, "minimum": minimum}
    row |= {"speakers": len(values)}
    unknown = statistics.Difference(math.nan, Interval(math.nan, math.nan), math.nan, math.nan)
    difference, interval, p, least = estimate.gap() or unknown
    row |= {"gap": difference, "gap_low": interval.low, "gap_high": interval.high, "gap_p": p}
    return row | {"gap_p_at_most": p == least}


def _signed_between(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"[{signed(interval.low)}, {signed(interval.high)}]"


def _p(row: dict[str, Any]) -> Cell:
    return Cell(p_text(row["gap_p"], row["gap_p_at_most"]), value=row["gap_p"])


def class_recalls(corpus: Corpus) -> Table:
    """Recall of each class, clean and adversarial."""
    rows, data = [], []
    for name, model, estimate in _looked_at(corpus):
        found = np.diag(estimate.shares)
        rows.append([title(name), model.label, *(Cell(percent(r), value=r, shade=_known(r)) for r in found)])
        data.append({"condition": name, "model": model.label, **dict(zip(corpus.classes, found, strict=True))})
    caption = "Recall in % of each class, means over seeds and draws. The mean of a row is the UAR."
    columns = ["Test data", "Model", *corpus.classes]
    return Table("recall", "Recall of each class", caption, columns, rows, pd.DataFrame(data), words=2)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# --- Flags, all numbers ----------------------------------------------------------------------------------------------


def model_flags(model: Model) -> list[dict[str, Any]]:
    """One entry per flag: raised if any evaluation of any seed raised it, with the words of each such seed."""
    found: dict[str, dict[Any, list[dict]]] = {}
    for run in model.runs:
        for evaluation in sorted(run.evaluations, key=lambda evaluation: -len(evaluation.conditions)):
            for flag in evaluation.flags:
                found.setdefault(flag["flag"], {}).setdefault(run.setting("seed"), []).append(flag)
    return [_over_seeds({seed: min(each, key=_severity) for seed, each in seeds.items()}) for seeds in found.values()]


def _severity(flag: dict[str, Any]) -> int:
    return {"raised": 0, "clear": 1}.get(flag["status"], 2)


def _over_seeds(flags: dict[Any, dict]) -> dict[str, Any]:
    """One flag of those of each seed: the gravest status, and what all seeds with it say."""
    status = min(flags.values(), key=_severity)["status"]
    same = {seed: flag for seed, flag in flags.items() if flag["status"] == status}
    first = next(iter(same.values()))
    told = first["detail"]
    if status == "raised" and len(flags) > 1:
        told = " ".join(f"Seed {seed}: {flag['detail']}" for seed, flag in same.items())
    checked = sum(flag["status"] in ("raised", "clear") for flag in flags.values())
    return first | {"detail": told, "raised": len(same) if status == "raised" else 0, "checked": checked}


def flags(corpus: Corpus) -> Table:
    """Every check of every model."""
    rows, data = [], []
    for model in corpus.models:
        for flag in model_flags(model):
            kind = {"raised": "raised", "clear": "clear"}.get(flag["status"], "")
            of = f" in {flag['raised']} of {flag['checked']} seeds" if kind == "raised" and flag["checked"] > 1 else ""
            status = Cell(flag["status"] + of, kind=kind)
            rows.append([model.label, flag["title"] or flag["flag"], status, flag["detail"]])
            data.append({"model": model.label} | flag)
    caption = (
        "Signs that an attack was weaker than it could have been, so that a UAR flatters (Athalye et al. 2018; "
        "Carlini et al. 2019). A check is raised if it was raised in any evaluation of any seed; its figures are those "
        "of the seeds that raised it, else of the first."
    )
    columns = ["Model", "Check", "Status", "Figures"]
    return Table("flags", "Sanity checks", caption, columns, rows, pd.DataFrame(data), words=4, wrapped=[3])


def everything(corpus: Corpus) -> Table:
    """Every UAR with all that is known of it."""
    data = records(corpus, corpus.conditions)
    rows = [_everything_row(row) for row in data.to_dict("records")]
    columns = ["Model", "Test data", "ε (σ)", "UAR", "sd, seeds", "sd, draws", "over speakers", "over clips"]
    columns += ["closed form", "accuracy", "seeds", "draws", "clips"]
    caption = (
        "UAR in % with 95 % intervals: over speakers (bootstrap of whole speakers), over clips (bootstrap within "
        "classes) and its closed form as a check. Clips: test utterances, all seeds together."
    )
    return Table("all-numbers", "All numbers", caption, columns, rows, data, words=2)


def _everything_row(row: dict[str, Any]) -> list[Cell | str]:
    def ends(method: str) -> Cell:
        interval = Interval(row[f"{method}_low"], row[f"{method}_high"])
        return Cell(between(interval) or MISSING, value=interval.high - interval.low)

    shares = [Cell(percent(row[key]), value=row[key]) for key in ("uar", "sd_over_seeds", "sd_over_draws")]
    intervals = [ends(method) for method in ("clustered", "stratified", "closed_form")]
    eps = Cell(number(row["eps"]), value=row["eps"])
    counts = [Cell(str(row[key]), value=row[key]) for key in ("seeds", "draws", "utterances")]
    accuracy = Cell(percent(row["accuracy"]), value=row["accuracy"])
    return [row["model"], title(row["condition"]), eps, *shares, *intervals, accuracy, *counts]
