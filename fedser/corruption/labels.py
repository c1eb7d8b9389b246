"""What is wrong with a client's labels: some are others, some are missing."""

import numpy as np

from fedser.config.schema import Count, NonNegative, Share
from fedser.errors import InputError


class LabelNoise:
    """Labels are drawn anew by a transition matrix of each client's own (FedAudio, Zhang et al. 2023).

    rate: of wrong labels, the mean over clients; each has its own, of this `deviation`, normal and cut to [0, 1].
    sparsity: of the matrix off its diagonal: that share of it is 0, so that a class is taken for some others only; each
        row keeps one at least, and what it keeps is equally likely.
    """

    of = "labels"

    def __init__(self, classes: Count, rate: Share, deviation: NonNegative = 0.0, sparsity: Share = 0.4):
        self.classes, self.rate, self.deviation, self.sparsity = classes, rate, deviation, sparsity

    def matrix(self, client: np.random.Generator) -> np.ndarray:
        """P(label | true class) of a client: [true, label]."""
        count, rate = self.classes, float(np.clip(client.normal(self.rate, self.deviation), 0, 1))
        other = ~np.eye(count, dtype=bool)
        kept = (np.arange(count) + client.integers(1, count, count)) % count  # one of each row, never the true class
        free = other.copy()
        free[np.arange(count), kept] = False
        places = client.permutation(np.flatnonzero(free))
        other.flat[places[: round(self.sparsity * count * (count - 1))]] = False
        return np.where(np.eye(count, dtype=bool), 1 - rate, rate * other / other.sum(axis=1, keepdims=True))

    def __call__(self, labels: np.ndarray, client: np.random.Generator, random: np.random.Generator) -> np.ndarray:
        """Labels int64 [n] → such ones."""
        reached = self.matrix(client)[labels].cumsum(axis=1)
        return (random.random((len(labels), 1)) >= reached[:, :-1]).sum(axis=1)


class MissingLabels:
    """Of each client's clips a share has no label, drawn at random. Without one a clip is not trained on."""

    of = "labels"

    def __init__(self, rate: Share):
        self.rate = rate
        if rate == 1:
            raise InputError("corruption.missing_labels.rate=1 leaves no client a clip to train on.")

    def __call__(self, labels: np.ndarray, client: np.random.Generator, random: np.random.Generator) -> np.ndarray:
        """Labels int64 [n] → the same, −1 where one is missing."""
        gone = random.permutation(len(labels))[: round(self.rate * len(labels))]
        return np.where(np.isin(np.arange(len(labels)), gone), -1, labels)
