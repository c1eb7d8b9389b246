"""Attacks on log-Mels: `adversary` is what every method is used through; one file per method that is our own."""

import importlib.util
import sys

import scipy

from fedser.attacks.adversary import CPU_CHUNK, Adversary, BudgetError, Defended, among, margin, undisturbed

__all__ = ["CPU_CHUNK", "Adversary", "BudgetError", "Defended", "among", "margin", "undisturbed"]


# torchattacks imports all of its attacks, and one of them scipy.stats: a second, for what is loaded when it is used.
if not {"torchattacks", "scipy.stats"} & set(sys.modules):
    _spec = importlib.util.find_spec("scipy.stats")
    _spec.loader = importlib.util.LazyLoader(_spec.loader)
    scipy.stats = sys.modules["scipy.stats"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(scipy.stats)
