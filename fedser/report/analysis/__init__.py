"""Runs → models → estimates → comparisons: what belongs together, and how far to trust it."""
