"""A strategy: FedAvg whose step is cut to a longest length."""

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg


class ShortSteps(FedAvg):
    def __init__(self, longest: float = 1.0, **options):
        super().__init__(**options)
        self.longest, self.before = longest, None

    def configure_train(self, server_round, arrays, config, grid):
        self.before = next(iter(arrays.values())).numpy().copy()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        step = next(iter(arrays.values())).numpy() - self.before
        step *= min(1.0, self.longest / max(float(np.linalg.norm(step)), 1e-12))
        return ArrayRecord({"parameters": Array(self.before + step)}), metrics
