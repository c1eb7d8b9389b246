"""Random numbers by counting: functions of a key per clip and of how many were drawn before, on any device the same.

A generator's numbers depend on who draws before whom, and a GPU's differ from a CPU's. These are hashes (SplitMix64,
Steele et al. 2014) of (key, place).
"""

import math

import torch
from torch import Tensor

# As signed numbers 0x9E3779B97F4A7C15 (the odd number next to 2⁶⁴ / golden ratio), 0xBF58476D1CE4E5B9 and
# 0x94D049BB133111EB.
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Draws:
    """Draws for n clips, from a key each (int64 [n])."""

    def __init__(self, keys: Tensor):
        self.keys, self.drawn = keys, 0

    @classmethod
    def of(cls, seed: int, clips: Tensor) -> "Draws":
        """Draws for these clips [n], by number, under a seed (of a round and client)."""
        return cls(_mixed(clips * STEP + seed))

    def uniform(self, *shape: int) -> Tensor:
        """Float32 [n, *shape] in [0, 1)."""
        return (self._bits(*shape) >> 40 & (1 << 24) - 1) / float(1 << 24)

    def normal(self, *shape: int) -> Tensor:
        """Float32 [n, *shape] of mean 0 and deviation 1 (Box & Muller 1958)."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))

    def order(self) -> Tensor:
        """A permutation of the clips [n]."""
        return self._bits().argsort()

    def _bits(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        places = torch.arange(self.drawn, self.drawn + count, device=self.keys.device)
        self.drawn += count
        return _mixed(self.keys[:, None] + (places + 1) * STEP).view(len(self.keys), *shape)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 overflows as the unsigned numbers of the original do, shifts are made logical."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * FIRST
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * SECOND
    return z ^ (z >> 31 & (1 << 33) - 1)
