"""What settings may be: bounds for every key that has some, and messages that say which key and what to set.

Nothing heavy is imported here, as a wrong value is to be told at once.
"""

import functools
import logging
import math
from collections.abc import Iterator

from omegaconf import OmegaConf

from fedser.config import protocol
from fedser.errors import InputError

log = logging.getLogger(__name__)


def training_attack(settings: dict) -> dict | None:
    """The attack trained against, or None where the defence does not train."""
    training = settings["defence"]["training"]
    return training["attack"] if training else None


def _check_missing(node, prefix=""):
    for key, value in node.items():
        if value == "???":
            raise InputError(f"{prefix}{key} must be set, e.g. {prefix}{key}=…")
        if isinstance(value, dict):
            _check_missing(value, f"{prefix}{key}.")


def shape(settings: dict) -> None:
    """Raises InputError where a key has no value yet, or a single value stands where settings with keys belong."""
    _check_missing(settings)
    for path in ("attack", "attacks", "defence.inference", "evaluation.eps", "evaluation.grid", "evaluation.sanity"):
        _at(settings, path)
    evaluation, training = settings["evaluation"], _at(settings, "defence.training")
    attacks = {"attack": settings["attack"]}
    attacks |= {f"attacks.{name}": attack for name, attack in settings["attacks"].items()}
    if training is not None:
        if not isinstance(training, dict):
            raise InputError(f"defence.training={training} must be settings: choose defence=adversarial or two_stage.")
        attacks["defence.training.attack"] = training.get("attack")
    for path, attack in attacks.items():
        if not isinstance(attack, dict) or not isinstance(attack.get("name"), str):
            raise InputError(f"{path}={attack} must be an attack's settings: {path}='${{attacks.fgsm}}', for example.")
    for key, example in (("grid", "{eps: [0.02,0.1]}"), ("sanity", "{attack: pgd_strong, …} as in evaluation=matrix")):
        if not isinstance(evaluation[key], dict | None):
            raise InputError(f"evaluation.{key}={evaluation[key]} must be null or have keys: {example}.")


def _number(value) -> bool:
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)


def _at_least(least):
    return lambda value: _number(value) and value >= least, f"must be a finite number of at least {least}"


def _whole(least):
    good = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least  # noqa: E731
    return good, f"must be a whole number of at least {least}"


def _positive():
    return lambda value: _number(value) and value > 0, "must be greater than 0 and finite"


def _fraction():
    return lambda value: _number(value) and 0 < value <= 1, "must be greater than 0 and at most 1"


def _share():
    return lambda value: _number(value) and 0 <= value <= 1, "must lie between 0 and 1"


def _truth():
    return lambda value: isinstance(value, bool), "must be true or false"


def _one_of(*options):
    return lambda value: value in options, f"must be one of {', '.join(options)}"


CHECKS = {
    "rounds": _whole(1),
    "seed": _whole(0),
    "reuse": _truth(),
    "resume": _truth(),
    "checkpoint.keep": _one_of("last", "evaluated"),
    "dataset.on_bad_audio": _one_of("error", "skip"),
    "features.normalisation": _one_of("zscore_global", "zscore_client", "minmax_client", "none"),
    "features.frames": _whole(1),
    "model.bn_momentum": _fraction(),  # null would average by a count of batches that clients do not share
    "partition.test": (lambda value: _number(value) and 0 < value < 1, "must lie between 0 and 1"),
    "partition.validation": (lambda value: _number(value) and 0 <= value < 1, "must be at least 0 and less than 1"),
    "client.epochs": _whole(1),
    "client.batch_size": _whole(1),
    "client.lr": _positive(),
    "client.threads": _whole(1),
    "client.precision": _one_of("fp32", "bf16"),
    "client.attack_precision": _one_of("fp32", "bf16"),
    "client.tf32": _truth(),
    "evaluation.precision": _one_of("fp32", "bf16"),
    "client.optimizer_state": _one_of("reset", "persist"),
    "strategy.fraction_train": _fraction(),
    "evaluation.attacks": (lambda value: isinstance(value, list), "must be a list of names, e.g. [fgsm,pgd]"),
    "evaluation.curve": (lambda value: isinstance(value, list), "must be a list of names, e.g. [fgsm,pgd]"),
    "evaluation.adaptive": (lambda value: isinstance(value, list), "must be a list of names, e.g. [pgd_strong]"),
    "evaluation.draws": _whole(1),
    "evaluation.fraction": _fraction(),
    "evaluation.gradients": _truth(),
    "evaluation.utterances": _truth(),
    "evaluation.example": _truth(),
    "evaluation.batch_size": _whole(1),
    "simulation.num_cpus": _positive(),
    "simulation.backend": _one_of("ray", "serial"),
    "simulation.min_reply_fraction": _fraction(),
    "simulation.device": _one_of("auto", "cpu", "cuda"),
    "simulation.probe": _truth(),
}
# Keys that may be null, or that not every option of their group has.
OPTIONAL_CHECKS = {
    "checkpoint.every": _whole(1),
    "evaluation.every": _whole(1),
    "evaluation.eps": _positive(),
    "client.timeout": _positive(),
    "simulation.actors": _whole(1),
    "simulation.num_gpus": _at_least(0),
    "simulation.total_gpus": _at_least(0),
    "simulation.address": (
        lambda value: isinstance(value, str) and (value == "auto" or value.rpartition(":")[2].isdigit()),
        "must be null, auto, HOST:PORT or ray://HOST:PORT",
    ),
    "model.width": _whole(1),
    "strategy.proximal_mu": _at_least(0),
    "strategy.beta": (lambda value: _number(value) and 0 <= value < 0.5, "must be at least 0 and less than 0.5"),
    "strategy.num_malicious_nodes": _whole(0),
}
SANITY_CHECKS = {
    "attack": (lambda value: isinstance(value, str), "must be an attack's name, e.g. pgd_strong"),
    "steps_factor": _whole(2),
    "eps_factors": (
        lambda value: isinstance(value, list) and all(_number(factor) and factor > 0 for factor in value),
        "must be a list of factors greater than 0",
    ),
}
# Of an attack and of what it is composed of, where it has the key. Beyond these bounds many methods do nothing and say
# nothing, and a model that was not attacked looks robust.
ATTACK_CHECKS = {
    "eps": _positive(),
    "alpha": _positive(),
    "steps": _whole(1),
    "eot": _whole(1),
    "decay": _at_least(0),
    "overshoot": _at_least(0),
    "rho": _share(),
    "queries": _whole(2),
    "p_init": _fraction(),
    "searches": _whole(1),
    "c": _positive(),
    "lr": _positive(),
    "kappa": _at_least(0),
    "random_start": _truth(),
    "multi_targeted": _truth(),
    "norm": _one_of("Linf", "L2"),
    "labels": (lambda value: value in ("predicted", "true", True), "must be predicted or true"),
}
NULLABLE = ("eps", "alpha", "labels")  # no budget, a quarter of eps, attack=none; all others need a value
TRAINING_CHECKS = {"alpha": _share(), "pairing": _one_of("disjoint", "paired"), "start_round": _whole(1)}


def values(settings: dict) -> None:
    """Raises InputError for the first value that means nothing, with its key and what it must be."""
    _check_listed(settings)
    _check_grid(settings["evaluation"]["grid"])
    _check_sanity(settings["evaluation"]["sanity"])
    _check_attacks(settings)
    _check_training(settings["defence"])


def _check_listed(settings: dict) -> None:
    for path, (good, must) in CHECKS.items():
        if not good(value := _at(settings, path)):
            raise InputError(f"{path}={value} {must}.")
    for path, (good, must) in OPTIONAL_CHECKS.items():
        value = _at(settings, path, None)
        if value is not None and not good(value):
            raise InputError(f"{path}={value} {must}.")


_REQUIRED = object()


def _at(settings: dict, path: str, default=_REQUIRED):
    """The value at a dotted path. Raises InputError where the configuration lacks it and there is no default."""
    node = settings
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            if default is _REQUIRED:
                raise InputError(f"The configuration lacks {path}: it was deleted, or set to null above it.")
            return default
        node = node[key]
    return node


def _check_grid(grid: dict | None) -> None:
    """Raises InputError unless every key's values are a list without repetitions, and its numbers in order."""
    for key, values in (grid or {}).items():
        if values is None:
            continue
        if not isinstance(values, list) or len(set(map(str, values))) < len(values):
            raise InputError(f"evaluation.grid.{key}={values} must be a list without repetitions.")
        if all(map(_number, values)) and values != sorted(values):
            ordered = ",".join(f"{value:g}" for value in sorted(values))
            raise InputError(f"evaluation.grid.{key}={values} is out of order: [{ordered}].")


def _check_sanity(sanity: dict | None) -> None:
    for key, (good, must) in SANITY_CHECKS.items() if sanity is not None else ():
        if not good(value := sanity.get(key)):
            raise InputError(f"evaluation.sanity.{key}={value} {must}; evaluation.sanity=null leaves its probes out.")


def _check_attacks(settings: dict) -> None:
    """Checks all attacks that the settings hold; warns of those whose steps do not get as far as their budget."""
    training = training_attack(settings)
    used = {"attack": settings["attack"]}
    used |= {f"attacks.{name}": attack for name, attack in protocol.attacks(settings).items()}
    used |= {"defence.training.attack": training} if training else {}
    others = {path: attack for name, attack in settings["attacks"].items() if (path := f"attacks.{name}") not in used}
    for path, attack in (used | others).items():
        for part_path, part in _parts(path, attack):
            _check_attack(part_path, part)
    for path, attack in used.items():
        eps, alpha, steps = (attack.get(key) for key in ("eps", "alpha", "steps"))
        if None not in (eps, alpha, steps) and alpha * steps < eps:
            log.warning(
                "%s: %s steps of alpha=%g do not get as far as eps=%g (alpha=null: eps/4)", path, steps, alpha, eps
            )


def _parts(path: str, attack: dict) -> Iterator[tuple[str, dict]]:
    """An attack's settings and those of all that it is composed of, each with its path."""
    inside = {key: attack.get(key) for key in ("method", "base")}
    for key in ("members", "rand"):
        members = attack.get(key) or {}
        if not isinstance(members, dict):
            raise InputError(f"{path}.{key}={members} must be settings of attacks by name.")
        inside |= {f"{key}.{name}": member for name, member in members.items()}
    for key, part in inside.items():
        if not isinstance(part, dict | None):
            raise InputError(f"{path}.{key}={part} must be settings with a _target_, as in conf/attack.")
    yield path, attack
    for key, part in inside.items():
        yield from _parts(f"{path}.{key}", part) if part else ()


def _check_attack(path: str, attack: dict) -> None:
    for key, (good, must) in ATTACK_CHECKS.items():
        value = attack.get(key)
        if key in attack and not (value is None and key in NULLABLE) and not good(value):
            raise InputError(f"{path}.{key}={value} {must}.")
    method = (attack.get("method") or {}).get("_target_")
    if (norm := _norms().get(method)) and attack.get("norm", norm) != norm:
        raise InputError(
            f"{path}.norm={attack['norm']}, but {method} is measured in {norm} by what it does: "
            f"set {path}.norm={norm}, or {path}.method._target_ to a method for {attack['norm']}."
        )


@functools.cache
def _norms() -> dict[str, str]:
    """What each method is measured in, by its `_target_`, as its own file says."""
    from fedser.config.compose import directory

    files = [OmegaConf.load(path) for path in (directory() / "attack").glob("*.yaml")]
    return {file.method["_target_"]: file.norm for file in files if "method" in file}


def _check_training(defence: dict) -> None:
    if (training := defence["training"]) is None:
        return
    if training["attack"]["name"] == "none":
        raise InputError(
            f"defence={defence['name']} trains against attack=none, which is no attack: "
            "choose one, e.g. attack=fgsm, or defence.training.attack='${attacks.fgsm}'."
        )
    for key, (good, must) in TRAINING_CHECKS.items():
        if not good(value := training.get(key)):
            raise InputError(f"defence.training.{key}={value} {must}.")
