"""First and second moments: sums that add up over clients, and are all that a linear discriminant needs."""

from dataclasses import dataclass
from math import isqrt

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of n vectors z [D]: the sums over (1, z)(1, z)ᵀ, float64 [1 + D, 1 + D], so n, Σ z and Σ z zᵀ in one."""

    sums: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> "Moments":
        """Of z [n, D]."""
        with_one = np.insert(z.astype(np.float64), 0, 1.0, axis=1)
        return cls(with_one.T @ with_one)

    @classmethod
    def from_flat(cls, flat: np.ndarray) -> "Moments":
        """Of sums that came as a vector."""
        return cls(flat.reshape(isqrt(len(flat)), -1))

    @property
    def count(self) -> float:
        """n."""
        return float(self.sums[0, 0])

    @property
    def mean(self) -> np.ndarray:
        """Of the vectors [D]."""
        return self.sums[0, 1:] / self.count

    @property
    def scatter(self) -> np.ndarray:
        """Σ (z − mean)(z − mean)ᵀ, [D, D]."""
        return self.sums[1:, 1:] - self.count * np.outer(self.mean, self.mean)
