"""Ray: one of this run's own, or a running cluster that is joined and left as it was.

Beside this file `ray_grid.py` and `federation/transport.py` are the only ones that know Ray.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fedser.errors import InputError
from fedser.simulation.resources import Machine

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
PRELOADED = ["fedser.federation.client_app"]  # by workers, while this process gets to its first message


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[None]:
    """A block in which this process belongs to the cluster at `address`: auto, HOST:PORT or ray://HOST:PORT.

    Nothing happens for None, nor where this process has a Ray already, which is its caller's and stays.
    Raises InputError when no cluster answers there.
    """
    import ray

    if address is None or ray.is_initialized():
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

    if not ray.is_initialized():
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
    import ray

    with joined(plan.address):
        if ray.is_initialized():
            yield {"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus}
        else:
            with _own(plan):
                # In a Ray of our own a CPU is a place for one client.
                yield {"num_cpus": 1, "num_gpus": plan.num_gpus}


@contextlib.contextmanager
def _own(plan) -> Iterator[None]:
    """A Ray with room for exactly the planned clients; its processes end when this one does, even if it is killed."""
    import ray

    with scratch_folder() as scratch, _environment(**OF_OUR_OWN):
        try:
            with _few_processes(), _module_search():
                ray.init(
                    address="local",  # else Ray would join a cluster that it finds, or that RAY_ADDRESS names
                    num_cpus=plan.actors,
                    num_gpus=plan.total_gpus if plan.num_gpus else 0,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=plan.store_bytes,
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
def _few_processes() -> Iterator[None]:
    """A block in which Ray starts without those that are SPARED."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in SPARED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda self, **_: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


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
