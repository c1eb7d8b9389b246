"""Grids whose clients are simulated: messages to virtual clients, one after the other in this process."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedser.federation import transport


def context(node: int, clients: int) -> Context:
    """What the app of the client behind a node is told: which of so many it is."""
    return Context(0, node, {"partition-id": node - 1, "num-partitions": clients}, RecordDict(), {})


def answers(app: ClientApp, messages: Sequence[Message], clients: int, stacked: int) -> Iterator[Message]:
    """Clients' replies, one by one; those of `stacked` clients that train side by side come together."""
    contexts = [context(message.metadata.dst_node_id, clients) for message in messages]
    together = stacked > 1 and train_messages(messages)
    replies = app.together(messages, contexts) if together else map(app, messages, contexts)
    return iter(replies)


def train_messages(messages: Sequence[Message]) -> bool:
    """Whether all of them ask for a round of training."""
    return all(message.metadata.message_type == MessageType.TRAIN for message in messages)


@contextlib.contextmanager
def task_identity() -> Iterator[None]:
    """Flower's messages ask their process who it is; its own simulation sets this, and so must ours."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.task_identity import TaskIdentity

    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, 0, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


class SimulatedGrid(Grid):
    """A Grid of virtual clients behind the nodes 1, 2, …; where they compute is its subclasses' matter."""

    def __init__(self, clients: int):
        self.clients = clients

    def set_run(self, run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self):
        return None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(range(1, self.clients + 1))

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            identifier = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = identifier  # as Flower's own in-memory grid does
            self._take(identifier, message)
            identifiers.append(identifier)
        return identifiers

    def send_and_receive(self, messages, *, timeout=None):
        waiting, replies = set(self.push_messages(messages)), []
        while waiting:
            arrived = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
        return replies

    def _take(self, identifier: str, message: Message) -> None:
        raise NotImplementedError


class SerialGrid(SimulatedGrid):
    """A Grid whose clients live in this process and answer when their replies are pulled, one per pull.

    The numbers are those of the simulation on Ray to the bit: the same apps, messages and order of aggregation.
    `stacked` clients train at a time, as their messages were sent, and answer together.
    """

    def __init__(self, client_app: ClientApp, clients: int, stacked: int = 1):
        super().__init__(clients)
        self._app, self._stacked = client_app, stacked
        self._inbox: dict[str, Message] = {}

    def _take(self, identifier, message):
        self._inbox[identifier] = message

    def pull_messages(self, message_ids):
        """The reply to the first of these messages that waits, made now, with those of who trains beside it."""
        identifier = next((key for key in self._inbox if key in set(message_ids)), None)
        if identifier is None:
            return []
        messages = [self._inbox.pop(identifier)]
        if train_messages(messages):
            more = [key for key, message in self._inbox.items() if train_messages([message])][: self._stacked - 1]
            messages += [self._inbox.pop(key) for key in more]
        replies = list(answers(self._app, messages, self.clients, self._stacked))
        for reply in replies:
            if not reply.has_error():
                transport.detach(reply.content)
        return replies
