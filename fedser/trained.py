"""Trained models in the cache, found by the hash of what made them, so that no model is trained twice.

An entry holds the weights of every evaluated round and the history of the training; it appears whole, by a rename.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from fedser import cache


class Trained:
    """One trained model: weights by round, and one history row per round."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def find(cls, key: str) -> "Trained | None":
        """The model with this key, or None if nobody has trained it yet."""
        folder = cache.folder("models", key)
        return cls(folder) if (folder / "history.jsonl").is_file() else None

    def replay(self) -> Iterator[tuple[int, dict[str, np.ndarray] | None, dict]]:
        """Yields (round, weights, row) as the training did; weights are None for rounds that were not kept."""
        for line in (self.folder / "history.jsonl").read_text().splitlines():
            row = json.loads(line)
            file = self._file(row["round"])
            yield row["round"], load_file(file) if file.is_file() else None, row

    def add(self, round: int, weights: dict[str, np.ndarray] | None, row: dict) -> None:
        """Keeps one round of a training under way."""
        if weights is not None:
            save_weights(weights, self._file(round))
        with (self.folder / "history.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _file(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.safetensors"


def save_weights(weights: dict[str, np.ndarray], file: Path) -> None:
    """Packed weights as a safetensors file. Raises OSError when the disk is full (safetensors' own writer does not)."""
    file.write_bytes(save(weights))


@contextlib.contextmanager
def record(key: str) -> Iterator[Trained]:
    """A model under training; published under `key` if the block ends well, gone otherwise."""
    with cache.publish(cache.folder("models", key)) as folder:
        yield Trained(folder)
