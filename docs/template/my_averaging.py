"""An averaging: the plain mean of all rounds' models (Polyak & Juditsky 1992)."""

import numpy as np


class Everything:
    """Remembers a sum, not the models."""

    def __init__(self):
        self.rounds, self.sums = 0, {}

    def __call__(self, weights):
        self.rounds += 1
        self.sums = {key: self.sums.get(key, 0.0) + vector.astype(np.float64) for key, vector in weights.items()}
        return {key: (total / self.rounds).astype(np.float32) for key, total in self.sums.items()}

    def state(self):
        return {**self.sums, "rounds": np.array(self.rounds)}

    def restore(self, state):
        self.rounds = int(state["rounds"])
        self.sums = {key: total for key, total in state.items() if key != "rounds"}
