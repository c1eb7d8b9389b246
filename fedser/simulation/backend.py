"""Where the clients run: on Ray actors through Flower's simulation, or one after the other in this process."""

import contextlib
import importlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedser.errors import Interrupted
from fedser.federation import transport
from fedser.simulation import ray_cluster
from fedser.simulation.plan import Plan, plan
from fedser.simulation.ray_cluster import end_clients

__all__ = ["Plan", "SerialGrid", "end_clients", "plan", "quiet_flower", "simulate"]
SECONDS_TO_STOP = 30  # for the clients at work to finish, once the run has been interrupted
RETRIES = 2  # a client whose worker died is done again so many times


def simulate(serve: Callable[[Grid], None], client_app: ClientApp, clients: int, plan: Plan, stop: threading.Event):
    """Runs `serve(grid)` against `clients` virtual clients; returns when it returns, raises what it raises.

    `stop` is set on the way out, so that a server thread which still waits for replies ends too. A Ray that was there
    before stays as it was.
    """
    if plan.backend == "serial":
        with _threads_restored(), _task_identity(), quiet_flower():
            serve(SerialGrid(client_app, clients))
        return
    imported = _importing("flwr.simulation")  # for a second, in which Ray's processes start
    server_app = ServerApp()
    raised: list[BaseException] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            serve(grid)
        except Interrupted as error:
            raised.append(error)
            impatience.start()
        except BaseException as error:
            raised.append(error)
            end_clients()

    impatience = threading.Timer(SECONDS_TO_STOP, end_clients)  # a client that hangs must not hold the run for ever
    impatience.daemon = True
    with ray_cluster.up(plan) as resources, quiet_flower(), _joined(imported), ray_cluster.adapted_flower(plan.actors):
        from flwr.simulation import run_simulation

        # Flower hands these on to Ray, which restarts a worker that died and repeats its client on it.
        resources |= {"max_restarts": -1, "max_task_retries": RETRIES}
        try:
            run_simulation(server_app, client_app, clients, backend_config={"client_resources": resources})
        except RuntimeError:
            if not raised:
                raise
        finally:
            stop.set()
            impatience.cancel()
    if raised:
        raise raised[0]


def _importing(module: str) -> threading.Thread:
    """A thread that imports a module, after Ray, which this one is about to use."""
    importlib.import_module("ray")
    thread = threading.Thread(target=importlib.import_module, args=[module])
    thread.start()
    return thread


@contextlib.contextmanager
def _joined(thread: threading.Thread) -> Iterator[None]:
    thread.join()
    yield


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Flower's log is for people who start it by hand; what goes wrong reaches the user through fedser's errors."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _task_identity() -> Iterator[None]:
    """Flower's messages ask their process who it is; its simulation sets this, and so must we without it."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.task_identity import TaskIdentity

    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, 0, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SerialGrid(Grid):
    """A Grid whose clients live in this process and answer when their replies are pulled, one per pull.

    The numbers are those of the Ray simulation to the bit: the same apps, messages and order of aggregation.
    """

    def __init__(self, client_app: ClientApp, clients: int):
        self._app = client_app
        self._contexts = {
            node: Context(0, node, {"partition-id": node - 1, "num-partitions": clients}, RecordDict(), {})
            for node in range(1, clients + 1)
        }
        self._inbox: dict[str, Message] = {}

    def set_run(self, run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self):
        return None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self._contexts)

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            identifier = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = identifier  # as Flower's own in-memory grid does
            self._inbox[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids):
        identifier = next((key for key in self._inbox if key in set(message_ids)), None)
        if identifier is None:
            return []
        message = self._inbox.pop(identifier)
        reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        if not reply.has_error():
            transport.detach(reply.content)
        return [reply]

    def send_and_receive(self, messages, *, timeout=None):
        waiting = list(self.push_messages(messages))
        return [self.pull_messages([identifier])[0] for identifier in waiting]
