"""Weights of pretrained backbones, from local files only: nothing is ever fetched, and nothing in a file is run."""

import argparse
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedser.errors import InputError

SHOWN = 6  # names of weights in a message
OPTIMIZERS = ("optimizers.", "s3prl.optimizers.", "torch.optim.")  # modules of classes in old checkpoints of s3prl's


class Inert:
    """Stands in for an optimizer in a pickle: takes whatever state it is given, and does nothing with it."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


def config(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """The settings in a folder that `save_pretrained` of `transformers` made. Raises InputError for another kind's."""
    if not folder.is_dir():
        words = f"{folder} is a file, where model.backbone={name} needs a folder as `save_pretrained` makes it."
        raise InputError(words if folder.exists() else _missing(folder))
    found = _json(folder / "config.json")
    if found.get("model_type") != kind:
        other = found.get("model_type", "nothing that its config.json names")
        raise InputError(f"{folder} holds {other}, where model.backbone={name} was asked for.")
    return found


def preprocessor(folder: Path) -> dict[str, Any]:
    """What a folder says of the waveforms that it wants; nothing where it does not."""
    file = folder / "preprocessor_config.json"
    return _json(file) if file.is_file() else {}


def tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights in a folder by name, without the prefix under which the backbone stands in a larger model."""
    found: dict[str, Tensor] = {}
    for file in _weights(folder):
        found |= _safetensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in found)), "")
    return {name.removeprefix(prefix): value for name, value in found.items()}


def s3prl(file: Path, name: str) -> dict[str, Any]:
    """The content of a checkpoint of s3prl's, of the kind that was asked for. Raises InputError for any other."""
    if not file.is_file():
        raise InputError(f"{file} is a folder, s3prl's checkpoints are files." if file.is_dir() else _missing(file))
    content = _unpickled(file)
    kinds = {"tera": "Transformer" in content, "apc": "model" in content and "config" in content}
    found = next((kind for kind, fits in kinds.items() if fits), "neither an APC nor a TERA of s3prl's")
    if found != name:
        raise InputError(f"{file} holds {found}, where model.backbone={name} was asked for.")
    return content


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path, unneeded: tuple[str, ...]) -> None:
    """Copies weights into a network. Raises InputError naming those that are missing, unexpected or of other shapes."""
    weights = {name: value for name, value in weights.items() if not name.startswith(unneeded)}
    own = network.state_dict()
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    faults = {
        "lacks": [name for name in own if name not in weights],
        "has unexpectedly": [name for name in weights if name not in own],
        "has in another shape": [f"{name} {[*weights[name].shape]} for {[*own[name].shape]}" for name in shapes],
    }
    words = [f"{fault} {_some(names)}" for fault, names in faults.items() if names]
    if words:
        raise InputError(f"{path} does not fit the backbone: it {', '.join(words)}.")
    network.load_state_dict(weights)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _missing(path: Path) -> str:
    return f"There is no checkpoint at {path}: model.checkpoint is a local path, of what was downloaded before."


def _weights(folder: Path) -> list[Path]:
    """The files with the weights in a folder, safetensors rather than pickles; several where they are large."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise InputError(f"{folder} has neither model.safetensors nor pytorch_model.bin: there are no weights in it.")
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read ({error}): the folder is no complete checkpoint.") from error


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged ({error}).") from error


def _unpickled(file: Path) -> dict[str, Any]:
    """A pickle of tensors and plain containers; classes in it are refused, but for those that hold settings.

    Old checkpoints of s3prl hold an optimizer: an inert one stands in for it.
    """
    allowed: list[Any] = [argparse.Namespace]
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                content = torch.load(file, map_location="cpu", weights_only=True)
            break
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
            if wanted is None or not wanted[1].startswith(OPTIMIZERS) or (Inert, wanted[1]) in allowed:
                raise InputError(f"{file} is refused: {_reason(wanted)}.") from None
            allowed.append((Inert, wanted[1]))
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{file} is damaged, or no checkpoint ({' '.join(str(error).split()) or 'it ends early'})."
            ) from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, where a checkpoint is a dictionary.")
    return content


def _reason(wanted: re.Match | None) -> str:
    return f"to read it, {wanted[1]} would be run" if wanted else "it is no pickle of tensors and plain values"
