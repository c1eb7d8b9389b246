"""A condition of the field: some clients take one class for another, and the other for the one."""

import numpy as np

from fedser.config.schema import Share


class Swapped:
    of = "labels"  # or "waveforms", "rounds"

    def __init__(self, pair: tuple[int, int] = (0, 1), clients: Share = 0.5):
        self.pair, self.clients = pair, clients

    def __call__(self, labels, client, random):
        one, other = self.pair
        if client.random() >= self.clients:  # `client` begins anew each time, `random` is this call's own
            return labels
        return np.select([labels == one, labels == other], [other, one], labels)
