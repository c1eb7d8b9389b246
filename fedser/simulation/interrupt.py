"""Ctrl-C while clients are at work: the first lets them finish, the second ends them."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from fedser.simulation import backend
from fedser.simulation.plan import Plan

log = logging.getLogger(__name__)


@contextlib.contextmanager
def listening(stop: threading.Event, plan: Plan) -> Iterator[None]:
    """A block in which the first Ctrl-C sets `stop`. In a thread that gets no signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum, frame):
        stop.set()
        signal.signal(signal.SIGINT, insist)
        log.warning("stopping when the clients at work are done; Ctrl-C again ends them")

    def insist(signum, frame):
        signal.signal(signal.SIGINT, before)
        if plan.backend != "ray":
            raise KeyboardInterrupt
        backend.end_clients()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
