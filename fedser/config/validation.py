"""From a composed configuration to settings that have been checked, before anything is started.

What is cheap comes first: a wrong number is refused before a component's module, and with it torch, is imported.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedser.config import paths
from fedser.config.components import Component
from fedser.config.protocol import UNSEEN, Protocol, Protocols
from fedser.config.schema import shown
from fedser.config.settings import Settings
from fedser.errors import InputError, nearest

log = logging.getLogger(__name__)


def validate(config: DictConfig | dict) -> Settings:
    """The settings of a configuration, resolved and checked.

    Raises InputError naming the first key that is wrong and saying what to set instead.
    """
    try:
        settings = Settings.of(tidy(plain(config)))
    except OmegaConfBaseException as error:
        raise InputError(_explained(error, config)) from error
    _check_grid(settings.evaluation.grid or {})
    _check_training(settings)
    _check_target(settings)
    _check_training_norm(config, settings)
    protocols = Protocols.of(settings)
    _check_metric(settings, protocols.final)
    # Each under the key that a user would change it by.
    tested = [Component(f"attacks.{name}", name, attack.node) for name, attack in protocols.attacks.items()]
    used = [settings.attack, *(attack for attack in tested if attack.node != settings.attack.node)]
    for component in (*used, *settings.attacks.values(), *settings.components()):
        component.check()
    for attack in used:
        _check_norm(attack, settings)
        _warn_of_short_steps(attack)
    return settings


def _explained(error: OmegaConfBaseException, config: DictConfig) -> str:
    """What OmegaConf complains about, in one line; where a spectrogram's size is missing, why."""
    features, words = OmegaConf.select(config, "features.name"), " ".join(str(error).split())
    if "features.frames" in words or "features.mels" in words:
        return (
            f"features={features} has no frames and mels, which {error.full_key} goes by: choose features=logmel, or "
            "leave it out (of a defence at inference: defence=none, or defence/inference=null)."
        )
    return words


def plain(config: DictConfig | dict) -> dict:
    """The configuration as resolved plain values, without Hydra's own section. A missing `???` stays as it is."""
    if not isinstance(config, DictConfig):
        return config
    if "hydra" in config:
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)


def tidy(values: dict, quiet: bool = False) -> dict:
    """Plain values as they count: every key set, no ε where it means nothing, sources and folders absolute.

    Raises InputError for a key that still has to be set. `quiet` leaves out the warning about an ε.
    """
    _keep_parts(values.get("dataset"))
    for path, node in _nodes({key: value for key, value in values.items() if key != "attacks"}):
        if missing := [f"{path}{key}" for key, value in node.items() if value == "???"]:
            raise InputError(f"{missing[0]} must be set, e.g. {missing[0]}=…")
        if path == "partition.split." and isinstance(node.get("folder"), str):
            node["folder"] = str(Path(node["folder"]).expanduser().absolute())
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("checkpoint"), str):  # workers have another working folder
        model["checkpoint"] = str(Path(model["checkpoint"]).expanduser().absolute())
    modules = values.get("modules")
    folders = list(map(str, modules)) if isinstance(modules, list) else []
    for _, node in _nodes({key: values.get(key) for key in ("attack", "attacks", "defence")}):
        if isinstance(node.get("source"), str):  # a run's folder: workers have a working folder of their own
            node["source"] = str(Path(node["source"]).expanduser().absolute())
        if node.get("eps") is not None and has_no_budget(node.get("name"), folders):
            if not quiet:
                log.warning("%s has no ε: attack.eps=%s is ignored", node["name"], node["eps"])
            node["eps"] = None
    return values


def _keep_parts(dataset: Any) -> None:
    """Of all corpora that mixed ones could be made of, leaves those that are, their folders absolute.

    Raises InputError for a part that there is not.
    """
    if not isinstance(dataset, dict) or not isinstance(known := dataset.get("corpora"), dict):
        return
    parts = dataset["parts"] if isinstance(dataset.get("parts"), list) else []
    if strange := [name for name in map(str, parts) if name not in known]:
        near = nearest(strange[0], known, "; did you mean {}?") or "."
        raise InputError(f"dataset.parts: there is no corpus '{strange[0]}'{near} There are: {', '.join(known)}.")
    dataset["corpora"] = {name: dict(known[name]) for name in map(str, parts)}
    for node in dataset["corpora"].values():
        if node.get("root") not in (None, "???"):
            node["root"] = str(Path(node["root"]).expanduser().absolute())


def has_no_budget(name: str | None, folders: Sequence[str] = ()) -> bool:
    """Whether an attack's own file leaves `eps` null: it looks for the smallest perturbation."""
    file = paths.options("attack", folders).get(str(name))
    return file is not None and paths.content(file).get("eps", 0) is None


def _nodes(node, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every dictionary in nested ones, with the beginning of its keys: `defence.training.`."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}{key}.")


def _check_grid(grid: dict) -> None:
    """Raises InputError unless every key's values are free of repetitions, and its numbers in order."""
    for key, values in grid.items():
        if values is None:
            continue
        if len(set(map(str, values))) < len(values):
            raise InputError(f"evaluation.grid.{key}={shown(values)} must be a list without repetitions.")
        if all(type(value) in (int, float) for value in values) and list(values) != sorted(values):
            ordered = ",".join(f"{value:g}" for value in sorted(values))
            raise InputError(f"evaluation.grid.{key}={shown(values)} is out of order: [{ordered}].")


def _check_training(settings: Settings) -> None:
    """Raises InputError for a schedule that ends before the rounds do, and for a selection without anything to select
    by."""
    ends = settings.client.schedule.get("rounds")
    if isinstance(ends, int) and ends < settings.rounds:
        raise InputError(
            f"client.schedule.rounds={ends}: the learning rate would be at its lowest from there on, of rounds="
            f"{settings.rounds}. Leave it out: it is the number of rounds."
        )
    if settings.selection.name == "best" and not settings.partition.validated:
        raise InputError(
            "selection=best chooses by the clients' validation utterances, of which there are none: set "
            "partition.validation, e.g. partition.validation=0.2."
        )
    if settings.selection.name == "best" and settings.selection.every is None:
        raise InputError("selection.every=null: selection=best needs to know every how many rounds to look.")


def _check_target(settings: Settings) -> None:
    """Raises InputError where speakers are to be told apart by clients who know but one, or that nobody trains on."""
    if settings.dataset.target != "speaker":
        return
    chosen = settings.partition
    if chosen.component.get("_target_") == "fedser.data.partition.by_client" and settings.dataset.client == "speaker":
        raise InputError(
            f"dataset.target=speaker: with partition={chosen.name} each client has one speaker, and nothing to tell "
            "apart: set partition=iid partition.clients=10, or dirichlet or shards."
        )
    if chosen.split.get("_target_") == "fedser.data.split.speaker":
        raise InputError(
            f"dataset.target=speaker: partition/split={chosen.split.name} tests on speakers whom nobody trains on: set "
            "partition/split=random."
        )


def _check_training_norm(config: DictConfig | dict, settings: Settings) -> None:
    """Raises InputError where training would take the ε of the tested attack for one that is measured in another norm.

    Only where it is taken (`${attack.eps}`): an ε that was written there is meant, and so is a finished run's.
    """
    training, tested = settings.defence.training, settings.attack
    inner = training.get("attack") if training else None
    node = OmegaConf.select(config, "defence.training.attack") if isinstance(config, DictConfig) else None
    if not isinstance(inner, dict) or node is None or "eps" not in node or not OmegaConf.is_interpolation(node, "eps"):
        return
    own, other, taken = inner.get("norm"), tested.get("norm"), inner.get("eps")
    if taken is not None and tested.get("eps") is None and other is None:
        raise InputError(
            f"attack={tested.name} has no ε, and {training.key}.attack.eps would take attack.eps={shown(taken)} from "
            f"it: set {training.key}.attack.eps={shown(taken)} itself."
        )
    if taken is not None and own and other and own != other:
        raise InputError(
            f"attack.eps={shown(taken)} is of attack={tested.name}, which is bounded in {other}, and "
            f"{training.key}.attack.eps would take it for one in {own}: set {training.key}.attack.eps to a number of "
            f"its own, e.g. {training.key}.attack.eps=0.05."
        )


def _check_metric(settings: Settings, protocol: Protocol) -> None:
    """Raises InputError for an `optimized_metric` that no run under this protocol has, with the nearest names."""
    wanted = settings.optimized_metric
    conditions = [condition.name for condition in protocol.conditions]
    validated = [f"validation/{name}" for name in (conditions if protocol.validation else ["original"])]
    known = [f"{kind}/{name}" for kind in ("uar", "accuracy") for name in (*validated, *conditions)]
    known += [f"uar_sd/{name}" for name in conditions]
    if settings.detector:  # it watches the conditions without randomisation; clients' counts alone make no curve
        attacked = [each.attack for each in protocol.conditions if each.attack and not each.randomised]
        known += [f"detector/auc/{name}" for name in attacked if protocol.utterances] + ["detector/false_alarms"]
    unseen = [f"{kind}/{UNSEEN}{name}" for kind in ("uar", "accuracy") for name in (*validated, *conditions)]
    if wanted in (*known, *unseen) or any(wanted.startswith(f"recall/{name}/") for name in conditions):
        return
    near = nearest(wanted, known, "; did you mean {}?") or "."
    raise InputError(
        f"optimized_metric={wanted}: a run with these settings has no such metric{near} There are: {', '.join(known)}."
    )


def _check_norm(attack: Component, settings: Settings) -> None:
    """Raises InputError where an attack's norm is not that of its method, as the method's own file says."""
    method = (attack.get("method") or {}).get("_target_")
    for file in paths.options("attack", settings.modules).values():
        own = paths.content(file)
        if method and (own.get("method") or {}).get("_target_") == method and attack.get("norm") != own.get("norm"):
            raise InputError(
                f"{attack.key}.norm={attack.get('norm')}, but {method} is measured in {own['norm']} by what it does: "
                f"set {attack.key}.norm={own['norm']}, or {attack.key}.method._target_ to a method for "
                f"{attack.get('norm')}."
            )


def _warn_of_short_steps(attack: Component) -> None:
    eps, alpha, steps = (attack.get(key) for key in ("eps", "alpha", "steps"))
    if None not in (eps, alpha, steps) and alpha * steps < eps:
        log.warning(
            "%s: %s steps of alpha=%g do not get as far as eps=%g (alpha=null: eps/4)",
            attack.key, steps, alpha, eps,
        )  # fmt: skip
