"""The field: all corruptions of a run, as they hold for each of its clients."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedser.config import components, sources
from fedser.config.components import Component
from fedser.config.identity import digest
from fedser.config.settings import Settings
from fedser.errors import InputError
from fedser.randomness import derive

KINDS = ("labels", "waveforms", "rounds")  # of what a corruption can be


@dataclass(frozen=True, eq=False)
class Field:
    """The corruptions by name, and the settings that they are made from; all draws derive from `seed`.

    A corruption is handed what it corrupts, a generator of the client's, which begins anew each time, and one of the
    clip's or the round's.
    """

    corruptions: Mapping[str, Any]
    nodes: Mapping[str, dict]
    seed: int

    @classmethod
    def of(cls, settings: Settings, classes: int) -> "Field":
        """That of a run with so many classes."""
        made = {name: built(component, classes) for name, component in settings.corruption.items()}
        return cls(made, {name: component.node for name, component in settings.corruption.items()}, settings.seed)

    def names(self, kind: str) -> list[str]:
        """The names of the corruptions of this kind."""
        return [name for name, corruption in self.corruptions.items() if corruption.of == kind]

    def dealt(self, splits: Iterable, labels: np.ndarray) -> tuple[list, np.ndarray]:
        """The clients' splits without clips whose labels are missing, and all labels [N] as the clients have them.

        Raises InputError naming a client that is left without clips.
        """
        splits, labels = list(splits), labels.copy()
        for place, split in enumerate(splits):
            rows = split.train
            for name in self.names("labels"):
                labels[rows] = self._applied(name, split.name, labels[rows])
                rows = rows[labels[rows] >= 0]
                if len(split.train) and len(rows) < 2:
                    raise InputError(
                        f"corruption.{name} leaves client '{split.name}' {len(rows)} of {len(split.train)} clips to "
                        "train on, too few: lower its rate, or have fewer clients."
                    )
            splits[place] = replace(split, train=rows)
        return splits, labels

    def recorded(self, splits: Iterable) -> "Recorded | None":
        """What the clients' training clips sound like; None where nothing is on the waveform."""
        chosen = {name: self.nodes[name] for name in self.names("waveforms")}
        if not chosen:
            return None
        code = sources.foreign(components.targets(list(chosen.values())))
        rows = {int(row): (split.name, place) for split in splits for place, row in enumerate(split.train)}
        return Recorded(self, rows, digest({"corruption": chosen, "code": code, "seed": self.seed, "rows": rows}))

    def present(self, clients: Sequence[str], round: int) -> list[str]:
        """Of the clients that are asked in a round those that answer: one at least, drawn where none would."""
        chosen = self.names("rounds")
        here = [each for each in clients if all(self._applied(name, each, round, round) for name in chosen)]
        lone = np.random.default_rng(derive(self.seed, "corruption", round)).integers(len(clients))
        return here or [clients[lone]]

    def _applied(self, name: str, client: str, given: Any, *place: int) -> Any:
        keys = (self.seed, "corruption", name, client)
        generators = (np.random.default_rng(derive(*key)) for key in (keys, (*keys, "each", *place)))
        return self.corruptions[name](given, *generators)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A waveform as its client recorded it: `rows` says of which client it is, and which of its training clips; `key`
    is the hash of all that decides it."""

    field: Field
    rows: Mapping[int, tuple[str, int]]
    key: str

    def __call__(self, row: int, waveform: np.ndarray) -> np.ndarray:
        """Waveform [samples] of this row → the same, as it is where nobody trains on it."""
        if row in self.rows:
            client, place = self.rows[row]
            for name in self.field.names("waveforms"):
                waveform = self.field._applied(name, client, waveform, place)
        return waveform


def built(component: Component, classes: int) -> Any:
    """A corruption, told of the classes if it wants to know. Raises InputError where it does not say what it is of."""
    taken = components.parameters(components.locate(component.target, component.key))
    made = component.build(**({"classes": classes} if "classes" in taken else {}))
    if getattr(made, "of", None) not in KINDS:
        raise InputError(f"{component.key}: {component.target}.of must be one of {', '.join(KINDS)}: what it corrupts.")
    return made


def check(corruption: Any, classes: int) -> None:
    """Raises InputError where a corruption, tried on a little, gives back what can't be used."""
    client, random = map(np.random.default_rng, (1, 2))
    if corruption.of == "rounds":
        if not isinstance(corruption(1, client, random), bool | np.bool_):
            raise InputError("it must return true or false")
        return
    little = {"labels": np.arange(16) % classes, "waveforms": random.uniform(-1, 1, 8000).astype(np.float32)}
    given = little[corruption.of]
    made = corruption(given.copy(), client, random)
    if not isinstance(made, np.ndarray) or made.shape != given.shape or made.dtype != given.dtype:
        raise InputError(f"it must return {given.dtype} of the shape that it is given, {list(given.shape)}")
    if not np.isfinite(made).all() or (corruption.of == "labels" and not ((made >= -1) & (made < classes)).all()):
        raise InputError(f"it must return labels from 0 to {classes - 1}, or −1, and samples without NaN")
