"""The server: a round loop over a stock Flower strategy. It sees weights, counts and sums; never audio or labels.

Own the loop, compose the strategies: `Strategy.start()` can neither stop at a failed client nor hook in between, so
the loop calls the strategy's public `configure_train` and `aggregate_train` itself and any strategy of Flower's works.
"""

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedser.config.protocol import Protocol
from fedser.config.settings import Settings
from fedser.detectors.detector import Detector
from fedser.detectors.moments import Moments
from fedser.errors import Interrupted, RunError
from fedser.evaluation import detection
from fedser.evaluation.parts import Part, Parts
from fedser.evaluation.results import Results, joined, joined_examples
from fedser.features.normalisation import Sums
from fedser.federation import strategies, transport
from fedser.federation.batch_norm import LOCAL, STATISTICS, SUMS, Local, Recomputed
from fedser.federation.optimizer_state import MOMENTS
from fedser.federation.transport import BUFFERS, PARAMETERS
from fedser.federation.updates import Updates
from fedser.randomness import derive, seeded

log = logging.getLogger(__name__)
POLL_SECONDS = 0.02
SECONDS_TO_LIVE = 365 * 86400.0  # Flower drops messages after twelve hours, which a large round may take


@dataclass
class Federation:
    """The clients behind a grid, by number in the order of their names.

    `experiment` is what every client is sent (plain values); `stop` is set when the run shall end early; at most
    `window` messages are on their way or not yet added up at a time, which bounds the memory they take.
    """

    grid: Grid
    clients: int
    experiment: dict
    stop: threading.Event
    min_reply_fraction: float = 1.0
    window: int = 12
    local: Local | None = None  # where clients keep their batch-norm layers
    recomputed: Recomputed | None = None  # where the global model has its statistics from all clients
    names: list[str] = field(default_factory=list)  # what client i calls itself
    sizes: list[int] = field(default_factory=list)  # how many utterances client i trains on
    moments: list[int] = field(default_factory=list)  # after which round client i last kept its optimizer's, 0: never
    committed: list[int] = field(default_factory=list)  # … and of which round they were at the last checkpoint
    remarks: set[str] = field(default_factory=set)  # what clients' objectives had to say, shown already
    present: Callable[[list[str], int], list[str]] | None = None  # which of these clients answer in a round; None: all
    updates: Updates | None = None  # where those of clients are kept for a study
    stacked: int = 1  # so many clients train side by side, in the order of the messages

    @property
    def trainers(self) -> list[int]:
        """The clients that have something to train on; the others are only evaluated."""
        return [client for client, size in enumerate(self.sizes) if size]

    def handshake(self) -> None:
        """The query round: who is behind which node, and the sums for the global normalisation."""
        self._nodes = self._wait_for_nodes()
        self._config = ConfigRecord({"experiment": json.dumps(self.experiment)})
        self._sent: tuple[dict, dict] = ({}, {})
        content = RecordDict({"config": self._config})
        messages = [Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in self._nodes]
        # The normalisation and the order of the clients rest on everyone, so nobody may be missing here.
        replies = [reply for batch in Exchange(self, messages, tolerated=0) for reply in batch]
        by_name = sorted(replies, key=lambda reply: reply.content["config"]["name"])
        self._nodes = [reply.metadata.src_node_id for reply in by_name]
        self.names = [reply.content["config"]["name"] for reply in by_name]
        self.sizes = [int(reply.content["metrics"]["num-examples"]) for reply in by_name]
        sums = [Sums.from_plain(reply.content["metrics"]) for reply in by_name]
        self.everyone = sum(sums[1:], sums[0])  # in the order of names: float addition is not associative
        self._config.update(self.everyone.plain())
        self.moments = self.moments or [0] * self.clients
        self.commit()

    def commit(self) -> None:
        """A checkpoint has been written: clients must keep the moments they have now until the next one."""
        self.committed = list(self.moments)

    def train(self, strategy, round: int, weights: dict[str, np.ndarray], chosen: list[int]):
        """One round on the chosen clients → (new weights, metrics, names of those who were missing)."""
        present = _Present(self.grid, [self._nodes[client] for client in chosen])
        records = self._records(weights)
        pooled = strategies.pooled(strategy)
        more = {"moments": self.moments, "committed": self.committed, "pooled": pooled}
        config = ConfigRecord(dict(self._config) | more)
        messages = strategy.configure_train(round, records[PARAMETERS], config, present)
        by_node = {message.metadata.dst_node_id: message for message in messages}
        beside = {BUFFERS: records[BUFFERS]}
        if MOMENTS in weights:
            beside[MOMENTS] = transport.to_record(MOMENTS, weights[MOMENTS], shared=True)
        for node, message in by_node.items():
            message.content.update(beside | self._local_record(weights, node))
        # A strategy waits for all that it may have, so who drops out is left out behind it: as if the reply were lost.
        here = self.present([self.names[client] for client in chosen], round) if self.present else self.names
        absent = [self.names[client] for client in chosen if self.names[client] not in here]
        there = [client for client in self._longest_first(chosen) if self.names[client] in here]
        asked = [client for client in there if self._nodes[client] in by_node]
        rows = weights[LOCAL].copy() if self.local else None
        seen = self._seen(round, weights, rows)
        exchange = Exchange(self, [by_node[self._nodes[client]] for client in asked], seen=seen)
        gather = _averaged if strategies.adds_up(strategy) else _collected
        expected = sum(self.sizes if pooled else (self.sizes[client] for client in asked))
        means = {key: transport.Average(expected, np.float64) for key in beside}
        replies = gather(exchange, means, expected)
        missing = sorted([*exchange.missing, *absent])
        answered = {client for client in asked if self.names[client] not in missing}
        self.moments = [round if client in answered else before for client, before in enumerate(self.moments)]
        aggregated, metrics = strategy.aggregate_train(round, replies)
        parameters = transport.from_record(aggregated).astype(np.float32, copy=False)
        if gather is _averaged:  # other strategies may keep what they were given
            transport.forget(replies[0].content)
        weights = {PARAMETERS: parameters} | {key: mean.result() for key, mean in means.items()}
        if self.local:
            weights = self.local.averaged(weights, rows, self.sizes, [last > 0 for last in self.moments])
        return weights, dict(metrics), missing

    def normalised(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights with the batch-norm statistics that they are evaluated with."""
        return self.recomputed(weights, self._statistics) if self.recomputed else weights

    def _statistics(self, weights: dict[str, np.ndarray]) -> np.ndarray:
        """What batch-norm layers of these weights see of all clients' training utterances: sums [M], float64."""
        content = RecordDict(self._records(weights) | {"config": self._config})
        return self._sums(STATISTICS, lambda node: content)

    def _sums(self, action: str, content: Callable[[int], RecordDict]) -> np.ndarray:
        """What all clients that train answer to a query, added up: [M], float64; `content` is of a node's message."""
        nodes = [self._nodes[client] for client in self._longest_first(self.trainers)]
        asked = [Message(content(node), node, f"{MessageType.QUERY}.{action}") for node in nodes]
        return sum(transport.from_record(reply.content[SUMS]) for batch in Exchange(self, asked) for reply in batch)

    def detector(
        self, round: int, weights: dict[str, np.ndarray], attacks: Sequence[str], fit: Callable, kept: Parts
    ) -> Detector:
        """What `fit` makes of all clients' sums over their training clips, clean and under these attacks.

        It is a part of an evaluation: what was `kept` is not learnt again.
        """
        part = kept.read(detection.NAME) or Part(detection.NAME)
        if not part.answers:
            part.answers["server"] = fit(*self._moments(round, weights, attacks)).plain()
            kept.answered(part, 1)
        return Detector(**part.answers["server"])

    def _moments(self, round: int, weights: dict[str, np.ndarray], attacks: Sequence[str]) -> list[Moments]:
        """Of the training clips of all clients, clean and attacked."""
        config = ConfigRecord(dict(self._config) | {"server-round": round, "attacks": list(attacks)})
        content = self._records(weights) | {"config": config}
        sums = self._sums(detection.NAME, lambda node: RecordDict(content | self._local_record(weights, node)))
        return list(map(Moments.from_flat, np.split(sums, 2)))

    def ask(self, action: str, round: int, weights: dict[str, np.ndarray], **asked) -> None:
        """Puts a query to every client, with the weights after a round and what else is `asked`."""
        content = self._records(weights) | {
            "config": ConfigRecord(dict(self._config) | {"server-round": round} | asked)
        }
        whole = [RecordDict(content | self._local_record(weights, node)) for node in self._nodes]
        kind = f"{MessageType.QUERY}.{action}"
        for _ in Exchange(self, [Message(part, node, kind) for part, node in zip(whole, self._nodes, strict=True)]):
            pass

    def evaluate(
        self,
        round: int,
        weights: dict[str, np.ndarray],
        protocol: Protocol,
        kept: Parts | None = None,
        detector: Detector | None = None,
    ) -> Results:
        """Every client's answers to this protocol, in the order of their names; those of who does not train apart.

        With `kept`, part by part: what is there already is not measured again, what is done is written there.
        """
        asked = {part.only or "": part for part in (protocol.parts if kept else [protocol])}
        parts = {name: (kept and kept.read(name)) or Part(name) for name in asked}
        messages = [
            message
            for name, part in parts.items()
            if not part.answers
            for message in self._questions(round, weights, asked[name], name, detector)
        ]
        exchange = Exchange(self, messages)
        for reply in (reply for batch in exchange for reply in batch):
            part = parts[reply.metadata.group_id]
            part.add(reply.content["config"])
            if kept:
                kept.answered(part, self.clients)
        answers = [part.answers for part in parts.values()]
        whole = [client for client, name in enumerate(self.names) if all(name in part for part in answers)]
        seen, unseen = {}, {}
        for client in whole:
            answer = joined([part[self.names[client]] for part in answers], protocol)
            (seen if self.sizes[client] else unseen)[self.names[client]] = answer
        shown = joined_examples([base64.b64decode(part.example) for part in parts.values() if part.example])
        apart = Results(protocol, self.experiment["classes"], unseen) if unseen else None
        watching = detector.plain() if detector else None
        return Results(protocol, self.experiment["classes"], seen, shown, exchange.missing, apart, watching)

    def _questions(
        self, round: int, weights: dict[str, np.ndarray], protocol: Protocol, name: str, detector: Detector | None
    ) -> list[Message]:
        """The messages that ask every client for a part of a protocol; `name` comes back with the replies."""
        asked = {"server-round": round, "protocol": json.dumps(protocol.plain()), "shown": self.trainers[0]}
        asked |= {"detector": json.dumps(detector.plain())} if detector else {}
        config = ConfigRecord(dict(self._config) | asked)
        content = self._records(weights) | {"config": config}
        nodes = [self._nodes[client] for client in self._longest_first(range(self.clients))]
        whole = [RecordDict(content | self._local_record(weights, node)) for node in nodes]
        return [
            Message(part, node, MessageType.EVALUATE, group_id=name) for part, node in zip(whole, nodes, strict=True)
        ]

    def name(self, node: int) -> str:
        """The name of the client behind a node, once the handshake is over."""
        return self.names[self._nodes.index(node)] if self.names else str(node)

    def _longest_first(self, clients: Iterable[int]) -> list[int]:
        """So that the last wave of a round is short. The order, and with it every sum, is the same in each run."""
        return sorted(clients, key=lambda client: (-self.sizes[client], client))

    def _records(self, weights: dict[str, np.ndarray]) -> dict:
        """The weights' records, the same as long as the weights are the same: they go to the object store once."""
        if self._sent[0] is not weights:
            everyone = {key: weights[key] for key in transport.KEYS}
            self._sent = (weights, transport.to_records(everyone, shared=True))
        return dict(self._sent[1])

    def _local_record(self, weights: dict[str, np.ndarray], node: int) -> dict:
        """The batch-norm layers of the client behind a node, where clients keep theirs."""
        if LOCAL not in weights:
            return {}
        return {LOCAL: transport.to_record(LOCAL, weights[LOCAL][self._nodes.index(node)])}

    def _seen(self, round: int, weights: dict, rows: np.ndarray | None) -> Callable[[Message], None]:
        """What takes each client's batch-norm layers from its reply into its row [clients, N], warns of what its
        objective remarked, and keeps its update of these weights where that is asked for."""

        def see(reply: Message) -> None:
            client = self._nodes.index(reply.metadata.src_node_id)
            for line in reply.content["remarks"]["lines"] if "remarks" in reply.content else ():
                if line not in self.remarks:
                    self.remarks.add(line)
                    log.warning("round %d, client '%s': %s", round, self.names[client], line)
            if self.updates:
                sent = self.local.put(weights, weights[LOCAL][client]) if self.local else weights
                received = transport.from_record(reply.content[PARAMETERS])
                self.updates.add(round, self.names[client], received - sent[PARAMETERS])
            if rows is not None:
                rows[client] = self.local.of(transport.from_records(reply.content))

        return see

    def _wait_for_nodes(self) -> list[int]:
        # Flower starts the server before all nodes are registered; a strategy would sample from those it sees.
        while len(nodes := list(self.grid.get_node_ids())) < self.clients:
            if self.stop.is_set():
                raise Interrupted("stopped")
            time.sleep(POLL_SECONDS)
        return nodes


class Exchange:
    """Messages sent and replies received: iterating yields batches of replies, in the order of the messages.

    A reply waits for those before it only, and a message is held back while `window` before it are on their way. Each
    reply is shown to `seen` when it arrives. Raises RunError at the first failure that `min_reply_fraction` does not
    cover, Interrupted when stopped. Afterwards `missing` has the names of the clients that failed.
    """

    def __init__(
        self,
        federation: Federation,
        messages: list[Message],
        tolerated: int | None = None,
        seen: Callable[[Message], None] | None = None,
    ):
        self._federation, self._messages, self._seen = federation, messages, seen
        for message in messages:
            message.metadata.ttl = SECONDS_TO_LIVE
        if tolerated is None:
            tolerated = int((1 - federation.min_reply_fraction) * len(messages) + 1e-9)
        self._tolerated = tolerated
        self._failed: dict[int, str] = {}  # node → why

    @property
    def missing(self) -> list[str]:
        """The names of the clients that failed."""
        return sorted(self._federation.name(node) for node in self._failed)

    def sender(self, reply: Message) -> str:
        """The name of the client that a reply comes from."""
        return self._federation.name(reply.metadata.src_node_id)

    def __iter__(self) -> Iterator[list[Message]]:
        federation, grid = self._federation, self._federation.grid
        waiting: dict[str, int] = {}  # message id → position
        ready: dict[int, Message | None] = {}  # position → reply, None where it failed
        sent = done = 0
        while done < len(self._messages):
            if federation.stop.is_set():
                raise Interrupted("stopped")
            end = done + federation.window
            if end < len(self._messages):
                end -= end % federation.stacked  # who trains side by side is sent together
            more = self._messages[sent:end]
            waiting |= {key: sent + place for place, key in enumerate(grid.push_messages(more))}
            sent += len(more)
            arrived = list(grid.pull_messages(set(waiting)))
            if not arrived:
                time.sleep(POLL_SECONDS)
            while arrived:
                reply = arrived.pop()
                ready[waiting.pop(reply.metadata.reply_to_message_id)] = self._accepted(reply)
                del reply  # what is still referred to stays in the object store
            batch = []
            while done in ready:
                if (reply := ready.pop(done)) is not None:
                    batch.append(reply)
                    del reply
                done += 1
            if batch:
                yield batch
        for reason in self._failed.values():
            log.warning("going on without %s", reason.splitlines()[0])

    def _accepted(self, reply: Message) -> Message | None:
        if not reply.has_error():
            if self._seen:
                self._seen(reply)
            return reply
        node = reply.metadata.src_node_id
        self._failed[node] = self._reason(node, reply)
        if len(self._failed) > self._tolerated:
            raise RunError(self._failed[node])
        return None

    def _reason(self, node: int, reply: Message) -> str:
        """The reason of a failure, with the client's name: one whose worker died could not name itself."""
        reason = reply.error.reason or f"error {reply.error.code}"
        if reason.startswith("client "):
            return reason
        return f"client '{self._federation.name(node)}': its worker failed or died: {' '.join(reason.split())}"


Means = dict[str, transport.Average]  # of what is averaged whatever the strategy: buffers, moments


def _averaged(exchange: Exchange, means: Means, expected: int) -> list[Message]:
    """The replies as a single one with their weighted mean; `means` are added to."""
    parameters = transport.Average(expected)
    single, loss = None, 0.0
    for batch in exchange:
        counts = [int(reply.content["metrics"]["num-examples"]) for reply in batch]
        for key, average in ({PARAMETERS: parameters} | means).items():
            vectors = [transport.from_record(reply.content[key]) for reply in batch]
            average.add(list(zip(counts, vectors, strict=True)))
        loss += sum(n * reply.content["metrics"]["loss"] for n, reply in zip(counts, batch, strict=True))
        if batch and single is None:
            single = batch[0]
            single.content = RecordDict()
        batch.clear()
        vectors = None
    if single is None:
        raise RunError("no client was left in this round: see the warnings before this line")
    metrics = {"num-examples": int(parameters.seen), "loss": loss / parameters.seen}
    single.content["metrics"] = MetricRecord(metrics)
    single.content[PARAMETERS] = transport.to_record(PARAMETERS, parameters.result())
    return [single]


def _collected(exchange: Exchange, means: Means, expected: int) -> list[Message]:
    """Every reply, ordered by the clients' names; `means` are added to."""
    replies = []
    for batch in exchange:
        for reply in batch:
            transport.detach(reply.content)  # so that they do not fill the object store
            count = int(reply.content["metrics"]["num-examples"])
            for key, average in means.items():
                average.add([(count, transport.from_record(reply.content[key]))])
                del reply.content[key]
            replies.append(reply)
    if not replies:
        raise RunError("no client was left in this round: see the warnings before this line")
    return sorted(replies, key=exchange.sender)


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


def train_rounds(
    federation: Federation, strategy, weights, settings: Settings, start: int = 0
) -> Iterator[tuple[int, dict, dict]]:
    """Yields (round, weights, row) for the rounds after `start`; `row` is what the history keeps of the training."""
    seed = settings.seed
    trainers = federation.trainers
    count = strategies.clients_per_round(settings.strategy, len(trainers))
    for round in range(start + 1, settings.rounds + 1):
        chosen = [trainers[place] for place in sample_clients(len(trainers), count, seed, round)]
        with seeded(derive(seed, "strategy", round)):  # some strategies add noise from the global generators
            weights, metrics, missing = federation.train(strategy, round, weights, chosen)
        if broken := [key for key, vector in weights.items() if not np.isfinite(vector).all()]:
            raise RunError(
                f"the global model became NaN or infinite in round {round} under {type(strategy).__name__} (its "
                f"{' and '.join(broken)}); a smaller client.lr may help"
            )
        loss = {"train/loss": metrics["loss"]} if "loss" in metrics else {}  # some strategies have clients withhold it
        row = {"round": round, **loss, "train/clients": len(chosen) - len(missing)}
        yield round, weights, row | ({"train/missing": missing} if missing else {})


def sample_clients(clients: int, count: int, seed: int, round: int) -> list[int]:
    """The `count` clients of one round, ascending, drawn with the run's seed.

    They take turns, in an order drawn anew whenever everyone has been asked: without replacement over rounds, which
    converges faster than drawing each round for itself (Malinovsky et al. 2022). Where `count` does not divide
    `clients`, a turn's last round is filled up with its first.
    """
    turn, place = divmod(round - 1, -(-clients // count))
    order = np.random.default_rng(derive(seed, "sample", turn)).permutation(clients)
    return sorted(int(client) for client in order.take(range(place * count, (place + 1) * count), mode="wrap"))
