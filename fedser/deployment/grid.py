"""The clients of a run by their names, wherever they are connected: a Grid that the server's loop knows no end of.

A SuperNode has another id whenever it comes back, so that clients are known by what they call themselves. The nodes of
this grid are the run's clients, 1 … n in the order of their names, as in a simulation. A message to one that is away
waits for her, for as long as she may take to answer, and is sent again should she have died over it.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedser.errors import InputError, Interrupted, RunError

log = logging.getLogger(__name__)
ROSTER = "roster"  # the query by which nodes are asked who they are
TO = "to"  # the record of a message that says which number the client has, and the hash of the clips that it had
AWAY = (3, 4, 5, 8)  # Flower's codes for messages and replies that were lost, nodes that are gone, apps that died
TIMED_OUT = 100  # our own, of a client that did not answer in time
POLL_SECONDS = 0.1  # between two questions for replies, which go over the network
LOOK_SECONDS = 1.0  # between two looks at who is connected
LINGER_SECONDS = 60.0  # of a message that nobody waits for any more: what Flower drops looks like a client that left
GRACE_SECONDS = 10.0  # for a reply on its way, beyond what a client may take


@dataclass
class _Sent:
    """A message to a client, until there is a reply."""

    message: Message  # as the server's loop made it
    name: str
    deadline: float
    node: int | None = None  # where it was sent
    key: str | None = None  # of what was sent there, as Flower calls it
    refusal: str = ""  # why it is not waited for


@dataclass
class Deployed(Grid):
    """See the module. `greeting` is asked of every node that is new; `timeout` in seconds is for each answer."""

    grid: Grid
    greeting: RecordDict
    timeout: float
    stop: threading.Event
    accepted: Callable[[dict], str] = lambda told: ""  # why a client that comes back may not go on, if so
    names: list[str] = field(default_factory=list)  # of the run's clients, in their order
    _nodes: dict[str, int] = field(default_factory=dict)  # where they are connected
    _data: dict[str, str] = field(default_factory=dict)  # the hashes of their clips
    _gone: set[str] = field(default_factory=set)  # who did not come back in time; no longer waited for
    _asked: dict[str, int] = field(default_factory=dict)  # greetings under way, and to which node
    _met: set[int] = field(default_factory=set)  # nodes that were greeted
    _sent: dict[str, _Sent] = field(default_factory=dict)
    _connected: set[int] = field(default_factory=set)  # nodes, as of the last look
    _looked: float = 0.0

    # --- who is there ---------------------------------------------------------------------------------------------

    def gather(self, clients: int, wait: float) -> list[dict]:
        """Waits until so many clients have said who they are → what they told, in the order of their names.

        Raises InputError for two of one name and for what a client complains about, RunError where they are too few
        after `wait` seconds, Interrupted when stopped.
        """
        told: dict[str, dict] = {}
        until = time.monotonic() + wait
        log.warning("waiting for %d clients", clients)
        while len(told) < clients:
            if self.stop.is_set():
                raise Interrupted("stopped")
            if time.monotonic() > until:
                who = f": {', '.join(sorted(told))}" if told else ""
                raise RunError(f"after {wait:g} s there are {len(told)} of {clients} clients{who}.")
            for node, found in self._greeted():
                if isinstance(found, str) and found.startswith("client "):
                    raise InputError(found)
                if isinstance(found, str):
                    log.warning("a node that is no fedser-client is left out: %s", found)
                    continue
                if found["name"] in told:
                    raise InputError(
                        f"two clients call themselves '{found['name']}': start one of them with another --speaker."
                    )
                told[found["name"]], self._nodes[found["name"]] = found, node
                log.warning("client '%s' is there (%d of %d)", found["name"], len(told), clients)
            time.sleep(0.1)
        self.names = sorted(told)
        self._data = {name: str(told[name].get("data", "")) for name in self.names}
        return [told[name] for name in self.names]

    def _greeted(self) -> list[tuple[int, dict | str]]:
        """Asks new nodes who they are, and what has come in: nodes with what they told, or complained about."""
        self._connected = set(self.grid.get_node_ids())
        self._met &= self._connected  # one that comes back has the same id where it has the same key
        new = [node for node in self._connected if node not in self._met]
        self._met |= set(new)
        kind = f"{MessageType.QUERY}.{ROSTER}"
        keys = self.grid.push_messages([Message(self.greeting, node, kind, ttl=self.timeout) for node in new])
        self._asked |= dict(zip(keys, new, strict=True))
        found = []
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else ():
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                found.append((node, dict(reply.content["config"])))
            elif reply.error.code in AWAY:
                self._met.discard(node)
            else:
                found.append((node, (reply.error.reason or "").splitlines()[0]))
        return found

    def _look(self) -> None:
        """Who has come back, and who is away."""
        if time.monotonic() < self._looked + LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for node, found in self._greeted():
            if isinstance(found, str):
                log.warning("%s", found)
                continue
            name, there = found["name"], self._nodes.get(found["name"])
            if name not in self.names:
                log.warning("client '%s' is not of this run, which has begun: it can take part in the next", name)
            elif there in self._connected and there != node:
                log.warning("another client calls itself '%s', which is there: it is not asked", name)
            elif why := self.accepted(found):
                log.warning("%s", why)
                self._nodes.pop(name, None)
            else:
                log.warning("client '%s' is back", name)
                self._nodes[name] = node
                self._gone.discard(name)

    # --- Flower's interface ---------------------------------------------------------------------------------------

    def set_run(self, run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self):
        return self.grid.run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.names) + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends what can be sent; to clients that are away, when they are back. The keys are this grid's own."""
        self._look()
        keys = []
        for message in messages:
            name, key = self.names[message.metadata.dst_node_id - 1], str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = key
            sent = _Sent(message, name, time.monotonic() + self.timeout + min(self.timeout, GRACE_SECONDS))
            sent.refusal = "it has left, and is not back" if name in self._gone else ""
            self._sent[key] = sent
            keys.append(key)
        self._send()
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies, and errors of those who did not answer in time."""
        self._look()
        ours = {key: self._sent[key] for key in set(message_ids) if key in self._sent}
        by_key = {sent.key: key for key, sent in ours.items() if sent.key}
        found = []
        for reply in self.grid.pull_messages(list(by_key)) if by_key else ():
            key = by_key[reply.metadata.reply_to_message_id]
            sent = ours[key]
            if reply.has_error() and reply.error.code in AWAY:
                log.warning(
                    "client '%s' is away (%s): it is waited for", sent.name, " ".join(str(reply.error.reason).split())
                )
                sent.node = sent.key = None
                if (node := self._nodes.pop(sent.name, None)) is not None:
                    self._met.discard(node)  # should it still be there, it is asked again who it is
                continue
            found.append(self._answered(key, reply))
        for key, sent in ours.items():
            if key in self._sent and (sent.refusal or time.monotonic() > sent.deadline):
                found.append(self._late(key))
        self._send()
        if not found:
            time.sleep(POLL_SECONDS)
        return found

    def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
        waiting = set(self.push_messages(messages))
        found: list[Message] = []
        while waiting:
            replies = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            found += replies
            time.sleep(0.1)
        return found

    def _send(self) -> None:
        """What waits for clients that are connected."""
        waiting = [sent for sent in self._sent.values() if sent.key is None and not sent.refusal]
        able = [sent for sent in waiting if self._nodes.get(sent.name) in self._connected]
        if not able:
            return
        for sent in able:
            sent.node = self._nodes[sent.name]
        for sent, key in zip(able, self.grid.push_messages([self._addressed(sent) for sent in able]), strict=True):
            sent.key = key

    def _addressed(self, sent: _Sent) -> Message:
        """The message with the client's number, to where it is."""
        about = sent.message.metadata
        to = ConfigRecord({"number": about.dst_node_id - 1, "data": self._data.get(sent.name, "")})
        content = RecordDict(dict(sent.message.content) | {TO: to})
        left = max(sent.deadline - time.monotonic(), 0.0) + LINGER_SECONDS
        return Message(content, sent.node, about.message_type, ttl=left, group_id=about.group_id)

    def _answered(self, key: str, reply: Message) -> Message:
        """The reply as one of this grid's client to this grid's message."""
        asked = self._sent.pop(key).message.metadata
        mine = {"_src_node_id": asked.dst_node_id, "_reply_to_message_id": key, "_group_id": asked.group_id}
        reply.metadata.__dict__.update(mine)
        return reply

    def _late(self, key: str) -> Message:
        sent = self._sent[key]
        why = sent.refusal or f"no answer within client.timeout={self.timeout:g} s"
        if not sent.refusal and self._nodes.get(sent.name) not in self._connected:
            self._gone.add(sent.name)
            why = f"it left, and did not come back within client.timeout={self.timeout:g} s"
        error = Message(Error(TIMED_OUT, f"client '{sent.name}': {why}"), reply_to=sent.message)
        return self._answered(key, error)
