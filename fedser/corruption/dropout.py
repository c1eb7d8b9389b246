"""Clients that do not answer."""

import numpy as np

from fedser.config.schema import Share


class Dropout:
    """Each client that is asked drops out of a round as likely as `rate`, in each round anew."""

    of = "rounds"

    def __init__(self, rate: Share):
        self.rate = rate

    def __call__(self, round: int, client: np.random.Generator, random: np.random.Generator) -> bool:
        """Whether the client answers in this round."""
        return bool(random.random() >= self.rate)
