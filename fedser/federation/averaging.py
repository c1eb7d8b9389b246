"""Averaging over rounds on the server: the mean of several rounds' models is flatter, and mostly better, than the last.

`averaging=none | ema | last_k`. An averaging sees each round's weights (flat vectors by kind, as they travel) and says
what the model is after it; its arrays go into checkpoints.
"""

from collections.abc import Mapping

import numpy as np

from fedser.config.schema import Count, Fraction

Weights = Mapping[str, np.ndarray]


class EMA:
    """An exponential moving average (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    decay: how much of the average is kept in a round; less in early rounds, n / (n + 9) in the n-th, so that the first
        ones' weights do not linger.
    """

    def __init__(self, decay: Fraction):
        self.decay, self.rounds, self.average = decay, 0, {}

    def __call__(self, weights: Weights) -> Weights:
        """The average after a round that ended with these weights."""
        keep = min(self.decay, self.rounds / (self.rounds + 9))
        self.rounds += 1
        mixed = {key: keep * self.average.get(key, 0.0) + (1 - keep) * vector for key, vector in weights.items()}
        self.average = {key: np.asarray(vector, np.float32) for key, vector in mixed.items()}
        return self.average

    def state(self) -> dict[str, np.ndarray]:
        """What to go on from."""
        return {**self.average, "rounds": np.array(self.rounds)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.rounds = int(state["rounds"])
        self.average = {key: vector for key, vector in state.items() if key != "rounds"}


class LastK:
    """The mean of the last k rounds' models (Izmailov et al. 2018: stochastic weight averaging)."""

    def __init__(self, k: Count):
        self.k, self.kept = k, []

    def __call__(self, weights: Weights) -> Weights:
        """The mean after a round that ended with these weights."""
        self.kept = [*self.kept, dict(weights)][-self.k :]
        means = {key: np.mean([each[key] for each in self.kept], axis=0, dtype=np.float64) for key in weights}
        return {key: mean.astype(np.float32) for key, mean in means.items()}

    def state(self) -> dict[str, np.ndarray]:
        """What to go on from."""
        return {f"{place}/{key}": vector for place, each in enumerate(self.kept) for key, vector in each.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        places = sorted({int(name.partition("/")[0]) for name in state})
        self.kept = [
            {name.partition("/")[2]: vector for name, vector in state.items() if name.startswith(f"{place}/")}
            for place in places
        ]
