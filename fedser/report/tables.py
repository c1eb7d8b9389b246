"""Corpora → tables."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fedser.evaluation import metrics, statistics
from fedser.report.analysis import comparisons, conditions, flags
from fedser.report.analysis import fairness as fair
from fedser.report.analysis import privacy as private
from fedser.report.analysis import ren2020 as ren
from fedser.report.analysis.claims import PAPER
from fedser.report.analysis.conditions import ATTACKED, CLEAN, KINDS, PAPER_ATTACKS, attack_title, of_set, parse, title
from fedser.report.analysis.detections import detections, in_short
from fedser.report.analysis.estimates import UNKNOWN, Estimate
from fedser.report.analysis.models import Corpus, Model
from fedser.report.analysis.runs import Run
from fedser.report.analysis.safety import WAYS, levels
from fedser.report.analysis.transfers import transfers
from fedser.report.cells import MISSING, Cell, Table, between, number, p_text, percent, signed
from fedser.report.text import SWITCHED, prose, verdict

METHODS = ("clustered", "stratified", "closed_form")  # of intervals


def all_tables(corpus: Corpus) -> list[Table]:
    """Every table that the runs can fill."""
    made = [glance(corpus), counts(corpus), unseen(corpus), threats(corpus), *table3(corpus), ren2020(corpus)]
    made += [
        *matrices(corpus),
        transfer(corpus),
        detector(corpus),
        safety(corpus),
        budgets(corpus),
        flips(corpus),
        speakers(corpus),
    ]
    made += [
        cost(corpus),
        fairness(corpus),
        privacy(corpus),
        parts(corpus),
        class_recalls(corpus),
        *tests(corpus),
        checks(corpus),
        everything(corpus),
    ]
    return [table for table in made if table]


def ren2020(corpus: Corpus) -> Table:
    """The table of Ren et al. 2020, each figure with the paper's below it."""
    lines, data = [], []
    places = [(network, place) for network in ren.NETWORKS for place in ren.PLACES]
    for row in (found := ren.rows(corpus.models)):
        cells = [Cell(percent(row.ours.get(each)), _papers(row.paper.get(each)), row.ours.get(each)) for each in places]
        lines.append([row.training, row.eps, *cells])
        for side, uars in (("here", row.ours), ("paper", row.paper)):
            named = {f"{network}/{place}": uars.get((network, place)) for network, place in places}
            data.append({"training": row.training, "eps": row.eps, "whose": side, **named})
    columns = ["Training", "ε", *(place.replace("/", " ") for _, place in places)]
    groups = [("", 2), *((name, len(ren.PLACES)) for name in ren.NETWORKS.values())] if found else []
    return Table("ren2020", *prose("ren2020"), columns, lines, pd.DataFrame(data), groups=groups, words=2)


def _papers(uar: float | None) -> tuple[str, ...]:
    return () if uar is None else (percent(uar),)


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
    return pd.DataFrame([_record(corpus, model, model.estimates[name]) for model, name in found])


def _record(corpus: Corpus, model: Model, estimate: Estimate) -> dict[str, Any]:
    condition = estimate.condition
    row = {"model": model.label, "condition": condition.name, "kind": condition.kind, "attack": condition.variant}
    row |= {"eps": corpus.eps(condition), "uar": estimate.uar, "sd_over_seeds": estimate.over_seeds.sd}
    row |= {"seeds": len(estimate.measures), "sd_over_draws": estimate.draw_sd, "draws": estimate.draws}
    row |= {"utterances": estimate.utterances, "fraction": estimate.fraction}
    row |= {"accuracy": metrics.accuracy(estimate.matrix)}
    for method in METHODS:
        interval = getattr(estimate, method)
        row |= {f"{method}_low": interval.low, f"{method}_high": interval.high}
    return row


def _cell(value: float | None, form: Callable[[Any], str] = number) -> Cell:
    return Cell(form(value), value=None if value is None or math.isnan(value) else value)


def _decibel(value: float | None) -> str:
    return number(value, ".1f")


def glance(corpus: Corpus) -> Table:
    """Per model what it does on clean speech, and under the worst attack within its budget of each kind."""
    rows, data = [], []
    for model in corpus.models if corpus.conditions else ():
        _, clean, worst, *_ = verdict(corpus, model)
        rows.append([model.label, uar_cell(clean), *(uar_cell(each, attack=True) for each in worst.values())])
        data.append({"model": model.label, "original": clean.uar if clean else math.nan})
        data[-1] |= {f"worst_{kind}": found.uar if found else math.nan for kind, found in worst.items()}
        data[-1] |= {f"attack_{kind}": found.condition.variant if found else "" for kind, found in worst.items()}
    columns = ["Model", "Original", *(f"Worst, {SWITCHED[kind]}" for kind in ATTACKED)]
    return Table("at-a-glance", *prose("at-a-glance"), columns, rows, pd.DataFrame(data))


def counts(corpus: Corpus) -> Table:
    """The paper's Table 2: clips of each class, of the first run that was evaluated on all of them."""
    run, found = next(((run, found) for run in corpus.runs if (found := _counts(run))), (None, {}))
    data = pd.DataFrame(found, index=pd.Index(corpus.classes, name="class")).fillna(0).astype(int)
    shown = pd.concat([data, data.sum().to_frame("Σ").T])
    if len(found) > 1:
        shown["Σ"] = shown.sum(axis=1)
    rows = [[str(cell) for cell in row] for row in shown.itertuples()] if found else []
    columns = ["Class", *map(str.capitalize, shown.columns)]
    return Table("counts", *prose("counts", seed=run and run.setting("seed")), columns, rows, data.reset_index())


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


def unseen(corpus: Corpus) -> Table:
    """UAR of speakers whom nobody trained on, beside that of the others' test clips."""
    pairs = [(model, estimate) for model in corpus.models for estimate in model.unseen.values()]
    rows, data = [], []
    for model, found in pairs:
        known, counted = model.estimates[found.condition.name], {each.speakers for each in found.measures}
        speakers = " to ".join(map(str, sorted({min(counted), max(counted)})))
        name = title(found.condition.name)
        rows.append([name, model.label, uar_cell(known), uar_cell(found), speakers, str(found.utterances)])
        data.append(_record(corpus, model, found) | {"uar_seen": known.uar, "speakers": speakers})
    columns = ["Test data", "Model", "Seen speakers", "Unseen", "speakers", "clips"]
    return Table("unseen", *prose("unseen"), columns, rows, pd.DataFrame(data), words=2)


def threats(corpus: Corpus) -> Table:
    """Every attack's threat model, its budget in σ and as SNR."""
    rows, data = [], []
    for name in corpus.attacks():
        eps, snr = corpus.eps(parse(f"adversarial/{name}")), _snr(corpus, name)
        words = corpus.threat(name).removeprefix(f"{name}: ") or MISSING
        rows.append([attack_title(name), words, _cell(eps), _cell(snr, _decibel)])
        data.append({"attack": name, "threat": words, "eps": eps, "snr_db": snr})
    columns = ["Attack", "What it may do and knows", "ε (σ)", "SNR (dB)"]
    return Table("threats", *prose("threats"), columns, rows, pd.DataFrame(data), words=2, wrapped=[1])


def _snr(corpus: Corpus, attack: str) -> float:
    """Of an attack that always knows of the randomisation, that of its adaptive examples: it has no others."""
    for name in (attack, f"adaptive/{attack}"):
        found = [each.get("snr_db") for model in corpus.models for each in model.examples.get(name, [])]
        if known := [value for value in found if value is not None]:
            return float(np.mean(known))
    return math.nan


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
            if kind == "adaptive" or seen not in ("", half):
                marks[len(rows)] = "added" if kind == "adaptive" else "first"
            cells = [cell for n in filled for cell in row[n]]
            rows.append([half if half != seen else "", kind.replace("_", " ").capitalize(), *cells])
            seen = half
    draws = {e.draws for m in models for name in names if (e := m.estimates.get(name)) and e.condition.randomised}
    of = (models[0].label.partition(" (")[2].rstrip(")") or models[0].label) if place and models else ""
    words = prose("table3", of=of, draws=sorted(draws), paper=PAPER, corpus=corpus.name)
    heads = [("", 2), *((("No attack", *map(attack_title, PAPER_ATTACKS))[n], 2) for n in filled)]
    notes = [f"{model.label} is not in it: one model per attack." for model in family if model not in models]
    columns = ["Models", "Test data", *["ours", "paper"] * len(filled)]
    return Table(f"table3-{place}" if place else "table3", *words, columns, rows, numbers, heads, 2, notes, marks)


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


def matrices(corpus: Corpus) -> list[Table]:
    """A table for each kind of attacker: a model per row, an attack per column."""
    return [_matrix(corpus, kind) for kind in ATTACKED if corpus.attacks(kind)]


def _matrix(corpus: Corpus, kind: str) -> Table:
    attacks = corpus.attacks(kind)
    clean = "original" if kind == "adversarial" else "randomised"
    names = [clean, *(f"{kind}/{attack}" for attack in attacks)]
    rows = [
        [model.label, *(uar_cell(model.estimates.get(name), shaded=True) for name in names)]
        for model in corpus.models
        if any(name in model.estimates for name in names[1:])
    ]
    columns = ["Model", clean.capitalize(), *map(attack_title, attacks)]
    return Table(f"matrix-{kind}", *prose("matrix", kind=kind), columns, rows, records(corpus, names))


def transfer(corpus: Corpus) -> Table:
    """Whose examples fool whom: a source per row, a model under attack per column."""
    found = transfers(corpus.models)
    sources, tested = (list(dict.fromkeys(pair[place] for pair in found)) for place in (0, 1))
    uars = {source: [found.get((source, victim)) for victim in tested] for source in sources}
    rows = [[source, *(Cell(percent(uar), value=uar, shade=uar) for uar in uars[source])] for source in sources]
    data = pd.DataFrame([[source, *uars[source]] for source in sources], columns=["made_on", *tested])
    return Table("transfer", *prose("transfer"), ["Made on", *tested], rows, data)


def detector(corpus: Corpus) -> Table:
    """What a detector of adversarial examples is worth: an attack per row, of each model that has one."""
    found = {model.label: detections(model) for model in corpus.models}
    rows, data = [], []
    for model, row in ((model, row) for model, each in found.items() for row in each):
        aucs = (_cell(row.figures.get(key), partial(number, form=".3f")) for key in ("auc", "auc_unsure"))
        shares = (_cell(row.figures.get(key), percent) for key in ("caught", "wrong", "slipped"))
        rows.append([model, row.title, *aucs, *shares])
        data.append({"model": model, "attack": row.attack, **row.figures})
    columns = ["Model", "Attack", "AUC", "AUC, unsure", "Alarm", "Slips through without it", "with it"]
    notes = list(filter(None, (in_short(model, each) for model, each in found.items())))
    return Table("detector", *prose("detector"), columns, rows, pd.DataFrame(data), words=2, notes=notes)


def safety(corpus: Corpus) -> Table:
    """What attacks on the waveform leave, level by level."""
    rows, data = [], []
    for each in levels(corpus.models):
        uars = [_cell(each.uar.get(kind), percent) for kind in WAYS]
        head = [each.model.label, attack_title(each.attack), f"{each.snr:g}"]
        sure = between(each.sure.low, each.sure.high)
        success = replace(_cell(each.success, percent), notes=(sure,) if sure else ())
        rows.append([*head, *uars, success, _cell(each.rms)])
        told = {f"uar/{kind}": value for kind, value in each.uar.items()}
        data.append({"model": each.model.label, "attack": each.attack, "snr": each.snr, **told})
        data[-1] |= {"success": each.success, "success_low": each.sure.low, "success_high": each.sure.high}
        data[-1] |= {"rms": each.rms}
    columns = ["Model", "Attack", "SNR (dB)", "UAR", "UAR, randomised", "and known", "success (%)", "change (σ)"]
    return Table("safety", *prose("safety"), columns, rows, pd.DataFrame(data), words=2)


COST = {"parameters": 1, "trained": 1, "gflop": 1, "received": 1e6, "sent": 1e6, "clients": 1, "seconds": 1}  # units


def cost(corpus: Corpus) -> Table:
    """What each model takes to train and to use, as its runs wrote it down."""
    rows, data = [], []
    for model in corpus.models:
        if not (found := [run.summary["cost"] for run in model.runs if isinstance(run.summary.get("cost"), dict)]):
            continue
        times = [each["seconds"] for each in found if "seconds" in each]  # not of who took another's model
        known = found[0] | {"seconds": float(np.median(times)) if times else math.nan}
        rows.append([model.label, *(_cell(known[key] / unit, _counted) for key, unit in COST.items())])
        data.append({"model": model.label, **{key: known[key] for key in COST}})
    columns = ["Model", "parameters", "trained", "GFLOP at 6 s", "received (MB)", "sent (MB)", "clients", "seconds"]
    return Table("cost", *prose("cost"), columns, rows, pd.DataFrame(data))


def _counted(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else number(value)


BUDGETS = {"linf": "max", "moved": "min", "zero_gradient": "max"} | dict.fromkeys(
    ("l2", "rms", "snr_db", "seconds"), "mean"
)


def budgets(corpus: Corpus) -> Table:
    """How large each attack's perturbations are, in σ and as SNR: of those with a budget over all models."""
    found = [
        {"set": name, "model": model.label} | {key: each.get(key) for key in BUDGETS}
        for model in corpus.models
        for name, seeds in model.examples.items()
        for each in seeds
    ]
    data = pd.DataFrame(found, columns=["set", "model", *BUDGETS]).astype(dict.fromkeys(BUDGETS, float))
    eps = {name: corpus.eps(of_set(name)) for name in data["set"]}
    plain = data[["@" not in name for name in data["set"]]]
    shown = plain if len(plain) else data
    shown = _by_set(shown.assign(model=shown["model"].mask(shown["set"].map(eps).notna(), "all")))
    rows = []
    for row in shown.to_dict("records"):
        lengths = map(_cell, (eps[row["set"]], row["linf"], row["l2"]))
        snr, seconds = (_cell(row[key], _decibel) for key in ("snr_db", "seconds"))
        shares = [_cell(row[key], percent) for key in ("moved", "zero_gradient")]
        rows.append([conditions.set_title(row["set"]), row["model"], *lengths, snr, *shares, seconds])
    columns = ["Examples", "Model", "ε (σ)", "L∞ (σ)", "L2 (σ)", "SNR (dB)", "moved (%)", "no gradient (%)", "seconds"]
    return Table("budgets", *prose("budgets"), columns, rows, _by_set(data), words=2)


def _by_set(data: pd.DataFrame) -> pd.DataFrame:
    """Each set and model once, attack by attack, the oblivious before the adaptive."""
    data = data.groupby(["set", "model"], sort=False, as_index=False).agg(BUDGETS)
    names = [of_set(name).name for name in data["set"]]
    places = [conditions.in_order(names).index(name) for name in names]
    return data.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)


def flips(corpus: Corpus) -> Table:
    """What the median utterance needs to be flipped."""
    rows, data = [], []
    for attack in corpus.minimal_norm:
        for model in corpus.models:
            if found := model.median_flip(attack):
                cells = [_cell(found["l2"]), _cell(found["snr_db"], _decibel), percent(found["flipped"])]
                rows.append([attack_title(attack), model.label, *cells, str(found["clips"])])
                data.append({"attack": attack, "model": model.label, **found})
    columns = ["Attack", "Model", "median L2 (σ)", "median SNR (dB)", "flipped (%)", "clips right at first"]
    return Table("flips", *prose("flips"), columns, rows, pd.DataFrame(data), words=2)


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
    return Table("speakers", *prose("speakers"), columns, rows, pd.DataFrame(data), words=2)


def _speaker_record(estimate: Estimate, values: Sequence[float]) -> dict[str, float]:
    minimum, q10 = statistics.spread(values)
    row = {"uar": estimate.uar, "median": float(np.median(values)), "q10": q10, "minimum": minimum}
    unknown = statistics.Difference(math.nan, UNKNOWN, math.nan, math.nan)
    difference, interval, p, least = estimate.gap() or unknown
    row |= {"speakers": len(values), "gap": difference, "gap_low": interval.low, "gap_high": interval.high}
    return row | {"gap_p": p, "gap_p_at_most": p == least}


def fairness(corpus: Corpus) -> Table:
    """How differently each model treats the sexes, single speakers, and groups by other columns."""
    found, who = fair.shown(corpus), fair.whose(corpus)
    shown = list(dict.fromkeys(by for each in found for by in each.groups))
    told = {column for each in found for column in fair.told_of(each.estimate)}
    heads = {by: who if by == fair.ALONE and by not in told else by for by in shown}
    others = [by for by in shown if by != fair.ALONE]
    rows = []
    for each in found:
        name = title(each.estimate.condition.name) + ", unseen speakers" * each.unseen
        cells = [_fairness_cell(each.record, f"{metric}/{by}") for by in shown for metric in fair.SHOWN]
        rows.append([name, each.model.label, *cells])
    columns = ["Test data", "Model", *(name.replace("_", " ") for _ in shown for name in fair.SHOWN)]
    groups = [("", 2), *((f"By {heads[by]}", len(fair.SHOWN)) for by in shown)]
    data = pd.DataFrame([each.record for each in fair.treated(corpus)])
    words, notes = prose("fairness", who=who, others=" and ".join(others)), fair.told(found, who)
    return Table("fairness", *words, columns, rows, data, groups=groups, words=2, notes=notes)


def _fairness_cell(record: dict[str, Any], key: str) -> Cell:
    if key not in record:
        return Cell(MISSING)
    notes = [f"mean {percent(record[f'{key}/mean'])}"]
    if f"{key}/chance" in record:
        chance = record[f"{key}/chance"]
        notes = [between(record[f"{key}/low"], record[f"{key}/high"]), f"chance {percent(chance)}" * (chance == chance)]
    return replace(_cell(record[key], percent), notes=tuple(filter(None, notes)))


def privacy(corpus: Corpus) -> Table:
    """What of the speakers is inferred from embeddings and updates."""
    found, rows = private.inferred(corpus.models), []
    for each in (each for each in found if each.shown):
        told = each.record
        words = [each.model.label, told["what"], told["source"], told["whose"], told["metric"].replace("_", " ")]
        low, high = (math.nan if told[end] is None else told[end] for end in ("low", "high"))
        ends = between(low, high)
        cell = Cell(percent(told["value"]), (ends,) if ends else (), told["value"])
        rows.append([*words, cell, _cell(told["chance"], percent), str(told.get("speakers", MISSING))])
    data = pd.DataFrame([{"model": each.model.label, **each.record, "runs": each.runs} for each in found])
    columns = ["Model", "Inferred", "from", "of speakers", "as", "%", "chance", "speakers"]
    notes = private.guarantees(corpus.models)
    return Table("privacy", *prose("privacy"), columns, rows, data, words=5, notes=notes)


def parts(corpus: Corpus) -> Table:
    """The UAR of each of mixed corpora."""
    rows, data = [], []
    for name, model, estimate in _looked_at(corpus):
        if not model.runs[0].setting("dataset.parts"):
            continue
        for part, (uar, clips) in estimate.by_corpus().items():
            rows.append([title(name), model.label, part, Cell(percent(uar), value=uar), str(clips)])
            data.append({"condition": name, "model": model.label, "corpus": part, "uar": uar, "clips": clips})
    columns = ["Test data", "Model", "Corpus", "UAR", "clips"]
    return Table("corpora", *prose("corpora"), columns, rows, pd.DataFrame(data), words=3)


def class_recalls(corpus: Corpus) -> Table:
    """Recall of each class, clean and adversarial."""
    rows, data = [], []
    for name, model, estimate in _looked_at(corpus):
        found = np.diag(estimate.shares)
        shaded = [Cell(percent(r), value=r, shade=None if math.isnan(r) else r) for r in found]
        rows.append([title(name), model.label, *shaded])
        data.append({"condition": name, "model": model.label, **dict(zip(corpus.classes, found, strict=True))})
    columns = ["Test data", "Model", *corpus.classes]
    return Table("recall", *prose("recall"), columns, rows, pd.DataFrame(data), words=2)


def tests(corpus: Corpus) -> list[Table]:
    """Models against each other, then each model with the randomisation and without."""
    models, about = comparisons.between_models(corpus), comparisons.of_the_randomisation(corpus)
    return [_tests("tests-models", "Test data", models), _tests("tests-defence", "Model and attack", about)]


def _tests(name: str, shared: str, pairs: Iterable[comparisons.Pair]) -> Table:
    data, missing = comparisons.tested(pairs)
    several = any(len(each) >= comparisons.TELLING for each in data.get("trainings", []))
    rows = []
    for row in data.to_dict("records"):
        ends, p = between(row["low"], row["high"], signed), row["bootstrap_p_holm"]
        difference = Cell(signed(row["difference"]), (ends,) if ends else (), row["difference"])
        corrected = Cell(p_text(p, row["bootstrap_p_at_most"]), value=p, kind="significant" if p < 0.05 else "")
        rows.append([row["shared"], row["a"], row["b"], difference, corrected, str(row["utterances"])])
        if several:
            rows[-1] += ["/".join(map(signed, row["trainings"])), _cell(row["trainings_p"], p_text)]
    notes = [f"{missing} pairs are left out: no seed of both tests the same clips, or has an utterances.csv."]
    columns = [shared, "A", "B", "A − B", "p (Holm)", "clips", *(["by training", "p, trainings"] * several)]
    return Table(name, *prose(name), columns, rows, data, words=3, notes=notes if missing else ())


def checks(corpus: Corpus) -> Table:
    """Every check of every model."""
    data = [{"model": model.label} | vars(flag) for model in corpus.models for flag in flags.of_model(model)]
    rows = [
        [row["model"], row["title"] or row["flag"], f"{row['status']} {row['severity']}".strip(), row["detail"]]
        for row in data
    ]
    columns = ["Model", "Check", "Status", "Figures"]
    return Table("flags", *prose("flags"), columns, rows, pd.DataFrame(data), words=4, wrapped=[3])


def everything(corpus: Corpus) -> Table:
    """Every UAR with all that is known of it."""
    data, rows = records(corpus, corpus.conditions), []
    for row in data.to_dict("records"):
        shares = [_cell(row[key], percent) for key in ("uar", "sd_over_seeds", "sd_over_draws")]
        intervals = [between(row[f"{method}_low"], row[f"{method}_high"]) or MISSING for method in METHODS]
        counted = [_cell(row["accuracy"], percent), *(str(row[key]) for key in ("seeds", "draws", "utterances"))]
        rows.append([row["model"], title(row["condition"]), _cell(row["eps"]), *shares, *intervals, *counted])
    columns = ["Model", "Test data", "ε (σ)", "UAR", "sd, seeds", "sd, draws", "over speakers", "over clips"]
    columns += ["closed form", "accuracy", "seeds", "draws", "clips"]
    return Table("all-numbers", *prose("all-numbers"), columns, rows, data, words=2)
