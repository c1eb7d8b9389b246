"""What a run's noise guarantees to its clients: ε for a δ, or why there is none.

Given is the guarantee of the training: whoever sees the model after every round learns next to nothing of whether one
client's updates were among them (Gaussian differential privacy, clients as the unit, its updates in or replaced by
zero). Clients take turns in an order that no data decide, so that each trains in at most K rounds, and K Gaussian
mechanisms of multiplier z are exactly one of z / √K (Dong et al. 2022, J. R. Stat. Soc. B 84(1)); no amplification by
sampling is claimed. ε is then what Balle and Wang 2018 have for it, by Google's dp-accounting.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any

from torch import nn

from fedser.config.components import Component
from fedser.config.settings import Settings
from fedser.corruption.field import Field
from fedser.data.partition import ClientSplit
from fedser.features.normalisation import needs_everyone
from fedser.federation import server_app, strategies
from fedser.models.weights import BUFFERS, layout

COVERS = (
    "the models of all rounds, for each client as a whole, its updates there or zero; not what clients answer when "
    "they are evaluated, nor against who knows the run's seed, and by it the noise"
)


def of(settings: Settings, model: nn.Module, norm: str, splits: Sequence[ClientSplit]) -> dict[str, Any] | None:
    """Plain values: `text` to be read; `epsilon`, None where there is no guarantee, and `why`; None of a strategy that
    adds no noise.

    epsilon, delta: for who sees the models; participations: K. epsilon_server: for who sees the single updates too,
        None where these are bare. norm: what `batch_norm` comes to.
    """
    trainers = sum(split.seen for split in splits)
    strategy = strategies.build_strategy(settings.strategy, trainers)
    if not hasattr(strategy, "noise_multiplier"):
        return None
    why = list(_broken(settings, model, norm, splits, strategy))
    if why:
        return {"epsilon": None, "why": why, "text": f"no guarantee: {'; '.join(why)}"}
    most, each = participations(settings, trainers), strategies.clients_per_round(settings.strategy, trainers)
    z, delta = strategy.noise_multiplier, strategy.delta
    found = epsilon(z / sqrt(most), delta)
    server = epsilon(z / sqrt(most * each), delta) if strategy.noise == "clients" else None
    text = f"ε = {found:.3g} at δ = {delta:g} ({trainers} clients, each in at most {most} rounds): {COVERS}"
    text += f". Who sees the updates themselves: ε = {server:.3g}" if server else ". The server sees bare updates"
    told = {"epsilon": found, "epsilon_server": server, "delta": delta, "participations": most}
    return told | {"noise_multiplier": z, "why": [], "text": text}


def epsilon(multiplier: float, delta: float) -> float:
    """ε of one Gaussian mechanism whose noise is so many times the sensitivity, at δ."""
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(multiplier, delta))


def participations(settings: Settings, trainers: int) -> int:
    """In how many rounds the client trains that does so most often."""
    count = strategies.clients_per_round(settings.strategy, trainers)
    rounds = range(1, settings.rounds + 1)
    asked = Counter(each for n in rounds for each in server_app.sample_clients(trainers, count, settings.seed, n))
    return max(asked.values())


def needs_sums(settings: Settings, splits: Sequence[ClientSplit]) -> bool:
    """Whether clients' inputs are normalised by all clients' sums."""
    unknown = not all(split.seen for split in splits)
    return needs_everyone(settings.features.normalisation.build(), settings.features.shape[1], unknown)


def _broken(settings: Settings, model: nn.Module, norm: str, splits: Sequence[ClientSplit], strategy) -> Iterator[str]:
    """What leaves the clients bare, or is not as the accountant assumes, each by its key."""
    client, name = settings.client, settings.strategy.name
    if strategies.private(strategy) is None:
        yield (
            f"strategy={name} covers parameters alone, by weights that tell how much a client has: losses, counts and "
            "sums leave bare (strategy=dp_fedavg withholds them)"
        )
    if layout(model)[BUFFERS]:
        yield (
            f"model={settings.model.name} has batch-norm statistics, which are sent without noise (batch_norm={norm}): "
            "model.norm=group where it has that choice"
        )
    if client.optimizer_state == "average":
        yield "client.optimizer_state=average sends moments without noise: reset, or persist"
    if needs_sums(settings, splits):
        yield (
            f"features.normalisation={settings.features.normalisation.name} goes by sums over clients' frames, sent "
            "without noise: fixed, none, or where all clients train zscore_client"
        )
    if settings.simulation.min_reply_fraction < 1:
        yield "simulation.min_reply_fraction below 1: the noise is for all of a round's clients"
    for name in Field.of(settings, 2).names("rounds"):
        yield f"corruption.{name} lets clients drop out: the noise is for all of a round's clients"
    if settings.selection.name == "best":
        yield "selection=best chooses by clients' validation utterances, counted without noise: last"
    if settings.detector:
        yield f"detector={settings.detector.name} is learnt from sums, sent without noise: none"
    if getattr(strategy, "delta", 0) * sum(split.seen for split in splits) >= 1:
        yield f"strategy.delta={strategy.delta:g} is no less than 1 / clients: a chance to tell one of them outright"
    if settings.defence.training and _sources(settings.defence.training):
        yield "defence.training attacks by another run's model, which may know these clients"
    yield from _unaccounted(strategy)


def _sources(component: Component) -> bool:
    """Whether a component names another run anywhere."""

    def named(node: Any) -> bool:
        if isinstance(node, dict):
            return isinstance(node.get("source"), str) or any(map(named, node.values()))
        return isinstance(node, list) and any(map(named, node))

    return named(component.node)


def _unaccounted(strategy) -> Iterator[str]:
    try:
        import dp_accounting  # noqa: F401 - an extra of its own, and needed here alone
    except ImportError:
        yield "no accountant is installed: pip install '.[privacy]'"
