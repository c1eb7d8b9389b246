"""Clients' updates, kept for who studies what they give away: what a client sends less what it was sent.

The server of a federation sees them all; `checkpoint.updates` keeps so many of each client's first in the run's folder,
`updates/round-NNNNN.safetensors`, a vector of parameters [P] under each client's name.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from fedser.errors import InputError
from fedser.runs.files import write_whole


def folder(run: Path) -> Path:
    """Where a run keeps them."""
    return run / "updates"


class Updates:
    """Those of a training under way, in `folder`, at most `each` of a client."""

    def __init__(self, folder: Path, each: int):
        self.folder, self.each = folder, each

    def add(self, round: int, client: str, update: np.ndarray) -> None:
        """Keeps a client's update [P] of a round, if it is one of its first. Raises OSError."""
        file = self.folder / f"round-{round:05d}.safetensors"
        before = Counter(name for other in _files(self.folder) if other < file for name in _names(other))
        if before[client] < self.each:
            own = load_file(file) if file.is_file() else {}
            write_whole(file, save(own | {client: update.astype(np.float32)}))


def read(run: Path) -> dict[str, list[np.ndarray]]:
    """Per client its updates [P], in the order of the rounds. Raises InputError where a run has kept none."""
    found: dict[str, list[np.ndarray]] = {}
    try:
        for file in _files(folder(run)):
            for client, update in sorted(load_file(file).items()):
                found.setdefault(client, []).append(update)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged ({error}): train the run again in a new folder.") from error
    if not found:
        raise InputError(
            f"{run} has kept no updates of its clients: train it with checkpoint.updates=10 (reuse=false where it is "
            "there already)."
        )
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="numpy") as found:
        return list(found.keys())
