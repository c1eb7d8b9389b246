"""What a run is: the hash of everything in its configuration that can change a number in its results.

Training and evaluation are told apart, so that runs which differ only in what they measure share one trained model.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

from fedser import __version__
from fedser.errors import InputError

IDLE = ("timeout", "state_folder")  # of `client`: they change where and whether, not what
TRAINING = ("seed", "rounds", "features", "partition", "model", "client", "strategy")


def training(settings: dict) -> dict:
    """The part of the settings that decides the trained weights."""
    return {
        "version": __version__,
        **{key: settings[key] for key in TRAINING},
        "client": {key: value for key, value in settings["client"].items() if key not in IDLE},
        "dataset": _dataset(settings["dataset"]),
        "defence": _essence(settings["defence"]["training"]),
        "device": device(settings),
        "min_reply_fraction": settings["simulation"]["min_reply_fraction"],
    }


def everything(settings: dict) -> dict:
    """`training` and what is measured afterwards."""
    return {"training": training(settings)} | measured(settings)


def measured(settings: dict) -> dict:
    """The part of the settings that decides what is measured on a trained model."""
    return {
        "evaluation": settings["evaluation"],
        "attacks": {name: _essence(attack) for name, attack in _tested(settings).items()},
        "inference": settings["defence"]["inference"],
    }


def digest(part: dict) -> str:
    """Sixteen hexadecimal digits, the same for the same content in any order of keys."""
    text = json.dumps(part, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def run_name(settings: dict) -> str:
    """The run's folder: readable words and a hash, no timestamp, so that the same command finds it again."""
    attack = settings["attack"]
    eps = attack.get("eps") if attack["name"] not in attacks_without_eps() else None
    words = [
        settings["dataset"]["name"],
        settings["model"]["name"],
        f"{attack['name']}{eps if eps is not None else ''}",
        settings["defence"]["name"],
        *([settings["strategy"]["name"]] if settings["strategy"]["name"] != "fedavg" else []),
        f"seed{settings['seed']}",
        digest(everything(settings)),
    ]
    return "-".join(str(word) for word in words)


def device(settings: dict) -> str:
    """`cpu` or `cuda`: float results differ between them, so the kind belongs to the run's identity.

    Looks at the driver's file and not at torch, whose import would make naming a folder take seconds.
    """
    wanted = settings["simulation"]["device"]
    if wanted != "auto":
        return wanted
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
    return "cuda" if visible and Path("/proc/driver/nvidia/version").exists() else "cpu"


@functools.cache
def attacks_without_eps() -> frozenset[str]:
    """Attacks whose own file leaves `eps` null: they look for the smallest perturbation and have no budget."""
    from omegaconf import OmegaConf

    from fedser.config.compose import directory

    files = {path.stem: OmegaConf.load(path) for path in (directory() / "attack").glob("*.yaml")}
    return frozenset(name for name, file in files.items() if file.get("eps") is None)


def _essence(node):
    """An attack's settings (or what contains some) as they count: without an ε that means nothing, and with the
    content of the model that a transfer attack is made on, in place of where it lies."""
    if isinstance(node, dict):
        node = {key: _essence(value) for key, value in node.items()}
        if node.get("name") in attacks_without_eps() and "eps" in node:
            node["eps"] = None
        if isinstance(node.get("source"), str):
            node["source"] = _content(node["source"])
    return node


def _content(folder: str) -> str:
    """The hash of a run's weights; the folder itself where there are none, which the attack will complain about."""
    try:
        weights = (Path(folder) / "model.safetensors").read_bytes()
    except OSError:
        return folder
    return hashlib.blake2b(weights, digest_size=8).hexdigest()


def _dataset(dataset: dict) -> dict:
    root = dataset.get("root")
    return dataset | {"root": str(Path(root).expanduser().absolute()) if root not in (None, "???") else root}


def _tested(settings: dict) -> dict:
    """The attacks on the agendas; a name that is none is left for `config.settle` to complain about."""
    from fedser.config import protocol

    try:
        return protocol.attacks(settings)
    except (InputError, KeyError, TypeError, AttributeError):
        return {"evaluation": settings["evaluation"], "attack": settings["attack"]}
