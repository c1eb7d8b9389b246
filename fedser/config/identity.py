"""A run's identity: the hash of all that can change a number in its results, in its configuration and its code.

Training and evaluation have hashes of their own: runs that differ only in what they measure share one trained model.
Everything counts, but what is listed here: a setting that nobody thought of makes another run, never a wrong one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from fedser import __version__
from fedser.config import paths, sources
from fedser.config.components import Component, targets
from fedser.config.protocol import Protocols
from fedser.config.settings import Settings
from fedser.runs import files

# What cannot change a number: where clients run and how many at a time (but for the kind of device, how many may
# fail and how many are trained in one step), what is kept, shown or reused, and names that only people read.
IDLE = ("simulation", "logger", "reuse", "resume", "checkpoint", "optimized_metric", "modules", "variant")
IDLE_OF_CLIENT = ("timeout", "state_folder")
IDLE_OF_DATASET = ("credit", "language_code")  # and of each part of mixed ones
# What is done with a trained model: of no effect on its weights.
MEASURED = ("evaluation", "attack", "attacks", "defence", "detector")


def training(settings: Settings) -> dict:
    """All that decides the trained weights."""
    idle = (settings.logger, settings.defence.inference, settings.detector)
    used = [component for component in settings.components() if component not in idle]
    plain = {key: value for key, value in settings.plain.items() if key not in (*IDLE, *MEASURED)}
    plain["client"] = {key: value for key, value in plain["client"].items() if key not in IDLE_OF_CLIENT}
    if settings.model.checkpoint:
        plain["model"] = plain["model"] | {"checkpoint": files.content_digest(settings.model.checkpoint)}
    plain["dataset"] = _dataset(plain["dataset"])
    if settings.simulation.backend == "deploy":  # clips lie where the clients are
        plain["dataset"] = plain["dataset"] | {"root": None}
    elif settings.dataset.root:
        plain["dataset"] = plain["dataset"] | {"root": str(Path(settings.dataset.root).expanduser().absolute())}
    if "split" in plain["partition"]:
        plain["partition"] = plain["partition"] | {"split": _essence(plain["partition"]["split"])}
    defence = settings.defence.training
    selected_under = [Protocols.of(settings).attacks[name] for name in filter(None, [settings.selection.attack])]
    used += selected_under
    return plain | {
        "version": __version__,
        "code": code(used, sources.SILENT_IN_TRAINING),
        "defence": _essence(defence.node) if defence else None,
        "selected_under": [_essence(attack.node) for attack in selected_under],
        "device": device(settings),
        "min_reply_fraction": settings.simulation.min_reply_fraction,
        "stacked": settings.simulation.stacked,
    }


def measured(settings: Settings, attacks: dict[str, Component]) -> dict:
    """All that decides the figures of a trained model; `attacks` are those of the protocol."""
    inference, detector = settings.defence.inference, settings.detector
    watching = {"detector": detector.node} if detector else {}
    return watching | {
        "evaluation": settings.plain["evaluation"],
        "attacks": {name: _essence(attack.node) for name, attack in attacks.items()},
        "inference": inference.node if inference else None,
        "code": code([*attacks.values(), *filter(None, [inference, detector])], sources.SILENT),
    }


def everything(settings: Settings) -> dict:
    """`training` and what is measured afterwards."""
    return {"training": training(settings)} | measured(settings, Protocols.of(settings).attacks)


def code(components: Iterable[Component], silent: tuple[str, ...]) -> dict[str, str]:
    """The hashes of fedser's own source and of that of components from outside, by module."""
    found = [target for component in components for target in targets(component.node)]
    return {"fedser": sources.own(silent)} | sources.foreign(found)


def digest(part: dict) -> str:
    """Sixteen hexadecimal digits, the same for the same content in any order of keys."""
    text = json.dumps(part, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def run_name(settings: Settings) -> str:
    """The run's folder: readable words and a hash, no timestamp, so that the same command finds it again."""
    eps, strategy = settings.attack.get("eps"), settings.strategy.name
    words = [
        corpus(settings.dataset.name, settings.dataset.root),
        settings.model.name,
        f"{settings.attack.name}{eps if eps is not None else ''}",
        _defence(settings),
        *([strategy] if strategy != "fedavg" else []),
        f"seed{settings.seed}",
        digest(everything(settings)),
    ]
    return "-".join(words)


def _defence(settings: Settings) -> str:
    """The defence's name, with those of components that its own file does not choose."""
    defence = settings.defence
    file = paths.options("defence", settings.modules).get(defence.name)
    chosen = {}
    for item in paths.content(file).get("defaults", []) if file else []:
        chosen |= item if isinstance(item, dict) else {}
    parts = {"training": defence.training, "inference": defence.inference}
    others = [part.name for key, part in parts.items() if part and file and part.name != chosen.get(key)]
    return "-".join([defence.name, *others])


def corpus(name: str, root: str | None) -> str:
    """What people call the corpus: a manifest is named by its file, or by the folder where that says nothing."""
    if name != "manifest" or not root:
        return name
    file = Path(root).expanduser().absolute()
    chosen = file.parent.name if file.stem.lower() in ("manifest", "index", "metadata", "clips") else file.stem
    return re.sub(r"[^\w.+-]+", "_", chosen) or name


def device(settings: Settings) -> str:
    """`cpu` or `cuda`: float results differ between them, so the kind belongs to the run's identity.

    Looks at the driver's file and not at torch, whose import would make naming a folder take seconds.
    """
    wanted = settings.simulation.device
    if wanted != "auto":
        return wanted
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
    return "cuda" if visible and Path("/proc/driver/nvidia/version").exists() else "cpu"


def _dataset(node: dict) -> dict:
    """A corpus's settings as they count, those of each part of mixed ones likewise."""
    counted = {key: value for key, value in node.items() if key not in IDLE_OF_DATASET}
    parts = node.get("corpora")
    return counted | ({"corpora": {name: _dataset(part) for name, part in parts.items()}} if parts else {})


def _essence(node):
    """A component's settings as they count: the content of the run that an attack is made on, or of the lists that a
    split goes by, not where they lie."""
    if isinstance(node, dict):
        node = {key: _essence(value) for key, value in node.items()}
        if isinstance(node.get("source"), str):
            node["source"] = _content(node["source"])
        if isinstance(node.get("folder"), str) and (lists := sorted(Path(node["folder"]).glob("*.jsonl"))):
            node["folder"] = [hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() for file in lists]
    return node


def _content(folder: str) -> str:
    """The hash of a run's weights; the folder itself where there are none, which the attack will complain about."""
    try:
        weights = (Path(folder) / "model.safetensors").read_bytes()
    except OSError:
        return folder
    return hashlib.blake2b(weights, digest_size=8).hexdigest()
