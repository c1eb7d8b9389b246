"""Sanity flags over the seeds of a model, and over the models of a corpus: each check once."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedser.evaluation import sanity
from fedser.evaluation.sanity import Flag
from fedser.report.analysis.models import Corpus, Model
from fedser.report.analysis.runs import Evaluation

GRAVITY = (("raised", "significant"), ("raised", "minor"), ("clear", ""))  # all else: not checked


@dataclass(frozen=True)
class Check:
    """One check of all models: `severity` of the gravest, and what each model with a raised flag has to say."""

    title: str
    status: str
    severity: str
    models: dict[str, Flag]


def checks(corpus: Corpus) -> list[Check]:
    """Every check once, the gravest first."""
    found: dict[str, dict[str, Flag]] = {}
    for model in corpus.models:
        for flag in of_model(model):
            found.setdefault(flag.flag, {})[model.label] = flag
    made = []
    for models in found.values():
        gravest = min(models.values(), key=_gravity)
        raised = {label: flag for label, flag in models.items() if flag.status == "raised"}
        made.append(Check(gravest.title or gravest.flag, gravest.status, gravest.severity, raised))
    return sorted(made, key=_gravity)


@functools.lru_cache(maxsize=64)
def of_model(model: Model) -> list[Flag]:
    """One of each check: the gravest of any evaluation of any seed, with the words of each seed that raised it."""
    found: dict[str, dict[object, list[Flag]]] = {}
    for run in model.runs:
        for evaluation in sorted(run.evaluations, key=lambda evaluation: -len(evaluation.conditions)):
            for flag in _flags(evaluation):
                found.setdefault(flag.flag, {}).setdefault(run.setting("seed"), []).append(flag)
    return [_over_seeds({seed: min(each, key=_gravity) for seed, each in seeds.items()}) for seeds in found.values()]


def _flags(evaluation: Evaluation) -> list[Flag]:
    """As the evaluation has them; by today's checks where it was written before flags had a severity (0.3.0)."""
    stored = [flag for flag in evaluation.content.get("flags") or [] if isinstance(flag, dict)]
    if any("severity" not in flag for flag in stored):
        attacks = {name: entry for name, entry in evaluation.content["attacks"].items() if "settings" in entry}
        stored = sanity.flags(evaluation.content | {"attacks": attacks})
    keys = ("flag", "title", "status", "detail", "severity")
    return [Flag(*(str(flag.get(key) or "") for key in keys)) for flag in stored]


def _over_seeds(flags: dict[object, Flag]) -> Flag:
    gravest = min(flags.values(), key=_gravity)
    same: Sequence = [(seed, flag) for seed, flag in flags.items() if flag.status == gravest.status]
    if gravest.status != "raised" or len(flags) == 1:
        return gravest
    return replace(gravest, detail=" ".join(f"Seed {seed}: {flag.detail}" for seed, flag in same))


def _gravity(flag: Flag | Check) -> int:
    known = (flag.status, flag.severity if flag.status == "raised" else "")
    return GRAVITY.index(known) if known in GRAVITY else len(GRAVITY)
