"""Normalisation of log-Mels, with global statistics that come from the clients as sums, never from pooled data.

A normalisation is chosen by `features/normalisation`; it makes each client's `Normaliser`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedser.config.schema import Positive


@dataclass(frozen=True)
class Sums:
    """Per mel bin, over all training frames: what a client tells the server. Arrays [mels], float64."""

    count: int
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray) -> "Sums":
        """Sums over utterances [n, frames, mels]."""
        flat = frames.reshape(-1, frames.shape[-1]).astype(np.float64)
        return cls(len(flat), flat.sum(axis=0), np.square(flat).sum(axis=0))

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "Sums":
        """What `plain` was made of."""
        return cls(int(values["count"]), np.array(values["total"]), np.array(values["squares"]))

    def plain(self) -> dict[str, Any]:
        """As they travel and are written down: exactly, in plain values."""
        return {"count": self.count, "total": self.total.tolist(), "squares": self.squares.tolist()}

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)


@dataclass(frozen=True)
class Normaliser:
    """x → (x − shift) / scale, per mel bin or with one number for all. Arrays [mels] or scalars, float32."""

    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Log-Mels [n, frames, mels] → the model's input units, same shape, float32; not copied where they are that."""
        if not np.any(self.shift) and np.all(self.scale == 1):
            return np.asarray(frames, np.float32)
        found = np.subtract(frames, self.shift, dtype=np.float32)
        return np.divide(found, self.scale, out=found)

    @classmethod
    def of(cls, shift, scale) -> "Normaliser":
        """Of numbers or arrays of any precision."""
        return cls(np.asarray(shift, np.float32), np.asarray(scale, np.float32))


class GlobalZScore:
    """Mean 0 and standard deviation 1 per mel bin, over the training frames of all clients."""

    def __call__(self, train: np.ndarray, everyone: Sums) -> Normaliser:
        """The normaliser of a client with training frames [n, frames, mels]; `everyone` are all clients' sums."""
        return zscore(everyone)


class ClientZScore:
    """Mean 0 and standard deviation 1 per mel bin, over the client's own training frames."""

    def __call__(self, train: np.ndarray, everyone: Sums) -> Normaliser:
        """The normaliser of a client with training frames [n, frames, mels]."""
        return zscore(Sums.of(train))

    def unknown(self, everyone: Sums) -> Normaliser:
        """The normaliser of a speaker of whom nothing is known: that of all clients together."""
        return zscore(everyone)


class ClientMinMax:
    """The client's own training range onto [0, 1], with one minimum and maximum for all bins."""

    def __call__(self, train: np.ndarray, everyone: Sums) -> Normaliser:
        """The normaliser of a client with training frames [n, frames, mels]."""
        low, high = float(train.min()), float(train.max())
        return Normaliser.of(low, (high - low) or 1.0)


class Fixed:
    """Log-Mels by numbers that no clip was asked for."""

    def __init__(self, shift: float, scale: Positive):
        self.made = Normaliser.of(shift, scale)

    def __call__(self, train: np.ndarray, everyone: Sums) -> Normaliser:
        """(x − shift) / scale, everyone's."""
        return self.made


class Unchanged:
    """Log-Mels as they are."""

    def __call__(self, train: np.ndarray, everyone: Sums) -> Normaliser:
        """Subtracts nothing and divides by one."""
        return Normaliser.of(0.0, 1.0)


def shared(normalisation: Callable[[np.ndarray, Sums], Normaliser], everyone: Sums) -> Normaliser | None:
    """The normaliser that all clients have in common; None where each has its own, by its own training frames.

    Found by asking with two made-up clients, as a normalisation of the user's own does not say which kind it is.
    """
    mean = (everyone.total / everyone.count).astype(np.float32)
    one, other = (normalisation(np.stack([mean - low, mean + high])[None], everyone) for low, high in ((0, 1), (3, 4)))
    same = np.array_equal(one.shift, other.shift) and np.array_equal(one.scale, other.scale)
    return one if same else None


def of_unknown(normalisation: Callable[[np.ndarray, Sums], Normaliser], everyone: Sums) -> Normaliser | None:
    """The normaliser of a speaker without training frames: the normalisation's `unknown`, or what all have in common;
    None where there is neither."""
    found = getattr(normalisation, "unknown", None)
    return found(everyone) if found else shared(normalisation, everyone)


def needs_everyone(normalisation: Callable[[np.ndarray, Sums], Normaliser], mels: int, unknown: bool) -> bool:
    """Whether a normaliser goes by all clients' sums, of a client that trains or of one who is `unknown`. Found by
    asking with sums that differ."""
    train = np.arange(2.0 * mels, dtype=np.float32).reshape(1, 2, mels)
    made = []
    for scale in (1.0, 7.0):
        everyone = Sums.of(scale * train + scale)
        made += [(normalisation(train, everyone), of_unknown(normalisation, everyone) if unknown else None)]
    plain = [[(each.shift.tolist(), each.scale.tolist()) for each in filter(None, pair)] for pair in made]
    return plain[0] != plain[1]


def zscore(sums: Sums) -> Normaliser:
    """Mean 0 and standard deviation 1 per mel bin (Chang et al. 2022's code); a constant bin is only shifted."""
    mean = sums.total / sums.count
    deviation = np.sqrt(np.maximum(sums.squares / sums.count - mean**2, 0.0))
    return Normaliser.of(mean, np.where(deviation > 1e-6, deviation, 1.0))
