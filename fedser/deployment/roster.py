"""What clients say before a run begins, and what the server makes of it: a table of clips of which it knows the label.

With it everything else is as in a simulation, whose server looks at labels for nothing but counts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedser.config import identity
from fedser.config.settings import Settings
from fedser.data.corpora import Corpus
from fedser.data.partition import ClientSplit
from fedser.errors import InputError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Entry:
    """What a client tells: its name, the hash of its features, how many clips of each class each part has, and the
    speaker's sex as corpora have it, "f" or "m", where it is known and one."""

    name: str
    data: str
    counts: dict[str, dict[str, int]]
    sex: str | None = None

    @classmethod
    def of(cls, told: dict) -> "Entry":
        """From a reply's plain values."""
        return cls(told["name"], told["data"], json.loads(told["counts"]), told.get("sex") or None)

    def plain(self) -> dict:
        """As it travels."""
        return {"name": self.name, "data": self.data, "counts": json.dumps(self.counts), "sex": self.sex or ""}


class Told:
    """In place of a store of features: a row for each clip, of which the server knows class and client."""

    def __init__(self, table: pd.DataFrame, data: str, shape: tuple[int, ...], classes: list[str]):
        self.table, self.folder, self.shape, self.classes = table, Path(data), shape, classes
        self.base = "."

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """The class of each clip, int64 [clips]."""
        return self.table["label"].to_numpy()


@dataclass(frozen=True)
class Roster:
    """All clients of a run, in the order of their names."""

    entries: Sequence[Entry]

    def classes(self, settings: Settings) -> list[str]:
        """In the order of the logits: those of the settings, else all that the clients have, sorted.

        Raises InputError for a client with one that all others lack, which is a misspelt one more often than not, and
        for one without a clip.
        """
        has = {entry.name: {name for part in entry.counts.values() for name in part} for entry in self.entries}
        if empty := [name for name, found in has.items() if not found]:
            raise InputError(f"client '{empty[0]}' has no clips.")
        drop = settings.dataset.drop
        if settings.dataset.classes:
            return [name for name in settings.dataset.classes if name not in drop]
        every = sorted(set.union(*has.values()))
        for name in every:
            (first, *others) = [client for client, found in has.items() if name in found]
            if not others and len(has) > 1:
                raise InputError(
                    f"client '{first}' alone has the class '{name}': mend its labels, or name all classes in "
                    "dataset.classes=[…]."
                )
        return [name for name in every if name not in drop]

    def known(self, settings: Settings) -> tuple[Corpus, Told, list[ClientSplit]]:
        """What there is instead of a corpus, its features and its splits."""
        classes = self.classes(settings)
        rows, splits, at = [], [], 0
        for number, entry in enumerate(self.entries):
            places = []
            for part in PARTS:
                labels = [classes.index(name) for name, n in sorted(entry.counts[part].items()) for _ in range(n)]
                about = {"path": "", "speaker": entry.name, "client": entry.name, "sex": entry.sex}
                rows += [about | {"label": label, "emotion": classes[label]} for label in labels]
                places.append(np.arange(at, at := at + len(labels)))
            splits.append(ClientSplit(number, entry.name, *places))
        data = identity.digest({entry.name: entry.data for entry in self.entries})
        table = pd.DataFrame(rows)
        return (
            Corpus(settings.dataset.name, table, classes),
            Told(table, data, settings.features.shape, classes),
            splits,
        )

    def objection(self, told: dict) -> str:
        """Why a client that comes back may not go on; empty where it may."""
        entry = Entry.of(told)
        before = {each.name: each for each in self.entries}.get(entry.name)
        if before and before != entry:
            return f"client '{entry.name}' has other clips than when the run began: it is not asked any more."
        return ""
