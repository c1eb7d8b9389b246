"""Ray: one of this run's own, or a running cluster that is joined and left as it was.

Beside this file `ray_grid.py` and `federation/transport.py` are the only ones that know Ray.
"""

import contextlib
import fcntl
import functools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

from fedser.errors import InputError
from fedser.simulation.resources import Machine, cards, cores, free_memory

log = logging.getLogger(__name__)
PREFIX = "fedser-ray-"
LOCK = "fedser.lock"
LONGEST_ROOT = 24  # characters: sockets lie up to 83 deeper, and their paths may have 107
SECONDS_TO_CONNECT = 5
ATTEMPTS = 3  # at ray://, where Ray's server for a client dies at its start one time in fourteen (ray#63202)
HOW = (
    "Start one with `ray start --head`, and on every other machine `ray start --address=HOST:6379`; "
    "or leave simulation.address null for a Ray of this run's own."
)
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # or Ray warns of a change to come
# When the run is killed, the kernel ends most of its Ray at once; its agents seek the rest for so long, Ray's own 60 s.
OF_OUR_OWN = QUIET | {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
# That an interrupted run ends its clients is no news for the terminal. Ray reads this when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "killed by `ray.kill`")
# Nor that a task failed of which nobody waits for the last reply: who waited for the one before says so.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
# Smaller objects travel inside Ray's messages (its default: 100 KiB): a reply through the object store costs Ray's
# raylet 2 ms of a core, a small model's training some 60.
INLINE_BYTES = 1 << 20
# Processes of Ray's that a run of one machine has no use for: an autoscaler, a dashboard's server, for which `ray.init`
# waits, and a reader of the workers' logs for a terminal that does not show them. 3 s of a core at the start.
SPARED = ("start_monitor", "start_api_server", "start_log_monitor")
# By workers, while this process gets to its first message.
PRELOADED = ["fedser.simulation.importing", "fedser.federation.client_app", "fedser.simulation.ray_grid"]
MOST_AHEAD = 8  # processes are started before it is known how many will be of use
STORE_AHEAD = 2**30  # bytes of the object store then, at most; only those are taken that are written
LEAST_AHEAD = 2**27  # bytes of it; where there is less room, it is planned first
SHARED = Path("/dev/shm")  # where Ray has its object store, if it has room there


class Ahead:
    """A Ray of this run's own, with room for so many clients, that starts in a thread."""

    def __init__(self, places: int):
        self.places, self.free = places, free_memory()  # bytes, before it took some
        self.store_bytes = min(STORE_AHEAD, *(room // 4 for room in (self.free, shutil.disk_usage(SHARED).free)))
        self._started: Future = Future()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _live(self) -> None:
        # The whole life in one thread: the kernel ends Ray's processes when the thread ends that started them.
        try:
            with _own(self.places, self.store_bytes, 0):
                self._started.set_result(None)
                self._over.wait()
        except Exception as error:
            if self._started.done():
                log.warning("the run's Ray could not be ended: %s", error)
            else:
                self._started.set_exception(error)

    def fits(self, plan) -> bool:
        """Whether the planned clients have room in it, once it has started, if it could be."""
        enough = plan.actors <= self.places and plan.store_bytes <= self.store_bytes and not plan.num_gpus
        return enough and self._started.exception() is None

    def end(self) -> None:
        """Ends it, be it before it has quite started."""
        self._over.set()
        self._thread.join()


_ahead: Ahead | None = None


@contextlib.contextmanager
def ahead(simulation: Mapping | None, folder: Path) -> Iterator[None]:
    """A block in which a run is prepared, and a Ray for it starts meanwhile: on two cores a third of the time to the
    first round. `simulation` is as it was given, not validated yet; `folder` is the run's.

    Not where the run may use a GPU, of which Ray has to know; where it may take more processes than `MOST_AHEAD`; or
    where it may have finished before.
    """
    global _ahead
    places = _places(simulation) if isinstance(simulation, Mapping) else 0
    if not 0 < places <= MOST_AHEAD or (folder / "summary.json").exists() or _initialised():
        yield
        return
    import ray  # noqa: F401, here: two threads that import at a time are slower than one after the other

    _ahead = Ahead(places)
    if threading.current_thread() is threading.main_thread():  # as Ray does itself in the main thread
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    try:
        yield
    finally:
        _end_ahead()


def _places(simulation: Mapping) -> int:
    """How many clients a Ray that starts ahead is to have room for; 0: there shall be none."""
    gpus = cards() or simulation.get("num_gpus") or simulation.get("total_gpus")
    if simulation.get("backend") != "ray" or simulation.get("address") is not None or gpus:
        return 0
    if not SHARED.is_dir() or min(free_memory(), shutil.disk_usage(SHARED).free) // 4 < LEAST_AHEAD:
        return 0
    actors = simulation.get("actors")
    return int(cores()) if actors is None else actors if isinstance(actors, int) else 0


def _end_ahead() -> None:
    global _ahead
    if _ahead:
        _ahead.end()
        _ahead = None


def _initialised() -> bool:
    """Whether this process has a Ray that is not one that starts ahead."""
    return _ahead is None and "ray" in sys.modules and sys.modules["ray"].is_initialized()


def free_before() -> int | None:
    """The bytes of memory that were free before a Ray that starts ahead; None where none does."""
    return _ahead and _ahead.free


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[None]:
    """A block in which this process belongs to the cluster at `address`: auto, HOST:PORT or ray://HOST:PORT.

    Nothing happens for None, nor where this process has a Ray already, which is its caller's and stays.
    Raises InputError when no cluster answers there.
    """
    import ray

    if address is None or _initialised():
        yield
        return
    found = _find(address)
    try:
        _connect(found)
    except Exception as error:
        ray.shutdown()
        raise InputError(
            f"simulation.address={address}: this process can't join the Ray cluster at {found}: {error}. Run fedser on "
            "a machine of the cluster, with the versions of Ray and Python that the cluster runs."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()  # disconnects: the cluster is not ours


def _connect(found: str) -> None:
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _environment(**QUIET):
                ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError:
            if attempt == ATTEMPTS:
                raise


def _find(address: str) -> str:
    """HOST:PORT or ray://HOST:PORT of a cluster that answers. Raises InputError when there is none."""
    found = address
    if address == "auto":
        from ray._private.utils import read_ray_address

        # Ray itself would take any Ray process it finds on the machine, be it another run's own.
        found = os.environ.get("RAY_ADDRESS") or read_ray_address()
        if not found:
            raise InputError(f"simulation.address=auto: there is no Ray cluster on this machine. {HOW}")
    host, _, port = found.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"simulation.address={found} must be auto, HOST:PORT or ray://HOST:PORT.")
    try:  # Ray itself would try for minutes
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"simulation.address={address}: no Ray cluster answers at {found} ({error}). {HOW}") from error
    return found


def machines() -> list[Machine] | None:
    """The machines of the Ray that this process has joined, None where it has joined none."""
    import ray

    if not _initialised():
        return None
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(node.get("CPU", 0.0), node.get("GPU", 0.0), int(node.get("memory", 0)) or None) for node in there]


def free() -> Machine:
    """The cores and GPUs of the joined Ray that no other job holds at the moment, all machines together."""
    import ray

    there = ray.available_resources()
    return Machine(there.get("CPU", 0.0), there.get("GPU", 0.0))


@contextlib.contextmanager
def up(plan) -> Iterator[dict]:
    """A Ray with room for the planned clients; yields what each of them takes of it, as Ray's options for an actor."""
    with joined(plan.address):
        if _initialised():
            yield {"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus}
            return
        of_our_own = {"num_cpus": 1, "num_gpus": plan.num_gpus}  # where a CPU is a place for one client
        if _ahead and _ahead.fits(plan):
            try:
                yield of_our_own
            finally:
                _end_ahead()
            return
        _end_ahead()
        with _own(plan.actors, plan.store_bytes, plan.total_gpus if plan.num_gpus else 0):
            yield of_our_own


@contextlib.contextmanager
def _own(actors: int, store_bytes: int, gpus: float) -> Iterator[None]:
    """A Ray with room for so many clients and bytes; its processes end when this one does, even if it is killed."""
    import ray

    with scratch_folder() as scratch, _environment(**OF_OUR_OWN):
        try:
            with _quick_start(), _module_search():
                ray.init(
                    address="local",  # else Ray would join a cluster that it finds, or that RAY_ADDRESS names
                    num_cpus=actors,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=store_bytes,
                    _temp_dir=str(scratch),
                    _system_config={
                        "max_direct_call_object_size": INLINE_BYTES,
                        "preload_python_modules": PRELOADED,
                    },
                )
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _quick_start() -> Iterator[None]:
    """A block in which Ray starts without the processes that are SPARED, and goes on as soon as it has started."""
    from ray._private import services
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in SPARED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda self, **_: None)
    get_node = services.get_node
    services.get_node = functools.partial(_awaited, get_node)
    try:
        yield
    finally:
        services.get_node = get_node
        for name, start in before.items():
            setattr(Node, name, start)


def _awaited(get_node: Callable, address: str, node: str):
    """What `get_node` finds, which looks once a second by itself."""
    from ray._private import services, state

    with contextlib.suppress(Exception):  # it says what is wrong
        there, end = state.GlobalState(), time.monotonic() + SECONDS_TO_CONNECT
        there._initialize_global_state(services._get_gcs_client_options(address))
        while time.monotonic() < end and node not in {each["NodeID"] for each in there.node_table()}:
            time.sleep(0.02)
    return get_node(address, node)


@contextlib.contextmanager
def _module_search() -> Iterator[None]:
    """A block whose new processes find modules where this one does, and in this order: fedser may be a checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Environment variables where the user has not set them, for Ray's processes, which inherit them."""
    added = {key: value for key, value in defaults.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Ray's folder for sockets, logs and what leaves memory; removed afterwards (flower#1516).

    Those that killed runs have left behind are removed first. It lies in the temp folder and not in the run's, since
    the paths of sockets must be short.
    """
    root = Path(tempfile.gettempdir())
    root = root if len(str(root)) <= LONGEST_ROOT else Path("/tmp")
    sweep(root)
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=root))
    with (made / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(root / made.name[1:])  # none of this name is ever without its owner's lock
        try:
            yield folder
        finally:
            _remove(folder)


def sweep(root: Path) -> None:
    """Removes the Ray folders under `root` whose runs are dead: the kernel let go of their locks."""
    for folder in root.glob(f"{PREFIX}*"):
        # OSError: the run lives, or the folder is another user's.
        with contextlib.suppress(OSError), (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(20):  # Ray's last processes may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
