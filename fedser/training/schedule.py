"""The learning rate over the rounds: what `client.lr` is multiplied by in a round, one function per form.

With `warm_up` rounds the factor rises evenly to 1 first.
"""

import math

from fedser.config.schema import Count, Fraction, Share, Whole
from fedser.errors import InputError


class Constant:
    """1 in every round."""

    def __init__(self, warm_up: Whole = 0):
        self.warm_up = warm_up

    def __call__(self, round: int) -> float:
        """The factor in a round, counted from 1."""
        return min(1.0, round / (self.warm_up + 1)) * self.after(max(0, round - 1 - self.warm_up))

    def after(self, passed: int) -> float:
        """The factor when so many rounds have passed since the warm-up."""
        return 1.0


class Step(Constant):
    """Multiplied by `factor` after every `every` rounds."""

    def __init__(self, every: Count, factor: Fraction = 0.1, warm_up: Whole = 0):
        super().__init__(warm_up)
        self.every, self.factor = every, factor

    def after(self, passed: int) -> float:
        return self.factor ** (passed // self.every)


class Cosine(Constant):
    """Half a cosine from 1 down to `floor` in the last of `rounds` (Loshchilov & Hutter 2017, without restarts).

    A `warm_up` below 1 is a share of the rounds.
    """

    def __init__(self, rounds: Count, floor: Share = 0.0, warm_up: Whole | Share = 0):
        warm_up = int(warm_up if warm_up >= 1 else warm_up * rounds)
        super().__init__(warm_up)
        if warm_up >= rounds:
            raise InputError(f"a warm-up of {warm_up} rounds leaves a cosine over {rounds} rounds nothing to fall in")
        self.rounds, self.floor = rounds, floor

    def after(self, passed: int) -> float:
        falling = self.rounds - self.warm_up - 1
        share = passed / falling if falling else 0.0
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
