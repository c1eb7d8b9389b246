"""Normalisation of log-Mels, with global statistics that come from the clients as sums, never from pooled data."""

from dataclasses import dataclass

import numpy as np


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

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)


@dataclass(frozen=True)
class Normaliser:
    """x → (x − shift) / scale, per mel bin or with one number for all. Arrays [mels] or scalars, float32."""

    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Log-Mels [n, frames, mels] → the model's input units, same shape, float32."""
        return ((frames - self.shift) / self.scale).astype(np.float32)


def zscore(sums: Sums) -> Normaliser:
    """Mean 0 and standard deviation 1 per mel bin (PROTOCOL §1 [code]); a constant bin is only shifted."""
    mean = sums.total / sums.count
    deviation = np.sqrt(np.maximum(sums.squares / sums.count - mean**2, 0.0))
    return _normaliser(mean, np.where(deviation > 1e-6, deviation, 1.0))


def normaliser(kind: str, train: np.ndarray, everyone: Sums | None) -> Normaliser:
    """The normaliser of one client: `kind` as in `features.normalisation`, `train` its own frames [n, frames, mels].

    `minmax_client` maps the client's own training range onto [0, 1] with one minimum and maximum for all bins.
    """
    if kind == "zscore_global":
        return zscore(everyone)
    if kind == "zscore_client":
        return zscore(Sums.of(train))
    if kind == "minmax_client":
        low, high = float(train.min()), float(train.max())
        return _normaliser(low, (high - low) or 1.0)
    if kind == "none":
        return _normaliser(0.0, 1.0)
    raise ValueError(f"unknown normalisation {kind}")


def _normaliser(shift, scale) -> Normaliser:
    return Normaliser(np.asarray(shift, np.float32), np.asarray(scale, np.float32))
