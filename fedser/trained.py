"""Trained models in the cache, found by the hash of what made them, so that no model is trained twice.

An entry holds the weights of every evaluated round and the history of the training; it appears whole, by a rename.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from fedser import cache
from fedser.errors import InputError

log = logging.getLogger(__name__)


class Trained:
    """One trained model: weights by round, and one history row per round."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def find(cls, key: str, rounds: Iterable[int]) -> "Trained | None":
        """The model with this key and the weights of these rounds, or None if it has to be trained.

        Damaged weights are dropped, with a warning, and so trained again.
        """
        model = cls(cache.folder("models", key))
        if not (model.folder / "history.jsonl").is_file():
            return None
        return model if all(model._whole(round) for round in rounds) else None

    def replay(self) -> Iterator[tuple[int, dict[str, np.ndarray] | None, dict]]:
        """Yields (round, weights, row) as the training did; weights are None for rounds that were not kept."""
        for line in (self.folder / "history.jsonl").read_text().splitlines():
            row = json.loads(line)
            file = self.file(row["round"])
            yield row["round"], load_file(file) if file.is_file() else None, row

    def file(self, round: int) -> Path:
        """Where the weights after `round` are, if they were kept."""
        return self.folder / f"round-{round:05d}.safetensors"

    def _whole(self, round: int) -> bool:
        file = self.file(round)
        if not file.is_file():
            return False
        try:
            with safe_open(file, framework="numpy"):  # checks the header and the length
                return True
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged (%s): the model is trained again", file, error)
            file.unlink(missing_ok=True)
            return False


class Recording(Trained):
    """A model under training: visible to others once `publish` has been called, gone after `discard`."""

    def __init__(self, key: str):
        self._target = cache.folder("models", key)
        try:
            super().__init__(cache.scratch(self._target))
        except OSError as error:
            raise InputError(f"The cache {self._target.parent} can't be written: {error}. Set FEDSER_CACHE.") from error

    def add(self, round: int, weights: dict[str, np.ndarray] | None, row: dict) -> None:
        """Keeps one more round. Raises OSError when the disk is full."""
        if weights is not None:
            save_weights(weights, self.file(round))
        with (self.folder / "history.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def publish(self) -> None:
        """Makes the model available; where it is there already with other rounds, adds ours."""
        if self._target.is_dir():
            for file in self.folder.glob("round-*.safetensors"):
                file.replace(self._target / file.name)
        cache.install(self.folder, self._target)
        self.folder = self._target

    def discard(self) -> None:
        """Removes what was not published."""
        if self.folder != self._target:
            cache.remove(self.folder)


def save_weights(weights: dict[str, np.ndarray], file: Path) -> None:
    """Packed weights as a safetensors file. Raises OSError when the disk is full (safetensors' own writer does not)."""
    file.write_bytes(save(weights))
