"""A model on one page: figures, each with its interval, its protocol, and what was published of the same setting."""

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from fedser.display import size
from fedser.report.analysis import fairness, flags
from fedser.report.analysis.claims import PAPER
from fedser.report.analysis.conditions import ATTACKED, attack_title, parse, title
from fedser.report.analysis.estimates import Estimate
from fedser.report.analysis.models import Corpus, Model
from fedser.report.analysis.privacy import inferred
from fedser.report.analysis.runs import Run
from fedser.report.analysis.safety import levels
from fedser.report.cells import between, number, percent

TRUST_SER = json.loads((files("fedser.report") / "trust_ser.json").read_text(encoding="utf-8"))
LEVEL = 45.0  # dB, at which Trust-SER attacks
METRICS = {"uar": "UAR", "accuracy": "accuracy", "eer": "EER"}  # of what is inferred, on a card
KNOWS = {
    "adversarial": "no randomisation",
    "randomised_adversarial": "randomised, not known",
    "adaptive": "randomised, known",
}


class Figure(NamedTuple):
    """One line of a card; `published` is empty where nobody published it of this setting."""

    measure: str
    value: str
    interval: str
    protocol: str
    published: str = ""


class Part(NamedTuple):
    """What belongs together; `command` measures it, where there are no figures yet."""

    title: str
    figures: list[Figure]
    command: str


class Card(NamedTuple):
    """One model."""

    model: Model
    run: Run  # of its first seed, whose weights go with the card
    facts: dict[str, str]
    notes: list[str]  # what a reader must know before any figure
    parts: list[Part]


def cards(corpus: Corpus) -> list[Card]:
    """One for each model that was evaluated, of its first seed that left weights."""
    return [_card(corpus, model) for model in corpus.models if model.estimates]


def _card(corpus: Corpus, model: Model) -> Card:
    runs = sorted(
        model.runs, key=lambda run: (not (run.folder / "model.safetensors").is_file(), str(run.setting("seed")))
    )
    evaluate = "fedser-evaluate RUN"
    found = [
        Part("Recognition", list(_recognition(model)), evaluate),
        Part("Robustness", list(_robustness(corpus, model)), f"{evaluate} evaluation=matrix"),
        Part("Safety on the waveform", list(_safety(model)), f"{evaluate} evaluation=safety"),
        Part("Fairness", list(_fairness(corpus, model)), f"{evaluate} evaluation=matrix"),
        Part("Privacy", list(_privacy(model)), "fedser-privacy RUN"),
        Part("Cost", list(_cost(runs[0])), "fedser … (runs of 0.3.0 did not count)"),
    ]
    return Card(model, runs[0], _facts(corpus, model), _notes(model), found)


def _facts(corpus: Corpus, model: Model) -> dict[str, str]:
    run = model.runs[0]
    settings = {
        "Network": "model.name",
        "Aggregation": "strategy.name",
        "Rounds": "rounds",
        "Partition": "partition.name",
    }
    found = {"Corpus": corpus.name, "Classes": ", ".join(corpus.classes), "Trained": model.label}
    found |= {term: str(run.setting(key)) for term, key in settings.items() if run.setting(key) is not None}
    found |= {"Seeds": ", ".join(map(str, model.seeds)), "fedser": str(run.summary.get("version") or "")}
    return {term: words for term, words in found.items() if words}


def _notes(model: Model) -> list[str]:
    found = []
    if any(_random(run) for run in model.runs):
        found.append("The backbone has random weights: no figure here says anything about a trained one.")
    raised = {flag.title or flag.flag: flag.detail for flag in flags.of_model(model) if flag.status == "raised"}
    return found + [f"Check raised: {name} ({detail})." for name, detail in raised.items()]


def _random(run: Run) -> bool:
    return run.setting("model.backbone") is not None and run.setting("model.checkpoint") is None


def _recognition(model: Model) -> Iterator[Figure]:
    for name in ("original", "randomised"):
        if estimate := model.estimates.get(name):
            published = _chang(model, name) or _trust(model, "uar") * (name == "original")
            yield _uar(f"UAR, {title(name)}", estimate, "speakers who are trained on", published)
        if estimate := model.unseen.get(name):
            yield _uar(f"UAR, {title(name)}, unseen speakers", estimate, "speakers whom nobody trained on")


def _robustness(corpus: Corpus, model: Model) -> Iterator[Figure]:
    for kind in ATTACKED:
        if not (worst := corpus.worst(model, kind)):
            continue
        among, eps = len(corpus.judges(model, kind)), corpus.eps(worst.condition)
        how = f"the worst of {among} attack{'s' * (among > 1)} at ε {number(eps)} σ of a mel bin"
        name = f"UAR, {attack_title(worst.condition.variant)}, {KNOWS[kind]}"
        yield _uar(name, worst, how, _chang(model, worst.condition.name))


def _safety(model: Model) -> Iterator[Figure]:
    found = levels([model])
    snrs = {level.snr for level in found}
    chosen = LEVEL if LEVEL in snrs else max(snrs, default=LEVEL)
    for level in (level for level in found if level.snr == chosen):
        estimate = model.estimates[level.condition]
        how, published = f"{number(level.snr)} dB below the speech, on the waveform", ""
        if level.success is not None:
            rate = " ".join(filter(None, (f"{percent(level.success)} %", between(level.sure.low, level.sure.high))))
            how += f", succeeds with {rate} of the clips that are right at first"
            theirs = level.attack == "snr_fgsm" and level.snr == LEVEL
            published = f"success {told}" if theirs and (told := _trust(model, "success")) else ""
        yield _uar(f"UAR, {attack_title(level.attack)}", estimate, how, published)


def _fairness(corpus: Corpus, model: Model) -> Iterator[Figure]:
    metric = "statistical_parity"
    for each in (each for each in fairness.shown(corpus) if each.model is model):
        for by, groups in each.groups.items():
            if by == fairness.ALONE:
                continue
            row, of = each.record, each.estimate.condition.name
            name = f"Statistical parity by {by}, {title(of)}" + ", unseen speakers" * each.unseen
            sizes = " and ".join(f"{n} {value}" for value, n in groups.sizes.items())
            chance = percent(row[f"{metric}/{by}/chance"])
            how = f"{sizes} speakers; 0 is fair, groups drawn at random come to {chance}"
            interval = between(row[f"{metric}/{by}/low"], row[f"{metric}/{by}/high"])
            published = _trust(model, "fairness") * (of == "original" and by == "sex")
            yield Figure(name, percent(row[f"{metric}/{by}"]), interval, how, published)


def _privacy(model: Model) -> Iterator[Figure]:
    for each in inferred([model]):
        told = each.record
        theirs = (told["what"], told["metric"], told["source"]) == ("sex", "accuracy", "embeddings")
        if told["metric"] not in METRICS or not (each.shown or theirs):
            continue
        name = f"{told['what'].capitalize()} from {told['source']}, {METRICS[told['metric']]}"
        how = f"{told['whose']} speakers, chance {percent(told['chance'])}; {told.get('protocol', '')}"
        interval = between(*(math.nan if told[end] is None else told[end] for end in ("low", "high")))
        yield Figure(name, f"{percent(told['value'])} %", interval, how, _trust(model, "sex") * theirs)
    told = model.runs[0].summary.get("privacy")
    if isinstance(told, dict) and "text" in told:
        epsilon = told.get("epsilon")
        value = f"ε = {number(epsilon)}" if epsilon is not None else "no guarantee"
        yield Figure("Differential privacy", value, "", str(told["text"]))
    else:
        yield Figure("Differential privacy", "no guarantee", "", "no noise is added to what clients send")


def _cost(run: Run) -> Iterator[Figure]:
    told = run.summary.get("cost")
    told = told if isinstance(told, dict) else {}
    if "parameters" in told:
        how = f"of which {told['trained']:,} are trained" if "trained" in told else ""
        yield Figure("Parameters", f"{told['parameters']:,}", "", how)
    if "gflop" in told:
        yield Figure("Operations", f"{number(told['gflop'])} GFLOP", "", "one clip of 6 s, attention counted")
    if "received" in told and "sent" in told:
        value = f"{size(told['received'])} / {size(told['sent'])}"
        yield Figure(
            "Traffic", value, "", f"received / sent by each of {told.get('clients')} clients a round, arrays alone"
        )
    if "seconds" in told:
        yield Figure("Time", f"{number(told['seconds'])} s", "", f"a round, median; {run.summary.get('plan', '')}")


def _uar(name: str, estimate: Estimate, how: str, published: str = "") -> Figure:
    sd, interval, seeds = estimate.over_seeds.sd, estimate.interval, len(estimate.measures)
    value = percent(estimate.uar) + (f" ± {percent(sd)}" if sd == sd else "") + " %"
    counted = [f"{estimate.utterances} clips of {estimate.rows['speaker'].nunique()} speakers"]
    counted += [f"{seeds} seeds, mean ± sd"] * (seeds > 1) + [f"{estimate.draws} draws"] * (estimate.draws > 1)
    counted += [f"{percent(estimate.fraction, 0)} % of the clips"] * (estimate.fraction < 1)
    return Figure(name, value, between(interval.low, interval.high), "; ".join([how, *counted]), published)


def _chang(model: Model, name: str) -> str:
    """Of Table 3, where corpus and network are the paper's."""
    run = model.runs[0]
    if (run.setting("dataset.name"), run.setting("model.name")) != ("demos", "vgg15"):
        return ""
    condition = parse(name)
    found = PAPER["adversarial" if model.against else "nature"].get(condition.kind)
    value = found.get(condition.attack or model.against) if isinstance(found, dict) else found
    return f"{value} (Chang et al. 2022)" if value else ""


def _trust(model: Model, key: str) -> str:
    """Of Trust-SER's plots, means over its corpora, where the backbone is one of theirs, frozen and not random."""
    run = model.runs[0]
    found = TRUST_SER.get(str(run.setting("model.backbone")))
    theirs = found and run.setting("model.tune") == "frozen" and not _random(run)
    return f"{found[key]} (Feng et al. 2023, mean of their corpora)" if theirs else ""
