"""Flower's strategies as the round loop needs them: built from settings, asked what they need, saved and restored."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flwr
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from pydantic import Field

from fedser.config import components
from fedser.config.components import Component
from fedser.config.schema import NonNegative
from fedser.config.settings import Strategy
from fedser.errors import RunError
from fedser.federation.transport import PARAMETERS, Flat


class FedProx(flwr.FedProx):
    """FedProx (Li et al. 2020); Flower's own, its bound checked."""

    def __init__(self, proximal_mu: NonNegative, **options):
        super().__init__(proximal_mu=proximal_mu, **options)


class Centralised(flwr.FedAvg):
    """No federation: one client is sent for training, and trains on every client's utterances."""

    pooled = True

    def configure_train(self, server_round, arrays, config, grid):
        """The message to the first client alone."""
        messages = super().configure_train(server_round, arrays, config, grid)  # in random order
        first = next(iter(grid.get_node_ids()))
        return [message for message in messages if message.metadata.dst_node_id == first]


class FedTrimmedAvg(flwr.FedTrimmedAvg):
    """The coordinate-wise trimmed mean (Yin et al. 2018); Flower's own, its bound checked."""

    def __init__(self, beta: Annotated[float, Field(ge=0, lt=0.5)], **options):
        super().__init__(beta=beta, **options)


def build_strategy(settings: Strategy, clients: int) -> flwr.Strategy:
    """Flower's strategy of the settings, made to take every client that it is shown: a round's share of `clients`."""
    return _build(settings.component, clients_per_round(settings, clients))


def _build(component: Component, clients: int) -> flwr.Strategy:
    taken = components.parameters(components.locate(component.target, component.key))
    everyone = {"min_train_nodes": clients, "min_available_nodes": clients, "fraction_train": 1.0}
    more = everyone | {"arrayrecord_key": PARAMETERS, "num_sampled_clients": clients}
    more = {key: value for key, value in more.items() if key in taken}
    if (inner := component.get("strategy")) is not None:  # one that wraps another
        more["strategy"] = _build(components.component(f"{component.key}.strategy", inner), clients)
        component = replace(component, node={key: part for key, part in component.node.items() if key != "strategy"})
    return component.build(**more)


def clients_per_round(settings: Strategy, clients: int) -> int:
    """How many of the clients train in a round: `strategy.fraction_train` of them, halves rounded up, at least one."""
    return max(1, int(settings.fraction_train * clients + 0.5))


def adds_up(strategy: flwr.Strategy) -> bool:
    """Whether the strategy needs only the replies' weighted mean, so that they can be added up as they arrive.

    True for Flower's FedAvg and its relatives, which average first and then step. Any other (Krum, a median, one of the
    user's own, one with its own rule for metrics) is given every reply.
    """
    owner = next(kind for kind in type(strategy).__mro__ if "aggregate_train" in vars(kind))
    averages = owner in (flwr.FedAvg, flwr.FedAvgM, flwr.FedAdagrad, flwr.FedAdam, flwr.FedYogi)
    return averages and strategy.train_metrics_aggr_fn is aggregate_metricrecords


def pooled(strategy: flwr.Strategy) -> bool:
    """Whether one client trains on all clients' utterances."""
    return getattr(strategy, "pooled", False)


def private(strategy: flwr.Strategy) -> dict | None:
    """What clients withhold and do for a strategy that promises them privacy (`Withheld`), plain; None for others."""
    found = getattr(strategy, "withheld", None)
    return found and found.plain()


def state(strategy: flwr.Strategy) -> tuple[dict, dict[str, np.ndarray]]:
    """A strategy's memory between rounds: plain values, and its arrays by name ("strategy/m_t/parameters").

    Raises RunError naming an attribute that a file can't hold.
    """
    arrays: dict[str, np.ndarray] = {}
    return _plain(strategy, "strategy", arrays)["object"], arrays


def restore(strategy: flwr.Strategy, plain: dict, arrays: dict[str, np.ndarray]) -> None:
    """Puts a strategy, built from the same settings, back to a state."""
    for name, value in plain.items():
        held = getattr(strategy, name, None)
        if "object" in value and held is not None:
            restore(held, value["object"], arrays)
        else:
            setattr(strategy, name, _live(value, arrays))


def _plain(value, path: str, arrays: dict) -> dict:
    """A value as {its kind: JSON}; arrays go to `arrays` under their path."""
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, np.generic):
        return {"value": value.item()}
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, Array):
        return {"flat": _plain(value.numpy(), path, arrays)["array"]}
    if isinstance(value, ArrayRecord):
        return {"record": {key: _plain(item, f"{path}/{key}", arrays) for key, item in value.items()}}
    if isinstance(value, dict):
        return {"dict": {key: _plain(item, f"{path}/{key}", arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_plain(item, f"{path}/{number}", arrays) for number, item in enumerate(value)]}
    if isinstance(value, flwr.Strategy):  # one may wrap another
        kept = {key: item for key, item in vars(value).items() if not callable(item)}
        return {"object": {key: _plain(item, f"{path}/{key}", arrays) for key, item in kept.items()}}
    raise RunError(
        f"{path.replace('/', '.')} is a {type(value).__name__}, which a checkpoint can't hold: "
        "checkpoint.every=null runs without checkpoints."
    )


def _live(node: dict, arrays: dict):
    ((kind, value),) = node.items()
    if kind == "value":
        return value
    if kind == "array":
        return arrays[value]
    if kind == "flat":
        return Flat(arrays[value])
    if kind == "list":
        return [_live(item, arrays) for item in value]
    made = ArrayRecord() if kind == "record" else {}
    for key, item in value.items():
        made[key] = _live(item, arrays)
    return made
