"""Trained models in the cache, found by the hash of what made them, so that no model is trained twice.

An entry holds the weights of the rounds that were kept and the history of the training; it appears whole, by a rename.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fedser.errors import Interrupted
from fedser.runs import cache
from fedser.runs.checkpoint import State
from fedser.runs.files import replacing
from fedser.runs.folder import weights_file

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
LEARNT = ("train/", "selection/")  # figures of the training, whatever is measured


class Trained:
    """One trained model: weights by round, and one history row per round. Iterating gives what its training gave:
    (round, weights, row), weights None for rounds that were not kept."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def find(cls, key: str, rounds: Iterable[int | None]) -> "Trained | None":
        """The model with this key and the weights of these rounds, or None if it has to be trained.

        Damaged weights are dropped, with a warning, and so trained again.
        """
        model = cls(cache.folder("models", key))
        if not (model.folder / "history.jsonl").is_file():
            return None
        return model if all(model._whole(round) for round in rounds) else None

    def __iter__(self) -> Iterator[tuple[int, dict[str, np.ndarray] | None, dict]]:
        for line in (self.folder / "history.jsonl").read_text().splitlines():
            row = json.loads(line)
            file = weights_file(self.folder, row["round"])
            yield row["round"], load_file(file) if file.is_file() else None, row

    @property
    def raw(self) -> dict[str, np.ndarray]:
        """The last round's weights as the strategy left them."""
        return load_file(weights_file(self.folder, None))

    def kept(self, state: State) -> State:
        """A checkpoint's state: a replay goes on from the cache, and whatever was trained before it is of no use."""
        return replace(state, arrays={}, strategy={}, final={})

    def _whole(self, round: int | None) -> bool:
        file = weights_file(self.folder, round)
        if not file.is_file():
            return False
        try:
            with safe_open(file, framework="numpy"):  # checks the header and the length
                return True
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged (%s): the model is trained again", file, error)
            file.unlink(missing_ok=True)
            return False


def publish(key: str, kept: Path, history: list[dict]) -> None:
    """Makes a model available: the weights in the folder `kept`, and what its history says of the training.

    Where the model is there already with other rounds, ours are added.
    """
    target = cache.folder("models", key)
    with cache.publish(target) as made:
        for file in kept.glob("*.safetensors"):
            link(file, made / file.name)
            if target.is_dir():
                link(file, target / file.name)
        rows = [{name: row[name] for name in row if name == "round" or name.startswith(LEARNT)} for row in history]
        (made / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lock(key: str, stop: threading.Event) -> contextlib.ExitStack:
    """Waits until no other process trains this model, and then holds the lock until it is closed.

    Raises Interrupted when `stop` is set, InputError where the cache can't be written.
    """
    held, waited = contextlib.ExitStack(), False
    while True:
        try:
            held.enter_context(cache.lock(cache.folder("locks", f"model-{key}")))
            return held
        except BlockingIOError:
            if not waited:
                log.warning("another run is training this model: waiting for it (reuse=false trains regardless)")
            waited = True
        if stop.wait(POLL_SECONDS):
            raise Interrupted("stopped")


def link(file: Path, target: Path) -> None:
    """The same file under another name, replacing what is there; a copy where the file system has no such thing."""
    with replacing(target) as scratch:
        try:
            os.link(file, scratch)
        except OSError:
            shutil.copyfile(file, scratch)
