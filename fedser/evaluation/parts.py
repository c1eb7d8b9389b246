"""An evaluation under way, kept set of examples by set: interrupted, it goes on at the first that is missing."""

import base64
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedser.runs.files import dumps, write_whole

log = logging.getLogger(__name__)


@dataclass
class Part:
    """The clients' answers to one part of a protocol (see `Protocol.parts`), and how many seconds it took."""

    name: str
    answers: dict[str, dict] = field(default_factory=dict)
    example: str | None = None  # an .npz in base64
    seconds: float = 0.0

    def add(self, reply) -> None:
        """One client's reply."""
        self.answers[reply["name"]] = json.loads(reply["answer"])
        if "example" in reply:
            self.example = base64.b64encode(reply["example"]).decode()


class Parts:
    """The parts of one evaluation that are done, each a file in `folder`.

    `key` is the hash of everything that decides the answers: parts of another model or protocol are not used. `shown`
    is called with (name of the part, how many are done, their seconds) whenever a client has answered.
    """

    def __init__(self, folder: Path, key: str, shown: Callable[[str, float, float], None] = lambda *_: None):
        self.folder, self.key, self.shown = folder, key, shown
        self.done, self.seconds, self._last = 0, 0.0, time.monotonic()

    def read(self, name: str) -> Part | None:
        """A part that was measured before, or None."""
        try:
            content = json.loads(self._file(name).read_text())
            part = Part(**content["part"]) if content["key"] == self.key else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): this part is measured again", self._file(name), error)
            return None
        if part:
            self._count(part)
        return part

    def answered(self, part: Part, clients: int) -> None:
        """One more of so many clients has answered; with the last one the part is written. Raises OSError."""
        now = time.monotonic()
        if len(part.answers) < clients:
            self.shown(part.name, self.done + len(part.answers) / clients, self.seconds + now - self._last)
            return
        part.seconds, self._last = now - self._last, now
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(part.name), dumps({"key": self.key, "part": asdict(part)}).encode())
        self._count(part)

    def remove(self) -> None:
        """The record is whole: its parts are of no more use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _count(self, part: Part) -> None:
        self.done, self.seconds = self.done + 1, self.seconds + part.seconds
        self.shown(part.name, self.done, self.seconds)

    def _file(self, name: str) -> Path:
        # An attack's name may hold any sign and many of them.
        return self.folder / f"{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json"
