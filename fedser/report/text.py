"""What the page says in sentences: the figures for them; the sentences themselves are in `templates/`."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jinja2

from fedser.report import cells
from fedser.report.analysis.claims import PAPER
from fedser.report.analysis.comparisons import of_federation
from fedser.report.analysis.conditions import ATTACKED, attack_title
from fedser.report.analysis.estimates import Estimate
from fedser.report.analysis.models import Corpus, Model, flat
from fedser.report.analysis.runs import Run

SWITCHED = {
    "original": "no attack",
    "adversarial": "without randomisation",
    "randomised_adversarial": "with it, oblivious attacker",
    "adaptive": "with it, adaptive attacker",
}
"""How no attack and the three kinds of attack are called beside each other."""


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
    made.filters |= {
        "percent": cells.percent,
        "signed": cells.signed,
        "number": cells.number,
        "p_text": cells.p_text,
        "attack": attack_title,
    }
    made.filters["starting"] = lambda named, start: [each for name, each in named.items() if name.startswith(start)]
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    made.globals |= {
        "between": cells.between,
        "signed": cells.signed,
        "switched": SWITCHED,
        "of_federation": of_federation,
    }
    return made


def prose(name: str, **facts: Any) -> list[str]:
    """Title and caption of a table; of a figure also what is read out where it cannot be seen."""
    told = getattr(environment().get_template("prose.txt").module, name.replace("-", "_"))(**facts)
    return [" ".join(part.split()) for part in told.split("\n---\n")]


class Verdict(NamedTuple):
    """What a model is worth: its UAR without attack, and what the worst attacks leave."""

    model: Model
    clean: Estimate | None
    worst: dict[str, Estimate | None]  # by kind: of those with a budget
    free: Estimate | None  # under an attack without a budget, DeepFool where it was run
    flip: dict[str, float]  # what that needs for the median utterance; empty where it is not known

    @property
    def strongest(self) -> Estimate | None:
        """Against the defence as it is used: of the adaptive attacks; where there are none, without randomisation."""
        return self.worst["adaptive"] or self.worst["adversarial"] or self.worst["randomised_adversarial"]


def verdicts(corpus: Corpus) -> list[Verdict]:
    """One for each model that was tested."""
    return [verdict(corpus, model) for model in corpus.models if model.estimates]


def verdict(corpus: Corpus, model: Model) -> Verdict:
    worst = {kind: corpus.worst(model, kind) for kind in ATTACKED}
    attack = next((name for name in corpus.minimal_norm if f"adversarial/{name}" in model.estimates), "")
    free = model.estimates.get(f"adversarial/{attack}")
    return Verdict(model, model.estimates.get("original"), worst, free, model.median_flip(attack) or {})


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


def repeated(corpus: Corpus) -> str:
    """How many test clips have the speaker and the sentence of a training clip; empty where that is not known."""
    counted = (run.summary.get("repeated") for run in corpus.runs)
    found = [each for each in counted if isinstance(each, dict) and {"speaker", "test"} <= each.keys()]
    return _each(f"{each['speaker']} of {each['test']}" for each in found)


def deviations(corpus: Corpus) -> list[tuple[str, str, str]]:
    """In what the runs differ from the paper's: the setting, ours, the paper's."""
    runs = [run for model in corpus.models for run in model.runs]
    found = []
    for name, key, paper in PAPER["setup"]:
        attack = key.split(".")[1] if key.startswith("attacks.") else ""
        values = {run.summary.get(key) if key == "clients" else run.setting(key) for run in runs}
        if attack:
            values = {corpus.attack(attack).settings.get(key.rpartition(".")[2])}
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
    return {attack_title(estimate.condition.variant): estimate.fraction for estimate in estimates}


def configurations(runs: Sequence[Run]) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """Settings and environment: what all runs share, and of what differs the runs with each value."""
    said = [{k: v for k, v in run.summary.items() if "/" not in k and not isinstance(v, dict | list)} for run in runs]
    own = [flat(run.config) | summary for run, summary in zip(runs, said, strict=True)]
    keys = dict.fromkeys(key for each in own for key in each)
    values = {key: [str(each.get(key, cells.MISSING)) for each in own] for key in keys}
    common = {key: found[0] for key, found in values.items() if len(set(found)) == 1}
    differing: dict[str, dict[str, list[str]]] = {}
    for key in (key for key in values if key not in common):
        for run, value in zip(runs, values[key], strict=True):
            differing.setdefault(key, {}).setdefault(value, []).append(run.name)
    return common, differing
