"""Where the clients run: on Ray actors, or one after the other in this process."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedser.errors import Interrupted
from fedser.simulation import ray_cluster
from fedser.simulation.grids import SerialGrid
from fedser.simulation.grids import task_identity as _task_identity
from fedser.simulation.plan import Plan, plan

__all__ = ["Plan", "SerialGrid", "end_clients", "plan", "quiet_flower", "simulate"]
SECONDS_TO_STOP = 30  # for the clients at work to finish, once the run has been interrupted
_grids: list = []  # of the run under way, on Ray


def simulate(serve: Callable[[Grid], None], client_app: ClientApp, clients: int, plan: Plan, stop: threading.Event):
    """Runs `serve(grid)` against `clients` virtual clients; returns when it returns, raises what it raises.

    `stop` is set on the way out, so that a server thread which still waits for replies ends too. A Ray that was there
    before stays as it was.
    """
    if plan.backend == "serial":
        with _threads_restored(), _task_identity(), quiet_flower():
            serve(SerialGrid(client_app, clients, plan.stacked))
        return
    with ray_cluster.up(plan) as resources, _task_identity(), quiet_flower():
        from fedser.simulation.ray_grid import RayGrid  # here, as `simulation=serial` needs no Ray

        grid = RayGrid(client_app, clients, plan.actors, resources, plan.stacked)
        _grids.append(grid)
        try:
            serve(grid)
        except Interrupted:
            grid.finish(SECONDS_TO_STOP)  # a client that hangs must not hold the run for ever
            raise
        finally:
            stop.set()
            end_clients()


def end_clients() -> None:
    """Kills this run's workers and nobody else's, so that what waits for their replies goes on; from any thread."""
    while _grids:
        _grids.pop().end()


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
def _threads_restored() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
