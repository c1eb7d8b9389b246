"""What the page says in sentences: the threat model, what was run, what was found."""

import math

import numpy as np
import pandas as pd

from fedser.report.conditions import attack_title, attacks_in_order, parse
from fedser.report.estimates import Estimate
from fedser.report.html import Markup, tag
from fedser.report.models import Corpus, Model
from fedser.report.tables import number, percent, worst
from fedser.report.tabular import MISSING, Cell, Table

TERMS = {
    "UAR": (
        "Unweighted average recall: the mean over the classes of the share of their utterances that is recognised. "
        "Guessing gets 100 % divided by the number of classes, however unequal the classes are."
    ),
    "σ, ε, SNR": (
        "Attacks change the model's input, log-Mel spectrograms in standard deviations σ of a mel bin over the "
        "training data. ε is the most by which any cell may change (L∞). SNR = 20·log₁₀(‖x‖/‖δ‖) in dB says how loud "
        "the log-Mel x is beside the change δ: the higher, the smaller the change."
    ),
    "White-box": (
        "The attacker has the model, its weights and its gradients. Black-box attackers only see what the model "
        "answers; transfer attackers have another model; noise knows nothing and is the control."
    ),
    "Undefended": (
        "The randomisation is not worn: the model classifies what the attacker made, as it is. (Adversarial "
        "training, where the model had it, is in its weights.)"
    ),
    "Oblivious": (
        "The randomisation is worn (random resizing and padding at inference time), but the attacker made the "
        "examples on the undefended model and does not know of it. This is what the paper measures as randomised "
        "adversarial."
    ),
    "Adaptive": (
        "The attacker knows the randomisation and takes the expectation over its draws; the examples are then tested "
        "on fresh draws. A defence that only holds against the oblivious attacker hides gradients rather than "
        "resisting (Athalye et al. 2018). The paper lacks this test."
    ),
    "± and [ , ]": (
        "±: standard deviation over seeds, so over trainings. [low, high]: 95 % interval for other speakers like "
        "these and the models as they are, by bootstrap over whole speakers: each resample takes a speaker with all "
        "clips of all seeds and draws, and has the mean of the seeds' UARs."
    ),
}


def terms() -> Markup:
    """What the words on the page mean."""
    return tag("dl", [[tag("dt", term), tag("dd", meaning)] for term, meaning in TERMS.items()], class_="terms")


def threats(corpus: Corpus) -> Table:
    """Every attack's threat model, its budget in σ and as SNR."""
    rows, data = [], []
    for name in attacks_in_order(corpus.attacks()):
        settings = corpus.settings(name)
        eps, snr = corpus.eps(parse(f"adversarial/{name}")), _snr(corpus, name)
        words = corpus.threat(name).removeprefix(f"{name}: ") or MISSING
        knows = not words.startswith("no knowledge")  # or else it starts from no label
        labels = str(settings.get("labels") or MISSING) if knows else MISSING
        cells = [Cell(number(eps), value=eps), Cell(number(snr, ".1f"), value=snr)]
        rows.append([attack_title(name), words, labels, *cells])
        data.append({"attack": name, "threat": words, "labels": labels, "eps": eps, "snr_db": snr})
    caption = (
        "In the attacks' own words, with the labels that they start from (true, or those that the model predicts). "
        "SNR: median over the clips that moved, mean over models and seeds."
    )
    columns = ["Attack", "What it may do and knows", "Labels", "ε (σ)", "SNR (dB)"]
    return Table("threats", "Attacks", caption, columns, rows, pd.DataFrame(data), words=3, wrapped=[1])


def _snr(corpus: Corpus, attack: str) -> float:
    """Of an attack that always knows of the randomisation, that of its adaptive examples: it has no others."""
    for name in (attack, f"adaptive/{attack}"):
        found = [told.get("snr_db") for model in corpus.models for told in model.examples.get(name, [])]
        if known := [value for value in found if value is not None]:
            return float(np.mean(known))
    return math.nan


def facts(corpus: Corpus) -> Markup:
    """What was run, as a list of terms."""
    runs = [run for model in corpus.models for run in model.runs] or corpus.runs
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    seeds = sorted({seed for model in corpus.models for seed in model.seeds}, key=str)
    told = {
        "Corpus": corpus.name,
        "Classes": f"{len(corpus.classes)}: {', '.join(corpus.classes)}" if corpus.classes else "",
        "Models": ", ".join(model.label for model in corpus.models),
        "Architecture": _architecture(runs),
        "Clients": _each(run.summary.get("clients") for run in runs),
        "Rounds": _each(run.setting("rounds") for run in runs),
        "Strategy": _each(run.setting("strategy.name") for run in runs),
        "Seeds": _each(seeds),
        "Runs": _states(corpus),
        "Test clips": _each(_clips(evaluation) for evaluation in evaluations if evaluation.fraction == 1),
        "Worn at inference": _worn(evaluations),
        "fedser": _each(run.summary.get("version") for run in runs),
    }
    return tag("dl", [[tag("dt", term), tag("dd", text)] for term, text in told.items() if text], class_="facts")


def _each(values) -> str:
    """Distinct values; whole numbers as a range where there are many."""
    found = sorted({value for value in values if value is not None}, key=lambda v: (isinstance(v, str), v))
    if len(found) > 4 and all(isinstance(value, int) for value in found):
        return f"{found[0]} to {found[-1]}"
    return ", ".join(map(str, found))


def _architecture(runs) -> str:
    names, sizes = (_each(run.setting(key) for run in runs) for key in ("model.name", "model.width"))
    parameters = _each(
        f"{run.summary['parameters']:,}" for run in runs if isinstance(run.summary.get("parameters"), int)
    )
    return names + (f", width {sizes}" if sizes else "") + (f" ({parameters} parameters)" if parameters else "")


def _states(corpus: Corpus) -> str:
    states = [run.status for run in corpus.runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _clips(evaluation) -> int | None:
    entries = evaluation.part("clients").values()
    return sum(entry.get("utterances") or 0 for entry in entries) or None


def _worn(evaluations) -> str:
    worn = [str((e.content.get("inference") or {}).get("_target_") or "").rpartition(".")[2] for e in evaluations]
    return _each(name for name in worn if name)


def findings(corpus: Corpus) -> list[str]:
    """One sentence per model: what randomisation seems to give, and what an adaptive attacker leaves of it."""
    return [sentence for model in corpus.models if (sentence := _finding(corpus, model))]


def _finding(corpus: Corpus, model: Model) -> str:
    attack = next(
        (a for a in (model.against, "pgd", corpus.strongest("adversarial")) if a and _bounded(corpus, model, a)), None
    )
    clean = model.estimates.get("original")
    if clean is None or attack is None:
        return ""
    kinds = ("adversarial", "randomised_adversarial", "adaptive")
    left, worn, known = (_uar(model.estimates.get(f"{kind}/{attack}")) for kind in kinds)
    text = f"{model.label} recognises {_uar(clean)} (UAR) of the original speech, {left} under {attack_title(attack)}"
    if worn:
        text += f"; with the randomisation worn {worn} against an attacker who does not know of it"
    if worn and known:
        text += f", {known} against one who does"
    strongest = worst(corpus, model, "adaptive")
    if strongest and strongest.condition.attack != attack:
        text += f", and {_uar(strongest)} against the strongest who does ({attack_title(strongest.condition.attack)})"
    return text + "."


def _bounded(corpus: Corpus, model: Model, attack: str) -> bool:
    name = f"adversarial/{attack}"
    return name in model.estimates and corpus.eps(parse(name)) is not None


def _uar(estimate: Estimate | None) -> str:
    return f"{percent(estimate.uar)}\N{NO-BREAK SPACE}%" if estimate else ""
