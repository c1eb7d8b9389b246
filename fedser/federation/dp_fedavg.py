"""DP-FedAvg (McMahan et al. 2018) whose training messages say nothing but what is clipped and noised."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Annotated, Literal

import numpy as np
from flwr.serverapp import strategy as flwr
from pydantic import Field

from fedser.config.schema import Positive
from fedser.features.normalisation import Sums
from fedser.federation.transport import to_record

TINY = 1e-6  # far below any noise


@dataclass(frozen=True)
class Withheld:
    """What a client keeps to itself for a strategy that promises it privacy: losses, remarks, how much it has, and sums
    over its frames where nobody needs them.

    clipping_norm: of its update, where it clips and noises that itself; None where the server does.
    deviation: of the noise that it adds to each parameter then.
    sums: whether it withholds the sums over its frames.
    system: whether its noise comes from the system, as in a deployment, and not from the run's seed.
    """

    clipping_norm: float | None = None
    deviation: float = 0.0
    sums: bool = True
    system: bool = False

    metrics = {"num-examples": 1}  # noqa: RUF012 - all weigh the same

    def plain(self) -> dict:
        """As it travels to the clients: `Withheld(**plain)`."""
        return asdict(self)

    def query(self, numbers: dict) -> dict:
        """The answer to a query: whether the client trains, and for sums those of a single frame of 0 ± 1."""
        one = int(numbers["num-examples"] > 0)
        told = numbers | {"num-examples": one}
        if not self.sums:
            return told
        size = len(numbers["total"])
        return told | Sums(one, np.zeros(size), np.full(size, float(one))).plain()

    def update(self, start: np.ndarray, end: np.ndarray, seed: int) -> np.ndarray:
        """The parameters [P] that a client sends, who came from `start` to `end`."""
        if self.clipping_norm is None:
            return end
        update = end.astype(np.float64) - start
        update *= min(1.0, self.clipping_norm / max(float(np.linalg.norm(update)), 1e-12))
        noise = np.random.default_rng(None if self.system else seed).normal(0.0, self.deviation, len(update))
        return (start + update + noise).astype(np.float32)


class DP(flwr.DifferentialPrivacyServerSideFixedClipping):
    """Flower's own, but for updates of length zero, by which it divides: at the end of a cosine the rate is 0."""

    def aggregate_train(self, server_round, replies):
        """The noisy mean of what is clipped."""
        replies = list(replies)
        (start,) = self.current_arrays.to_numpy_ndarrays()
        for reply in replies:
            for name, record in reply.content.array_records.items():
                (end,) = record.to_numpy_ndarrays()
                if np.array_equal(start, end):
                    end = end.copy()
                    end[np.abs(end).argmin()] += TINY
                    reply.content[name] = to_record(name, end)
        return super().aggregate_train(server_round, replies)


class DPFedAvg(DP):
    """The mean of clipped updates, all of one weight, with Gaussian noise: Flower's own, around its FedAvg.

    noise_multiplier: z; the mean of m updates gets noise of z · clipping_norm / m per parameter.
    delta: for which ε is given (`fedser.federation.guarantee`).
    noise: the "server" clips and adds it, who sees the bare updates, or the "clients" do, each a part of variance 1/m
        of the whole; what the server sees of one client is then noised too.
    """

    def __init__(
        self,
        noise_multiplier: Positive,
        clipping_norm: Positive,
        num_sampled_clients: int,
        arrayrecord_key: str = "arrays",
        delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5,
        noise: Literal["server", "clients"] = "server",
    ):
        everyone = {"min_train_nodes": num_sampled_clients, "min_available_nodes": num_sampled_clients}
        mean = flwr.FedAvg(fraction_train=1.0, arrayrecord_key=arrayrecord_key, **everyone)
        super().__init__(mean, noise_multiplier, clipping_norm, num_sampled_clients)
        self.delta, self.noise = delta, noise

    @property
    def withheld(self) -> Withheld:
        """What clients do for it."""
        if self.noise == "server":
            return Withheld()
        share = self.noise_multiplier * self.clipping_norm / sqrt(self.num_sampled_clients)
        return Withheld(self.clipping_norm, share)

    def aggregate_train(self, server_round, replies):
        """The noisy mean, from the server's noise or the clients'."""
        if self.noise == "server":
            return super().aggregate_train(server_round, replies)
        return self.strategy.aggregate_train(server_round, replies)
