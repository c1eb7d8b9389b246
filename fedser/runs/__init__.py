"""Folders of runs, and the cache."""
