"""The configuration: composed once by Hydra, checked with messages that say what to change, resolved to plain values.

Nothing heavy is imported here: `fedser --help` and a misspelt key answer at once.
"""

import difflib
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedser import agenda, identity
from fedser.errors import FedserError, InputError

log = logging.getLogger(__name__)

OmegaConf.register_new_resolver(
    "fedser_run_name", lambda *, _root_: identity.run_name(plain(_root_)), use_cache=False, replace=True
)
OmegaConf.register_new_resolver("fedser_add", lambda *terms: sum(terms), replace=True)


def directory() -> Path:
    """The folder of the YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose(overrides=()) -> DictConfig:
    """The configuration that these command-line overrides compose to.

    Raises InputError for an unknown group option or key, naming the nearest one that exists.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(config_dir=str(directory()), version_base="1.3"):
        try:
            return hydra_compose("config", overrides=list(overrides))
        except HydraException as error:
            raise InputError(explain(error, overrides)) from error


def plain(config) -> dict:
    """The configuration as resolved plain values, without Hydra's own section. A missing `???` stays as it is."""
    if not isinstance(config, DictConfig):
        return config
    keys = [key for key in config if key != "hydra"]
    return OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True, throw_on_missing=False)


def build(node, **more):
    """The object a `_target_` node describes, None for None.

    Raises the FedserError that the object itself raised (Hydra would wrap it), InputError for anything else.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, **more) if node is not None else None
    except InstantiationException as error:
        if isinstance(error.__cause__, FedserError):
            raise error.__cause__ from None
        raise InputError(" ".join(str(error).split())) from error


def explain(error: Exception, overrides=()) -> str:
    """Hydra's own message in one line, with the nearest names for what was misspelt in the overrides."""
    message = " ".join(str(error).split("\n")[0].split())
    if message.startswith("Ambiguous value"):
        return f"{message} For a sweep over several values, begin with -m."
    known = _known_names()
    for override in overrides:
        name = override.lstrip("+~").split("=")[0]
        value = override.partition("=")[2]
        options = [path.stem for path in (directory() / name.split("@")[0]).glob("*.yaml")]
        wrong_options = [option for option in value.split(",") if options and option not in options]
        if wrong_options:
            near = difflib.get_close_matches(wrong_options[0], options, n=1)
            nearest = f"; did you mean {name}={near[0]}?" if near else "."
            return f"{name} has no option '{wrong_options[0]}'{nearest} There are: {', '.join(sorted(options))}."
        if name and not options and name not in known and not override.startswith(("+", "hydra")):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            nearest = f" Did you mean '{near[0]}'?" if near else ""
            return f"There is no key '{name}'.{nearest} (Hydra: {message})"
        if f"'{name}'" in message:
            return f"{message} Other options of {name.split('.')[0]}= have that key; the chosen one has not."
    return message


def _known_names() -> list[str]:
    names: set[str] = set()

    def walk(node, prefix):
        for key, value in node.items():
            path = f"{prefix}{key}"
            names.add(path)
            if isinstance(value, dict):
                walk(value, f"{path}.")

    for path in directory().rglob("*.yaml"):
        group = path.parent.relative_to(directory()).as_posix().replace("/", ".")
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if group == "experiment" or not isinstance(node, dict):
            continue
        node.pop("defaults", None)
        node.pop("hydra", None)
        names.add(group)
        walk(node, "" if group == "." else f"{group}.")
        if group == "attack":
            walk(node, f"attacks.{path.stem}.")
    return sorted(names - {"."})


def settle(config: DictConfig) -> dict:
    """Plain values, checked, with the settings that mean nothing taken out.

    Raises InputError naming the key and saying what to set instead.
    """
    try:
        settings = plain(config)
    except OmegaConfBaseException as error:
        raise InputError(" ".join(str(error).split())) from error
    _check_missing(settings)
    for key in ("attacks", "curve", "adaptive"):
        if isinstance(settings["evaluation"].get(key), str):
            settings["evaluation"][key] = [settings["evaluation"][key]]
    for attack in [settings["attack"], *settings["attacks"].values(), training_attack(settings)]:
        if attack and attack.get("eps") is not None and attack["name"] in identity.attacks_without_eps():
            log.warning("%s has no ε: attack.eps=%s is ignored", attack["name"], attack["eps"])
            attack["eps"] = None
    for part in (settings["attack"], settings["attacks"], settings["defence"]):
        _absolute_sources(part)
    _check_values(settings)
    _check_grid(settings["evaluation"]["grid"])
    _check_attacks(settings)
    return settings


def _absolute_sources(node) -> None:
    """Makes the `source` of attacks, a run's folder, absolute: workers have a working folder of their own."""
    if isinstance(node, dict):
        if isinstance(node.get("source"), str):
            node["source"] = str(Path(node["source"]).expanduser().absolute())
        for part in node.values():
            _absolute_sources(part)


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


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at_least(least):
    return lambda value: _number(value) and value >= least, f"must be a number of at least {least}"


def _whole(least):
    good = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least  # noqa: E731
    return good, f"must be a whole number of at least {least}"


def _positive():
    return lambda value: _number(value) and value > 0, "must be greater than 0"


def _fraction():
    return lambda value: _number(value) and 0 < value <= 1, "must be greater than 0 and at most 1"


def _one_of(*options):
    return lambda value: value in options, f"must be one of {', '.join(options)}"


CHECKS = {
    "rounds": _whole(1),
    "seed": _whole(0),
    "reuse": (lambda value: isinstance(value, bool), "must be true or false"),
    "resume": (lambda value: isinstance(value, bool), "must be true or false"),
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
    "client.tf32": (lambda value: isinstance(value, bool), "must be true or false"),
    "evaluation.precision": _one_of("fp32", "bf16"),
    "client.optimizer_state": _one_of("reset", "persist"),
    "strategy.fraction_train": _fraction(),
    "evaluation.attacks": (lambda value: isinstance(value, list), "must be a list of names, e.g. [fgsm,pgd]"),
    "evaluation.curve": (lambda value: isinstance(value, list), "must be a list of names, e.g. [fgsm,pgd]"),
    "evaluation.adaptive": (lambda value: isinstance(value, list), "must be a list of names, e.g. [pgd_strong]"),
    "evaluation.draws": _whole(1),
    "evaluation.fraction": _fraction(),
    "evaluation.gradients": (lambda value: isinstance(value, bool), "must be true or false"),
    "evaluation.utterances": (lambda value: isinstance(value, bool), "must be true or false"),
    "evaluation.example": (lambda value: isinstance(value, bool), "must be true or false"),
    "evaluation.batch_size": _whole(1),
    "simulation.num_cpus": _positive(),
    "simulation.backend": _one_of("ray", "serial"),
    "simulation.min_reply_fraction": _fraction(),
    "simulation.device": _one_of("auto", "cpu", "cuda"),
    "simulation.probe": (lambda value: isinstance(value, bool), "must be true or false"),
}
# Keys that may be null, or that not every option of their group has.
OPTIONAL_CHECKS = {
    "checkpoint.every": _whole(1),
    "evaluation.every": _whole(1),
    "evaluation.eps": _positive(),
    "evaluation.sanity.steps_factor": _whole(2),
    "evaluation.sanity.eps_factors": (
        lambda value: isinstance(value, list) and all(_number(factor) and factor > 0 for factor in value),
        "must be a list of factors greater than 0",
    ),
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
ATTACK_CHECKS = {
    "eps": _positive(),
    "alpha": _positive(),
    "steps": _whole(1),
    "overshoot": _at_least(0),
    "labels": (lambda value: value in ("predicted", "true", True), "must be predicted or true"),
}


def _check_values(settings: dict) -> None:
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


def _check_attacks(settings: dict) -> None:
    used = {"attack": settings["attack"]}
    used |= {f"attacks.{name}": attack for name, attack in agenda.attacks(settings).items()}
    if (training := settings["defence"]["training"]) is not None:
        used["defence.training.attack"] = training["attack"]
        if training["attack"]["name"] == "none":
            raise InputError(
                f"defence={settings['defence']['name']} trains against attack=none, which is no attack: "
                "choose one, e.g. attack=fgsm, or defence.training.attack='${attacks.fgsm}'."
            )
        for key, (good, must) in {
            "alpha": (lambda value: _number(value) and 0 <= value <= 1, "must lie between 0 and 1"),
            "pairing": _one_of("disjoint", "paired"),
            "start_round": _whole(1),
        }.items():
            if not good(training[key]):
                raise InputError(f"defence.training.{key}={training[key]} {must}.")
    for path, attack in used.items():
        for key, (good, must) in ATTACK_CHECKS.items():
            if attack.get(key) is not None and not good(attack[key]):
                raise InputError(f"{path}.{key}={attack[key]} {must}.")
        eps, alpha, steps = (attack.get(key) for key in ("eps", "alpha", "steps"))
        if None not in (eps, alpha, steps) and alpha * steps < eps:
            log.warning(
                "%s: %s steps of alpha=%g do not get as far as eps=%g (alpha=null: eps/4)", path, steps, alpha, eps
            )
