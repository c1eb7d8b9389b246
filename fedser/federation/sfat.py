"""SFAT (Zhu et al., ICLR 2023, Eq. 5): slack aggregation for federated adversarial training.

Clients whose data differ look even less alike under attack. So those of a round with the smallest adversarial training
loss weigh (1 + α) / (1 − α) times as much in the mean as their samples say.
"""

from collections.abc import Iterable
from typing import Annotated

from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from fedser.config.schema import Fraction

WEIGHT = "weight"  # of a reply in the mean, among its metrics


class SFAT(FedAvg):
    """FedAvg with that slack; FedAvg itself where alpha is 0.

    alpha: the slack.
    top: the share of a round's clients that weigh more, at least one of them.
    options: Flower's FedAvg's.
    """

    def __init__(self, alpha: Annotated[float, Field(ge=0, lt=1)] = 1 / 6, top: Fraction = 0.2, **options):
        super().__init__(**options)
        self.alpha, self.top, self.weighted_by_key = alpha, top, WEIGHT

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        """The weighted mean of the replies, and FedAvg's mean of their losses, which says how training goes."""
        replies = list(replies)
        metrics = [reply.content["metrics"] for reply in replies]
        losses, sizes = [m["loss"] for m in metrics], [m["num-examples"] for m in metrics]
        for each, weight in zip(metrics, self.weights(losses, sizes), strict=True):
            each[WEIGHT] = weight
        arrays, means = super().aggregate_train(server_round, replies)
        means["loss"] = sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / sum(sizes)
        return arrays, means

    def weights(self, losses: list[float], sizes: list[int]) -> list[float]:
        """How much each client weighs, by its mean training loss and its number of samples; of equal losses the first
        clients weigh more."""
        count = max(1, int(self.top * len(losses) + 0.5))
        favoured = set(sorted(range(len(losses)), key=lambda client: losses[client])[:count])
        slack = (1 + self.alpha) / (1 - self.alpha)
        return [size * (slack if client in favoured else 1.0) for client, size in enumerate(sizes)]
