"""Where an interrupted run goes on: all that its rounds so far have left, in one file that appears whole or not at all.

Random numbers need no saving: every draw derives from (seed, purpose, round, client). Clients' optimizer moments stay
in the clients' own files; a checkpoint says of which round they are.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedser.runs.files import write_whole

log = logging.getLogger(__name__)
KEPT = 2  # checkpoints on disk: the newest, and the one before should the newest be damaged


@dataclass
class State:
    """The state of a run after `round` rounds.

    arrays: the global weights ("parameters", "buffers"), the strategy's arrays ("strategy/…") and those of averaging
        and selection ("final/…"); empty in a run that replays a trained model.
    strategy: the rest of the strategy's state (`strategies.state`).
    final: the rest of what says which model the training ends with (`course.Final.state`).
    moments: per client the round after which its optimizer moments were saved, 0 for never.
    history: the rows of `history.jsonl`.
    train_seconds: per round.
    seconds: how long the run has taken so far, over all its attempts.
    resumed: after which rounds it was taken up again.
    """

    round: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    strategy: dict = field(default_factory=dict)
    final: dict = field(default_factory=dict)
    moments: list[int] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    train_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    resumed: list[int] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run in `folder`; `identity` is the hash of its configuration and data."""

    def __init__(self, folder: Path, identity: str):
        self.folder, self.identity = folder, identity

    def save(self, state: State) -> None:
        """Writes a checkpoint and drops all but the newest two. Raises OSError, the older ones untouched."""
        plain = {key: value for key, value in vars(state).items() if key != "arrays"}
        about = {"identity": self.identity, "digest": digest(state.arrays), "state": plain}
        # The digest makes a file that a power cut tore tell on itself, so there is no waiting for the disk here.
        content = save(state.arrays, metadata={"fedser": json.dumps(about)})
        write_whole(self.folder / f"round-{state.round:05d}.safetensors", content)
        for old in self._files()[KEPT:]:
            old.unlink(missing_ok=True)

    def newest(self, objection: Callable[[State], str | None]) -> State | None:
        """The newest whole checkpoint of this run without an objection, or None. Each refused is logged with why."""
        for file in self._files():
            state, reason = self._read(file)
            reason = reason or objection(state)
            if reason is None:
                return state
            log.warning("the checkpoint %s can't be used: %s", file, reason)
        return None

    def _read(self, file: Path) -> tuple[State | None, str | None]:
        try:
            with safe_open(file, framework="numpy") as content:
                about = json.loads(content.metadata()["fedser"])
                arrays = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            if about["identity"] != self.identity:
                return None, "it is of another configuration or other data"
            if about["digest"] != digest(arrays):
                return None, "it is damaged (its content does not match its digest)"
            return State(arrays=arrays, **about["state"]), None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            return None, f"it is damaged ({error})"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.safetensors"), reverse=True)


def digest(arrays: dict[str, np.ndarray]) -> str:
    """Thirty-two hexadecimal digits of names and contents."""
    total = hashlib.blake2b(digest_size=16)
    for key in sorted(arrays):
        total.update(key.encode())
        total.update(np.ascontiguousarray(arrays[key]).data)
    return total.hexdigest()
