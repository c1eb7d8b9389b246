"""What the page says in sentences: the figures for them; the sentences themselves are in `templates/`."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jinja2

from fedser.evaluation import statistics
from fedser.report import cells
from fedser.report.analysis.claims import PAPER
from fedser.report.analysis.conditions import ATTACKED, attack_title, parse
from fedser.report.analysis.estimates import Estimate
from fedser.report.analysis.models import Corpus, Model, flat
from fedser.report.analysis.runs import Run

SWITCHED = dict(
    zip(ATTACKED, ("without randomisation", "with it, oblivious attacker", "with it, adaptive attacker"), strict=True)
)
"""How the three kinds of attack are called beside each other."""


@functools.cache
def environment() -> jinja2.Environment:
    """The templates; what is put into HTML is escaped, into text is not."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fedser.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": cells.percent, "signed": cells.signed, "number": cells.number}
    made.filters |= {
        "attack": attack_title,
        "starting": lambda named, start: [v for k, v in named.items() if k.startswith(start)],
    }
    made.globals |= {"between": cells.between, "signed": cells.signed}
    return made


def caption(name: str, **facts: Any) -> str:
    """What is said of a table or a figure, in a line."""
    captions = environment().get_template("captions.txt").module
    return " ".join(getattr(captions, name)(**facts).split())


class Verdict(NamedTuple):
    """What a model is worth: its UAR without attack, and what the worst attacks leave."""

    model: Model
    clean: Estimate | None
    worst: dict[str, Estimate | None]  # by kind: of those with a budget
    free: Estimate | None  # under an attack without a budget, DeepFool where it was run
    l2: float  # the median distance that it needs, and its SNR; NaN where not known
    snr: float

    @property
    def strongest(self) -> Estimate | None:
        """Against the defence as it is used: of the adaptive attacks; where there are none, without randomisation."""
        return self.worst["adaptive"] or self.worst["adversarial"] or self.worst["randomised_adversarial"]


def verdicts(corpus: Corpus) -> list[Verdict]:
    """One for each model that was tested."""
    return [_verdict(corpus, model) for model in corpus.models if model.estimates]


def _verdict(corpus: Corpus, model: Model) -> Verdict:
    worst = {kind: corpus.worst(model, kind) for kind in ATTACKED}
    attack = next((name for name in corpus.minimal_norm if f"adversarial/{name}" in model.estimates), None)
    l2, snr = math.nan, math.nan
    if attack and (found := model.flips(attack)) is not None:
        l2, right = statistics.median_flip(found["distance"]), found[found["distance"] > 0]
        snr = float(right["snr"].median()) if len(right) else math.nan
    free = model.estimates[f"adversarial/{attack}"] if attack else None
    return Verdict(model, model.estimates.get("original"), worst, free, l2, snr)


def setup(corpus: Corpus) -> dict[str, str]:
    """What was run, term by term."""
    runs = [run for model in corpus.models for run in model.runs] or list(corpus.runs)
    states = [run.status for run in corpus.runs]
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    inference = (str((e.content.get("inference") or {}).get("_target_") or "").rpartition(".")[2] for e in evaluations)
    found = {
        "Corpus": corpus.name,
        "Classes": ", ".join(corpus.classes),
        "Clients": _each(run.summary.get("clients") for run in runs),
        "Rounds": _each(run.setting("rounds") for run in runs),
        "Network": _network(runs),
        "Strategy": _each(run.setting("strategy.name") for run in runs),
        "Defence at inference": _each(name for name in inference if name),
        "Seeds": _each(seed for model in corpus.models for seed in model.seeds),
        "Runs": ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
        "fedser": _each(run.summary.get("version") for run in runs),
    }
    return {term: text for term, text in found.items() if text}


def deviations(corpus: Corpus) -> list[tuple[str, str, str]]:
    """In what the runs differ from the paper's: the setting, ours, the paper's."""
    runs = [run for model in corpus.models for run in model.runs]
    found = []
    for name, key, paper in PAPER["setup"]:
        attack = key.split(".")[1] if key.startswith("attacks.") else ""
        values = {run.summary.get(key) if key == "clients" else run.setting(key) for run in runs}
        if attack:
            values = {corpus.settings(attack).get(key.rpartition(".")[2])}
        if known := {value for value in values if value is not None and value != paper}:
            found.append((name, _each(known), str(paper)))
    return found


def _each(values: Iterable) -> str:
    """Distinct values; whole numbers as a range where there are many."""
    found = sorted({value for value in values if value is not None}, key=lambda v: (isinstance(v, str), v))
    if len(found) > 4 and all(isinstance(value, int) for value in found):
        return f"{found[0]} to {found[-1]}"
    return ", ".join(map(str, found))


def _network(runs: Iterable) -> str:
    names, sizes = (_each(run.setting(key) for run in runs) for key in ("model.name", "model.width"))
    known = (run.summary.get("parameters") for run in runs)
    parameters = _each(f"{count:,}" for count in known if isinstance(count, int))
    return names + (f", width {sizes}" if sizes else "") + (f" ({parameters} parameters)" if parameters else "")


def partial(corpus: Corpus) -> dict[str, float]:
    """Attacks that were run on a part of the test clips only, and on how large a one."""
    estimates = (estimate for model in corpus.models for estimate in model.estimates.values() if estimate.fraction < 1)
    return {attack_title(parse(estimate.condition.name).variant): estimate.fraction for estimate in estimates}


def configurations(runs: Sequence[Run]) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """Settings and environment: what all runs share, and of what differs the runs with each value."""
    own = [flat(run.config) | {k: v for k, v in run.summary.items() if _plain(k, v)} for run in runs]
    keys = dict.fromkeys(key for each in own for key in each)
    values = {key: [str(each.get(key, cells.MISSING)) for each in own] for key in keys}
    common = {key: found[0] for key, found in values.items() if len(set(found)) == 1}
    differing: dict[str, dict[str, list[str]]] = {}
    for key in (key for key in values if key not in common):
        for run, value in zip(runs, values[key], strict=True):
            differing.setdefault(key, {}).setdefault(value, []).append(run.name)
    return common, differing


def _plain(key: str, value: Any) -> bool:
    return "/" not in key and not isinstance(value, dict | list)
