"""Where the clients run: on Ray actors through Flower's simulation, or one after the other in this process.

The only file that knows Ray.
"""

import contextlib
import functools
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedser.errors import InputError, Interrupted
from fedser.federation import transport

log = logging.getLogger(__name__)
SHARE_OF_A_GPU = 0.25  # what `simulation=auto` gives a client
SECONDS_TO_STOP = 30  # for the clients at work to finish, once the run has been interrupted
LEAST_STORE = 100 * 2**20  # bytes of the object store beside the global model and the replies under way
RETRIES = 2  # a client whose worker died is done again so many times


@dataclass(frozen=True)
class Plan:
    """How many clients run at a time, and what each is given."""

    backend: str
    actors: int
    num_cpus: float
    num_gpus: float
    total_gpus: float
    reply_bytes: int = 0

    @property
    def window(self) -> int:
        """How many messages may be on their way: so many that no actor waits for work, Flower looks ten times a second."""
        return 2 * self.actors + 8

    @property
    def store_bytes(self) -> int:
        """Ray's object store. Small, as each process pays for every page of it that it ever touched.

        It has room for this round's and the last round's global model, and for each actor a reply under way and one
        that waits to be added; should that not do, Ray puts the rest on disk.
        """
        return LEAST_STORE + (2 * self.actors + 4) * self.reply_bytes

    def __str__(self) -> str:
        if self.backend == "serial":
            return "in this process, one client at a time"
        gpu = f" and {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"{self.actors} clients at a time on Ray, each with {self.num_cpus:g} CPU{gpu}"


def plan(settings: dict, clients: int) -> Plan:
    """Fits the settings to the machine, before anything starts.

    Raises InputError, saying which number to change, when not even one client fits.
    """
    wanted = settings["simulation"]
    cpus, gpus = machine(wanted)
    num_cpus, num_gpus = wanted["num_cpus"], wanted["num_gpus"]
    if num_gpus is None:
        num_gpus = SHARE_OF_A_GPU if gpus else 0.0
    if num_gpus > gpus:
        raise InputError(
            f"simulation.num_gpus={num_gpus:g} per client, but this machine has {gpus:g} GPUs: "
            "choose simulation=cpu, or lower simulation.num_gpus."
        )
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise InputError(f"simulation.num_gpus={num_gpus:g} must be a fraction of one GPU or a whole number of them.")
    if wanted["backend"] == "serial":
        return Plan("serial", 1, 1, 0.0, 0.0)
    if wanted["actors"] is None and num_cpus > cpus:
        raise InputError(
            f"simulation.num_cpus={num_cpus:g} per client, but this machine has {cpus:g} CPU cores: "
            f"set simulation.num_cpus to at most {cpus:g}."
        )
    on_gpus = clients
    if num_gpus:  # a fraction must fit on one card: two clients of 0.6 do not share what is left of two
        on_gpus = int(gpus) * int(1 / num_gpus + 1e-9) if num_gpus < 1 else int(gpus / num_gpus)
    fits = min(int(cpus / num_cpus), on_gpus)
    actors = min(wanted["actors"] or max(fits, 1), clients)
    if actors > on_gpus:
        raise InputError(
            f"simulation.actors={actors} with simulation.num_gpus={num_gpus:g} each do not fit on {gpus:g} GPUs: "
            f"set simulation.actors to at most {on_gpus}, or lower simulation.num_gpus."
        )
    if actors * num_cpus > cpus:
        log.warning(
            "%d clients at a time with %g CPU each share %g cores: they will take turns (simulation.actors)",
            actors, num_cpus, cpus,
        )  # fmt: skip
    return Plan("ray", actors, num_cpus, float(num_gpus), float(gpus))


def machine(wanted: dict) -> tuple[float, float]:
    """CPU cores and GPUs: of the Ray cluster this process has joined, else of this machine."""
    import ray
    import torch

    if ray.is_initialized():
        there = ray.cluster_resources()
        return there.get("CPU", 0.0), there.get("GPU", 0.0)
    gpus = torch.cuda.device_count() if wanted["total_gpus"] is None else wanted["total_gpus"]
    return float(len(os.sched_getaffinity(0))), float(gpus)


def simulate(serve: Callable[[Grid], None], client_app: ClientApp, clients: int, plan: Plan, stop: threading.Event):
    """Runs `serve(grid)` against `clients` virtual clients; returns when it returns, raises what it raises.

    `stop` is set on the way out, so that a server thread which still waits for replies ends too.
    """
    if plan.backend == "serial":
        with _threads_restored(), _task_identity(), _quiet_flower():
            serve(SerialGrid(client_app, clients))
        return
    import ray
    from flwr.simulation import run_simulation

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
    joined = ray.is_initialized()
    # In a Ray of our own a CPU is a place for one client: Flower makes as many actors as the logical CPUs allow.
    resources = {"num_cpus": plan.num_cpus if joined else 1, "num_gpus": plan.num_gpus}
    # Flower hands these on to Ray, which restarts a worker that died and repeats its client on it.
    resources |= {"max_restarts": -1, "max_task_retries": RETRIES}
    with _ray(plan), _quiet_flower(), _adapted_flower(plan):
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


def end_clients() -> None:
    """Kills this job's workers, so that what waits for their replies goes on; nothing without Ray.

    `ray.shutdown` would not do: a `ray.get` in another thread, where Flower waits, sleeps through it. Killing their
    processes would not either: Ray would start them again.
    """
    import ray
    from ray._private import state
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return
    job = ray.get_runtime_context().get_job_id()
    for key, actor in state.actors().items():
        if actor["JobID"] == job and actor["State"] != "DEAD":
            with contextlib.suppress(Exception):  # it may have ended meanwhile
                global_worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(key)), True)


@contextlib.contextmanager
def _ray(plan: Plan) -> Iterator[None]:
    """Ray with room for exactly the planned actors; its temp folder is removed afterwards (flower#1516)."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Sockets live below this folder and their paths may have 107 characters, so it can't be in the run's folder.
    scratch = tempfile.mkdtemp(prefix="fedser-ray-")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            num_cpus=plan.actors,
            num_gpus=plan.total_gpus if plan.num_gpus else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=plan.store_bytes,
            _temp_dir=scratch,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower's log is for people who start it by hand; what goes wrong reaches the user through fedser's errors."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _adapted_flower(plan: Plan) -> Iterator[None]:
    """Two things that Flower's simulation fixes and a run must choose.

    It waits for clients in min(32, cores + 4) threads whatever the number of actors, and it shuts Ray down at its end,
    be it a cluster's or the caller's.
    """
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.server.superlink.fleet.vce.backend import raybackend

    threads, ray = vce_api.ThreadPoolExecutor, raybackend.ray
    vce_api.ThreadPoolExecutor = functools.partial(threads, max_workers=max(plan.actors, 1))
    raybackend.ray = _LastingRay(ray)
    try:
        yield
    finally:
        vce_api.ThreadPoolExecutor, raybackend.ray = threads, ray


class _LastingRay:
    """The ray module as Flower's backend sees it."""

    def __init__(self, ray):
        self._ray = ray

    def shutdown(self) -> None:
        """Left to whoever started Ray."""

    def __getattr__(self, name):
        return getattr(self._ray, name)


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
