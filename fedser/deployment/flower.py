"""Flower through the back door: this process as a run's ServerApp, and as the ClientApp of a SuperNode beside it.

What is imported inside of these functions is private in Flower and changes with its minor versions. All of it is here,
for the version that `VERSION` names, and `tests/test_deployment.py` runs it against a real SuperLink on loopback.
"""

import contextlib
import functools
import hashlib
import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from flwr.app import Context, Error, Message
from flwr.serverapp import Grid

from fedser.errors import InputError, RunError

log = logging.getLogger(__name__)
VERSION = "1.41"
POLL_SECONDS = 0.15  # between two looks for a task
APP_FAILED = 2  # Flower's code of a handler that raised
PATIENCE_SECONDS = 60.0  # with a SuperLink that does not answer
SOON_SECONDS = 0.05  # before arrays are asked for again that are on their way; then twice as long, and so on

# What a SuperLink wants to have of an app; no node runs it, as clients of `fedser-client` have their own.
MANIFEST = """
[project]
name = "fedser"
version = "{version}"
[tool.flwr.app]
publisher = "fedser"
[tool.flwr.app.components]
serverapp = "fedser.deployment.app:server"
clientapp = "fedser.deployment.app:client"
[tool.flwr.app.config]
overrides = ""
"""


@dataclass(frozen=True)
class Link:
    """Where a SuperLink answers: HOST:PORT, and the certificate of who signed its own; None without TLS."""

    address: str
    ca: Path | None = None

    @property
    def certificates(self) -> bytes | None:
        """The content of the certificate's file. Raises InputError where there is none."""
        if self.ca is None:
            return None
        try:
            return self.ca.read_bytes()
        except OSError as error:
            raise InputError(f"the certificate {self.ca} can't be read: {error.strerror}.") from error


def check_version() -> None:
    """Raises InputError for a Flower of another minor version, whose inside is another."""
    if not (found := version("flwr")).startswith(f"{VERSION}."):
        raise InputError(f"a deployment needs flwr {VERSION}, on all machines, and here is {found}.")


@contextlib.contextmanager
def server_app(link: Link, secret: bytes | None = None) -> Iterator[Grid]:
    """Starts a run on a SuperLink (`--isolation process`) and is its ServerApp; yields the grid.

    secret: the SuperLink's `--superexec-auth-secret-file`, where it has one. Raises RunError where no SuperLink
    answers, or another process takes the run.
    """
    from flwr.common.constant import SubStatus
    from flwr.common.serde import run_from_proto
    from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.grid import HttpGrid, http_grid

    check_version()
    _ask_soon(http_grid)
    run = _start(link)
    token = _claimed(link, run, secret)
    grid = HttpGrid(link.address, link.ca is None, link.certificates, token=token)
    grid._retry_invoker = _retrying()
    status, details = SubStatus.FAILED, "the process ended"
    try:
        told = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = told.task_id, told.run.run_id
        TaskIdentity.node_id = told.context.node_id
        grid.set_run(run_from_proto(told.run))
        with _heartbeat(grid._runtime_client):
            yield grid
        status, details = SubStatus.COMPLETED, ""
    except KeyboardInterrupt:
        status, details = SubStatus.STOPPED, "stopped"
        raise
    except BaseException as error:
        details = type(error).__name__
        raise
    finally:
        grid._retry_invoker.max_tries = 1
        with contextlib.suppress(Exception):
            grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        grid.close()


@contextlib.contextmanager
def _heartbeat(client) -> Iterator[None]:
    """Says that this process works on its task. Flower's own interrupts the process where nobody wants to hear it any
    more; ours goes on, and whoever asks next is told."""
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
    from flwr.supercore.heartbeat import HeartbeatSender

    def beat() -> bool:
        with contextlib.suppress(Exception):
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        return True

    heart = HeartbeatSender(beat)
    heart.start()
    try:
        yield
    finally:
        heart.stop()


def _retrying():
    """Calls a SuperLink again that does not answer, for a while. Flower's own does so for ever, and interrupts this
    process where the SuperLink does not know it any more, as after a restart."""
    import httpx
    from flwr.supercore.retry import RetryInvoker, exponential

    def final(error: Exception) -> bool:
        told = isinstance(error, httpx.HTTPStatusError)
        return told and error.response.status_code not in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)

    return RetryInvoker(
        lambda: exponential(max_delay=5),
        httpx.HTTPError,
        max_tries=None,
        max_time=PATIENCE_SECONDS,
        should_giveup=final,
    )


def _start(link: Link) -> int:
    """A new run's id."""
    import httpx
    from flwr.cli.build import build_fab_from_files
    from flwr.cli.typing import SuperLinkConnection
    from flwr.cli.utils import init_http_client_from_connection
    from flwr.common.serde import fab_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.fab import Fab

    from fedser import __version__

    ca = str(link.ca.absolute()) if link.ca else None
    connection = SuperLinkConnection("fedser", link.address, root_certificates=ca, insecure=ca is None)
    manifest = MANIFEST.format(version=__version__)
    fab, _ = build_fab_from_files({"pyproject.toml": manifest.encode()})
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells which SuperLink
            control = init_http_client_from_connection(connection)
        try:
            request = StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})), federation="")
            return control.StartRun(request).run_id
        finally:
            control.close()
    except httpx.HTTPError as error:
        raise RunError(f"no SuperLink answers at simulation.superlink={link.address}: {error}") from error


def _claimed(link: Link, run: int, secret: bytes | None) -> str:
    """The token of the run's ServerApp."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if secret:
        protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=protected))
    client = RuntimeHttpClient.from_server_address(link.address, link.ca is None, link.certificates, interceptors)
    try:
        for _ in range(int(10 / POLL_SECONDS)):
            claimed = client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            if claimed.token and claimed.task.run_id == run:
                return claimed.token
            threading.Event().wait(POLL_SECONDS)
    finally:
        client.close()
    raise RunError(
        f"the SuperLink at {link.address} gave the run to somebody else: start it with --isolation process, and one "
        "fedser at a time."
    )


def client_app(address: str, app: Callable[[Message, Context], Message], stop: threading.Event) -> None:
    """Answers all messages of the SuperNode (`--isolation process`) at `address`, HOST:PORT on this machine, one after
    the other, until `stop` is set. No app that the SuperNode was sent is looked at. What Flower is not known
    to raise ends the client."""
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime import run_clientapp

    _ask_soon(run_clientapp)
    request = AcquireTaskRequest(supported_task_types=["flwr-clientapp"])
    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    client = RuntimeHttpClient.from_server_address(address, True, None, interceptors)
    try:
        while not stop.is_set():
            try:
                if token := client.AcquireTask(request).token:
                    _answer(address, token, app)
                    continue
            except httpx.TransportError:
                pass  # the SuperNode starts, or ends
            except (httpx.HTTPError, ObjectPullError, ObjectPushError, RuntimeError) as error:  # its run is over
                log.warning("a message was lost: %s: %s", type(error).__name__, error)
            stop.wait(POLL_SECONDS)
    finally:
        client.close()


def _answer(address: str, token: str, app: Callable[[Message, Context], Message]) -> None:
    """Pulls one message, and pushes the reply."""
    from flwr.common.constant import SubStatus
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

    interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), RuntimeTokenHttpInterceptor(token)]
    link = RuntimeHttpClient.from_server_address(address, True, None, interceptors, retry_invoker=_retrying())
    try:
        with _heartbeat(link):
            message, context, *_ = pull_task_input(link)
            status, details = SubStatus.COMPLETED, ""
            try:
                reply = app(message, context)
            except Exception as error:
                status, details = SubStatus.FAILED, type(error).__name__
                reply = Message(Error(APP_FAILED, f"{details}: {error}"), reply_to=message)
            push_message(link, reply, context)
            push_task_output(client=link, context=context, sub_status=status, details=details)
    finally:
        link.close()


def _ask_soon(module) -> None:
    """Has a module of Flower's ask again soon for arrays that follow the message which says that there are some: it
    waits a second, on each of the way's three stations."""
    from flwr.supercore.inflatable import inflatable_utils as utils

    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        if hasattr(module, name):
            setattr(module, name, functools.partial(getattr(utils, name), initial_backoff=SOON_SECONDS))


def _pull_objects(*arguments, **options) -> dict[str, bytes]:
    """As Flower's, but that of a run which has ended it raises what has the SuperNode forget the message. Otherwise its
    client would wait for two hours for the arrays."""
    from flwr.supercore.inflatable import inflatable_utils as utils
    from flwr.supercore.run import RunNotRunningException

    try:
        return utils.pull_objects(*arguments, initial_backoff=SOON_SECONDS, **options)
    except RunNotRunningException as error:
        raise RuntimeError("its run has ended") from error


def supernode(poll: float, *arguments: str) -> None:
    """Is a `flower-supernode` with these arguments, until it ends; it asks for messages every `poll` seconds. Flower's
    own does every three, longer than many a round takes."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    sleep = {"sleep": lambda seconds: time.sleep(min(seconds, poll))}
    start_client_internal.time = SimpleNamespace(**vars(time) | sleep)
    start_client_internal.pull_objects = _pull_objects
    sys.argv[1:] = arguments
    flower_supernode()


if __name__ == "__main__":
    supernode(float(sys.argv[1]), *sys.argv[2:])
