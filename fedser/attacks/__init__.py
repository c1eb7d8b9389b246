"""Attacks on log-Mels: `adversary` is what every method is used through; one file per method that is our own."""

import importlib
import sys
import types
from pathlib import Path

import scipy

from fedser.attacks.adversary import CPU_CHUNK, Adversary, BudgetError, Defended, among, margin, undisturbed

__all__ = ["CPU_CHUNK", "Adversary", "BudgetError", "Defended", "among", "margin", "undisturbed"]


def _later(name: str, *functions: str) -> types.ModuleType:
    """A module that is imported when something of it is used; these functions, when they are called.

    Not `importlib.util.LazyLoader`: Hydra looks through the names of all modules, which is a use to it.
    """
    later = types.ModuleType(name)

    def found(attribute: str):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is later:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    later.__getattr__ = found
    for function in functions:
        setattr(
            later, function, lambda *arguments, function=function, **options: found(function)(*arguments, **options)
        )
    return sys.modules.setdefault(name, later)


# torchattacks imports all of its attacks, one of them scipy.stats and another scipy.optimize: a second in each process.
if not {"torchattacks", "scipy.stats"} & set(sys.modules):
    scipy.stats = _later("scipy.stats")
    scipy.stats.__path__ = [str(Path(scipy.__file__).parent / "stats")]
    _later("torchattacks.attacks._differential_evolution", "differential_evolution")
