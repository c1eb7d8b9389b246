"""First and second moments: sums that add up over clients, and are all that a linear discriminant needs."""

from dataclasses import dataclass
from math import isqrt

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of n vectors z: their number, Σ z [D] and Σ z zᵀ [D, D], float64."""

    count: float
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> "Moments":
        """Of z [n, D]."""
        z = z.astype(np.float64)
        return cls(float(len(z)), z.sum(axis=0), z.T @ z)

    @classmethod
    def from_flat(cls, flat: np.ndarray) -> "Moments":
        """Of what `flat` gave."""
        size = (isqrt(4 * len(flat) - 3) - 1) // 2  # of 1 + D + D² numbers
        count, total, squares = np.split(flat, [1, 1 + size])
        return cls(float(count[0]), total, squares.reshape(size, size))

    def flat(self) -> np.ndarray:
        """All of it as one vector [1 + D + D²]."""
        return np.concatenate([[self.count], self.total, self.squares.ravel()])

    @property
    def mean(self) -> np.ndarray:
        """Of the vectors [D]."""
        return self.total / self.count

    @property
    def scatter(self) -> np.ndarray:
        """Σ (z − mean)(z − mean)ᵀ, [D, D]."""
        return self.squares - np.outer(self.total, self.mean)
