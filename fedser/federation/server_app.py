"""The server: a round loop over a stock Flower strategy. It sees weights, counts and sums; never audio or labels.

Own the loop, compose the strategies: `Strategy.start()` can neither stop at a failed client nor hook in between, so
the loop calls the strategy's public `configure_train` and `aggregate_train` itself and any strategy of Flower's works.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedser.config import build
from fedser.errors import Interrupted, RunError
from fedser.federation import transport
from fedser.federation.transport import BUFFERS, PARAMETERS
from fedser.normalisation import Sums
from fedser.randomness import derive

log = logging.getLogger(__name__)
POLL_SECONDS = 0.01


@dataclass
class Federation:
    """The clients behind a grid, by partition number.

    `experiment` is what every client is told (plain values); `stop` is set when the run shall end early;
    `names[i]` is the name that client i gives itself.
    """

    grid: Grid
    clients: int
    experiment: dict
    stop: threading.Event
    min_reply_fraction: float = 1.0
    names: list[str] = field(default_factory=list)

    def introduce(self) -> None:
        """The query round: who is behind which node, and the sums for the global normalisation."""
        self._nodes = self._wait_for_nodes()
        self._config = ConfigRecord({"experiment": json.dumps(self.experiment)})
        content = RecordDict({"config": self._config})
        # The normalisation and the order of the clients rest on everyone, so nobody may be missing here.
        messages = [self._message(content, node, MessageType.QUERY) for node in self._nodes]
        replies, _ = self._exchange(messages, tolerated=0)
        by_name = sorted(replies, key=lambda reply: reply.content["config"]["name"])
        self._nodes = [reply.metadata.src_node_id for reply in by_name]
        self.names = [reply.content["config"]["name"] for reply in by_name]
        sums = [_sums(reply.content["metrics"]) for reply in by_name]
        everyone = sum(sums[1:], sums[0])  # in the order of names: float addition is not associative
        self._config["count"] = everyone.count
        self._config["total"] = everyone.total.tolist()
        self._config["squares"] = everyone.squares.tolist()

    def train(self, strategy, round: int, weights: dict[str, np.ndarray], chosen: list[int]):
        """One round on the chosen clients → (new weights, metrics, names of those who were missing)."""
        present = _Present(self.grid, [self._nodes[client] for client in chosen])
        config = ConfigRecord(dict(self._config))
        record = transport.to_record(PARAMETERS, weights[PARAMETERS])
        messages = list(strategy.configure_train(round, record, config, present))
        buffers = transport.to_record(BUFFERS, weights[BUFFERS])
        for message in messages:
            message.content[BUFFERS] = buffers
        order = {node: client for client, node in enumerate(self._nodes)}
        messages.sort(key=lambda message: order[message.metadata.dst_node_id])

        replies, missing = self._exchange(messages)
        averaged = _average(replies)
        for reply in replies:
            del reply.content[BUFFERS]
        aggregated, metrics = strategy.aggregate_train(round, replies)
        new = {PARAMETERS: transport.from_record(aggregated).astype(np.float32, copy=False), BUFFERS: averaged}
        return new, dict(metrics), missing

    def evaluate(self, round: int, weights: dict[str, np.ndarray]):
        """Every client's confusion matrices {client: {condition: [classes, classes]}}, and the names of the missing."""
        config = ConfigRecord(dict(self._config) | {"server-round": round})
        records = {key: transport.to_record(key, array) for key, array in weights.items()}
        content = RecordDict(records | {"config": config})
        messages = [self._message(content, node, MessageType.EVALUATE) for node in self._nodes]
        replies, missing = self._exchange(messages)
        classes = len(self.experiment["classes"])
        matrices = {
            reply.content["config"]["name"]: {
                condition: np.array(counts, dtype=np.int64).reshape(classes, classes)
                for condition, counts in reply.content["metrics"].items()
            }
            for reply in replies
        }
        return matrices, missing

    def _exchange(self, messages: list[Message], tolerated: int | None = None) -> tuple[list[Message], list[str]]:
        """Sends, waits, and returns the replies in the order of the messages, and who is missing.

        Raises RunError at the first failure that `min_reply_fraction` does not cover, Interrupted when stopped.
        """
        nodes = [message.metadata.dst_node_id for message in messages]
        waiting = set(self.grid.push_messages(messages))
        replies: dict[int, Message] = {}
        failed: dict[int, str] = {}
        if tolerated is None:
            tolerated = int((1 - self.min_reply_fraction) * len(messages) + 1e-9)
        while waiting:
            if self.stop.is_set():
                raise Interrupted("stopped")
            arrived = list(self.grid.pull_messages(waiting))
            for reply in arrived:
                waiting.discard(reply.metadata.reply_to_message_id)
                node = reply.metadata.src_node_id
                if not reply.has_error():
                    replies[node] = reply
                    continue
                failed[node] = self._reason(node, reply)
                if len(failed) > tolerated:
                    raise RunError(failed[node])
            if waiting and not arrived:
                time.sleep(POLL_SECONDS)
        for reason in failed.values():
            log.warning("going on without %s", reason.splitlines()[0])
        missing = [self._name(node) for node in nodes if node in failed]
        return [replies[node] for node in nodes if node in replies], missing

    def _reason(self, node: int, reply: Message) -> str:
        """What went wrong, by name: a client that could answer names itself, one whose worker died cannot."""
        reason = reply.error.reason or f"error {reply.error.code}"
        if reason.startswith("client "):
            return reason
        return f"client '{self._name(node)}': its worker failed or died: {' '.join(reason.split())}"

    def _wait_for_nodes(self) -> list[int]:
        # Flower starts the server before all nodes are registered; a strategy would sample from those it sees.
        while len(nodes := list(self.grid.get_node_ids())) < self.clients:
            if self.stop.is_set():
                raise Interrupted("stopped")
            time.sleep(POLL_SECONDS)
        return nodes

    def _name(self, node: int) -> str:
        return self.names[self._nodes.index(node)] if self.names else str(node)

    @staticmethod
    def _message(content: RecordDict, node: int, kind: str) -> Message:
        return Message(content, dst_node_id=node, message_type=kind)


class _Present:
    """The grid as a strategy may see it: only the clients chosen for this round.

    Flower's strategies sample from `get_node_ids` with the unseeded `random.sample`; shown only those who were
    chosen with the run's seed, they take all of them.
    """

    def __init__(self, grid: Grid, nodes: list[int]):
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)

    def __getattr__(self, name):
        return getattr(self._grid, name)


def train_rounds(federation: Federation, strategy, weights, settings: dict) -> Iterator[tuple[int, dict, dict]]:
    """Yields (round, weights, row) for rounds 1, 2, …; `row` is what the history keeps of the training."""
    for round in range(1, settings["rounds"] + 1):
        chosen = sample_clients(federation.clients, settings["strategy"]["fraction_train"], settings["seed"], round)
        weights, metrics, missing = federation.train(strategy, round, weights, chosen)
        if not np.isfinite(weights[PARAMETERS]).all():
            raise RunError(f"the global model became NaN or infinite in round {round} under {type(strategy).__name__}")
        row = {"round": round, "train/loss": metrics["loss"], "train/clients": len(chosen) - len(missing)}
        yield round, weights, row | ({"train/missing": missing} if missing else {})


def sample_clients(clients: int, fraction: float, seed: int, round: int) -> list[int]:
    """The clients of one round, ascending: all of them, or `fraction` of them drawn with the run's seed."""
    count = max(1, round_half_up(fraction * clients))
    drawn = np.random.default_rng(derive(seed, "sample", round)).choice(clients, size=count, replace=False)
    return sorted(int(client) for client in drawn)


def round_half_up(value: float) -> int:
    """Nearest whole number; halves go up."""
    return int(value + 0.5)


def build_strategy(settings: dict, clients: int):
    """The stock Flower strategy of the settings, told to take every client that it is shown."""
    count = max(1, round_half_up(settings["strategy"]["fraction_train"] * clients))
    everyone = {"min_train_nodes": count, "min_available_nodes": count, "fraction_train": 1.0}
    return build(settings["strategy"]["aggregator"], arrayrecord_key=PARAMETERS, **everyone)


def _sums(metrics) -> Sums:
    return Sums(int(metrics["count"]), np.array(metrics["total"]), np.array(metrics["squares"]))


def _average(replies: list[Message]) -> np.ndarray:
    """Batch-norm buffers, averaged with the utterances as weights (in message order, in float64)."""
    counts = [float(reply.content["metrics"]["num-examples"]) for reply in replies]
    total = np.zeros(transport.from_record(replies[0].content[BUFFERS]).shape)
    for reply, count in zip(replies, counts, strict=True):
        total += count / sum(counts) * transport.from_record(reply.content[BUFFERS])
    return total.astype(np.float32)
