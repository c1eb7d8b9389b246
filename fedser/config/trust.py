"""Components named by a file that somebody else may have made: whose code is run to build them.

A model's file names classes, and to build a class runs code. fedser's networks, defences and normalisations and torch's
layers do no harm when they are made; for any other code the user must say that she trusts it.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from fedser.config import components, sources
from fedser.errors import InputError

HARMLESS = ("fedser.models", "fedser.defences", "fedser.features", "torch.nn")


def check(node: dict, modules: Sequence[str], file: Path) -> None:
    """Raises InputError unless every `_target_` in `node` is a harmless class or code of `modules`.

    modules: folders of modules, or names of installed ones.
    file: where the node comes from, for the message.

    Each is looked at as it is written, before anything is imported, and once more by where what was found there comes
    from: `torch.nn.modules.module.warnings.sys` would be found too.
    """
    if "${" in json.dumps(node):  # an interpolation could make a `_target_` that is not seen here
        raise InputError(f"{file} has an interpolation among its settings, which fedser does not write.")
    for target in components.targets(node):
        ours, hers = _ours(target), _hers(target, modules)
        if ours or hers:
            found = components.locate(target, str(file))
            home = getattr(found, "__module__", None) or ""
            ours, hers = _ours(home) and inspect.isclass(found), _hers(home, modules)
        if not (ours or hers):
            raise InputError(
                f"{file} wants to run {target}, code from outside fedser. If you know whose it is and trust it: "
                "fedser.load(…, modules=[its folder, or its module's name]), fedser-predict --config-dir FOLDER."
            )


def _ours(name: str) -> bool:
    return any(_begins(name, module) for module in HARMLESS)


def _hers(name: str, modules: Sequence[str]) -> bool:
    return any(_lies_in(name, Path(module)) if Path(module).is_dir() else _begins(name, module) for module in modules)


def _begins(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def _lies_in(name: str, folder: Path) -> bool:
    """Whether the module that an import path begins with is found in this folder."""
    places = filter(None, sources.places(name.partition(".")[0]))
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places)
