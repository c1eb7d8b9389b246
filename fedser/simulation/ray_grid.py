"""A Grid whose clients compute on Ray: several of them in one task, their replies one by one.

Flower's own simulation gives a worker a message, and the next one when the reply has been looked at; its messages lie
in a table that three threads poll. Here a worker has its next task before it is done with the last, and the driver
sleeps until a reply is there.
"""

import gc
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import ray
from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from fedser.federation import shared_memory, transport
from fedser.simulation.grids import SimulatedGrid, answers, task_identity, train_messages

log = logging.getLogger(__name__)
WORKER_FAILED = 0  # Flower's error code where nothing better is known
SECONDS_OF_A_TASK = 0.3  # as many clients go into a task as take so long
MOST_IN_A_TASK = 8
RETRIES = 2  # a client whose worker died is done again so many times
SECONDS_TO_SLEEP = 0.2  # at most, while nothing arrives: Ctrl-C is noticed in between


@ray.remote
class ClientAppActor:
    """A worker process: Flower's ClientApp, which may be any of so many clients.

    Where the memory that the driver `offered` can be read, the driver reads large replies where they lie.
    """

    def __init__(self, app: ClientApp, clients: int, stacked: int, offered: shared_memory.Reference | None = None):
        self._app, self._clients, self._stacked = app, clients, stacked
        shared_memory.accept(offered)
        gc.freeze()  # what has been imported stays
        gc.enable()

    def ready(self) -> None:
        """Answered once the process is up, be it after a restart."""

    def answer(self, message: Message) -> Message:
        """A client's reply."""
        (reply,) = self.answers([message])
        return reply

    def answers(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Clients' replies, each on its way as soon as it is made."""
        with task_identity():
            for reply in answers(self._app, messages, self._clients, self._stacked):
                if not reply.has_error():
                    transport.lend(reply.content)
                yield reply  # and not `yield from`: Ray sends into its streams


@dataclass(eq=False)
class Worker:
    """An actor and what it has to do, the oldest task first: what Ray calls its replies → the messages left of it."""

    actor: ClientAppActor
    opening: ray.ObjectRef | None = None  # there once the process is up; None: it is
    restarts: bool = False  # what is given to a process that starts again is lost, to one that starts first is not
    tasks: dict[ray.ObjectRef, deque[Message]] = field(default_factory=dict)
    since: float = 0.0  # when it began what it is at

    def open(self) -> "Worker":
        """The worker, its process being started."""
        self.opening = self.actor.ready.remote()
        return self

    @property
    def next(self) -> ray.ObjectRef:
        """What will be there first."""
        return self.opening or next(iter(self.tasks))


class RayGrid(SimulatedGrid):
    """A Grid of virtual clients on so many Ray actors, each with these resources (Ray's options for an actor).

    Replies come in any order. A worker that dies is started again, and of what it had to do, whatever was not answered
    is done again; a client at which one more worker died than there are retries is answered for with an error.
    `stacked` clients train at a time, as their messages were sent.
    """

    def __init__(self, app: ClientApp, clients: int, actors: int, resources: dict, stacked: int = 1):
        super().__init__(clients)
        self._stacked = stacked
        kind = ClientAppActor.options(max_restarts=-1, max_task_retries=RETRIES, **resources)
        self._offered = shared_memory.offer()  # open as long as workers may be started
        more = clients, stacked, self._offered and self._offered.reference
        self._workers = [Worker(kind.remote(app, *more)).open() for _ in range(actors)]
        self._streams = not ray.util.client.ray.is_connected()  # Ray's client has none, and so repeats tasks itself
        self._queue: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._deaths: dict[str, int] = {}  # of workers at a message
        self._seconds: dict[str, float] = {}  # that a client took lately, by the kind of message

    def _take(self, identifier, message):
        transport.share(message.content)
        self._queue.append(message)

    def push_messages(self, messages):
        identifiers = super().push_messages(messages)
        self._hand_out()
        return identifiers

    def pull_messages(self, message_ids):
        if not self._replies.keys() & set(message_ids):
            self._wait(SECONDS_TO_SLEEP)
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def finish(self, seconds: float) -> None:
        """Gives the workers so long to finish the clients that they are at."""
        end, busy = time.monotonic() + seconds, {worker for worker in self._workers if worker.tasks}
        while busy and self._workers and (left := end - time.monotonic()) > 0:
            there, _ = ray.wait([worker.next for worker in busy], timeout=min(left, SECONDS_TO_SLEEP))
            busy = {worker for worker in busy if worker.next not in there}

    def end(self) -> None:
        """Kills the workers, whatever they are at; from any thread or signal handler."""
        while self._workers:
            try:
                ray.kill(self._workers.pop().actor)
            except IndexError:  # another thread was faster
                return
            except Exception as error:
                log.warning("a worker could not be ended: %s", error)

    def _wait(self, seconds: float) -> None:
        """Until something arrives, at most so long; then gives out what can be given out."""
        waiting = {worker.next: worker for worker in self._workers if worker.opening or worker.tasks}
        if not waiting:
            return
        there, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        more, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0) if there else ([], None)
        for arrived in more or there:
            worker = waiting[arrived]
            if worker.opening:
                self._opened(worker)
            else:
                self._arrived(worker, arrived)
        self._hand_out()

    def _opened(self, worker: Worker) -> None:
        """A worker's process is up, or never will be."""
        try:
            ray.get(worker.opening)
            worker.opening = None
        except ray.exceptions.RayError as error:
            self._workers = [other for other in self._workers if other is not worker]
            self._queue.extendleft(reversed(list(itertools.chain(*worker.tasks.values()))))
            if not self._workers:
                self._fail(self._queue, f"no worker is left: {error}")

    def _arrived(self, worker: Worker, task: ray.ObjectRef) -> None:
        """The next reply of a worker's oldest task is there, or its end."""
        left = worker.tasks[task]
        try:
            reply = ray.get(next(task) if self._streams else task)
            if not reply.has_error():
                transport.borrow(reply.content)
        except (ray.exceptions.RayError, StopIteration, OSError) as error:
            self._lost(worker, error)
            return
        message = left.popleft()
        now, kind = time.monotonic(), message.metadata.message_type
        worker.since, took = now, now - worker.since
        self._seconds[kind] = (self._seconds.get(kind, took) + took) / 2
        self._replies[message.metadata.message_id] = reply
        if not left:
            del worker.tasks[task]

    def _lost(self, worker: Worker, error: Exception) -> None:
        """A worker died, or one of its replies could not be sent: all that it has not answered is to be done again."""
        at = next(iter(worker.tasks.values()))[0]
        left = list(itertools.chain(*worker.tasks.values()))
        worker.tasks = {}
        count = self._deaths[at.metadata.message_id] = self._deaths.get(at.metadata.message_id, 0) + 1
        if isinstance(error, ray.exceptions.RayTaskError) or count > RETRIES or not self._streams:
            self._fail(left[:1], f"{type(error).__name__}: {error}")
            left = left[1:]
        self._queue.extendleft(reversed(left))
        worker.restarts = True
        worker.open()

    def _fail(self, messages: Sequence[Message], reason: str) -> None:
        for message in list(messages):
            self._replies[message.metadata.message_id] = Message(Error(WORKER_FAILED, reason), reply_to=message)
        if messages is self._queue:
            self._queue.clear()

    def _hand_out(self) -> None:
        """Gives out what waits: to who has nothing to do, then, but for the last few, one task ahead to everybody."""
        up = [worker for worker in self._workers if not (worker.opening and worker.restarts)]
        for had in (0, 1):
            for worker in up:
                if len(worker.tasks) == had and len(self._queue) > had * len(up):
                    self._give(worker, [self._queue.popleft() for _ in range(self._together(len(up)))])

    def _give(self, worker: Worker, messages: list[Message]) -> None:
        if not worker.tasks:
            worker.since = time.monotonic()
        if self._streams:
            task = worker.actor.answers.options(num_returns="streaming", max_task_retries=0).remote(messages)
        else:
            task = worker.actor.answer.remote(*messages)
        worker.tasks[task] = deque(messages)

    def _together(self, workers: int) -> int:
        """How many of the waiting messages go into the next task: fewer towards the end, so that all end together."""
        if self._stacked > 1 and train_messages([self._queue[0]]):
            return min(self._stacked, len(self._queue))
        took = self._seconds.get(self._queue[0].metadata.message_type)
        if not self._streams or took is None:
            return 1
        few = min(int(SECONDS_OF_A_TASK / max(took, 1e-3)), MOST_IN_A_TASK, len(self._queue) // (2 * workers))
        return max(1, few)
