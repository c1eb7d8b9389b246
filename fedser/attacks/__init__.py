"""Attacks on log-Mels: `adversary` is what every method is used through; one file per method that is our own."""

from fedser.attacks.adversary import CPU_CHUNK, Adversary, BudgetError, Defended, among, margin, undisturbed

__all__ = ["CPU_CHUNK", "Adversary", "BudgetError", "Defended", "among", "margin", "undisturbed"]
