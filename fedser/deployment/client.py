"""A client on a machine of its own: the command `fedser-client`.

    fedser-client --dataset emodb --root FOLDER --speaker 03 --superlink HOST:PORT --ca ca.pem --key node.pem

It starts a SuperNode, which holds the connection, and answers its messages in this process, which has torch and the
clips' features in memory. What a server may ask is in `fedser.deployment.vetting` and docs/deployment.md.
"""

import argparse
import ctypes
import functools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from fedser.config.identity import digest
from fedser.config.settings import Settings
from fedser.deployment import flower
from fedser.deployment.grid import ROSTER, TO
from fedser.deployment.roster import PARTS, Entry
from fedser.deployment.vetting import ASKED, Vetting
from fedser.errors import FedserError, InputError
from fedser.federation.client_app import CLIENT_FAILED, make_app
from fedser.federation.client_data import Own
from fedser.runs import cache

log = logging.getLogger(__name__)
AGAIN_SECONDS = 5  # before a SuperNode that ended by itself is started again


class Client:
    """Answers the messages of a run about one client's own clips, as far as `vetting` allows."""

    def __init__(self, name: str, vetting: Vetting):
        self.name, self.vetting = name, vetting
        self._app = make_app(lambda experiment, settings: Own(name, settings))
        self._read = functools.lru_cache(maxsize=4)(self._vetted)
        self._data = functools.lru_cache(maxsize=2)(self._hash)

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply, or an error that names the client and what is wrong."""
        try:
            return self._answer(message, context)
        except Exception as error:
            log.error("%s", error)
            return self._refused(
                message, f"client '{self.name}': {error if isinstance(error, FedserError) else repr(error)}"
            )

    def _refused(self, message: Message, reason: str) -> Message:
        """An error of one line, that names no file of this machine: its log has the whole."""
        told = re.sub(r"\S*/\S*", "…", (reason.splitlines() or [""])[0])
        return Message(Error(CLIENT_FAILED, told), reply_to=message)

    def _answer(self, message: Message, context: Context) -> Message:
        kind, config = message.metadata.message_type, message.content["config"]
        if kind not in ASKED:
            raise InputError(f"the server asks for '{kind}', which clients do not answer.")
        experiment, settings, told = self._read(config["experiment"])
        if kind == f"query.{ROSTER}":
            log.warning("a run begins: %s clients are asked", settings.dataset.name)
            entry = self._entry(settings, told.get("withholds", False))
            return Message(RecordDict({"config": ConfigRecord(entry.plain())}), reply_to=message)
        self.vetting.check_noise(told)
        self.vetting.pin(context.run_id, experiment)
        if (before := message.content[TO].get("data")) and before != self._data(config["experiment"]):
            raise InputError("it has other clips than when the run began: put them back, or begin another run.")
        if kind == "evaluate":
            self.vetting.check_evaluation(message, settings)
        message.content["config"] = ConfigRecord(dict(config) | {"experiment": experiment})
        context.node_config["partition-id"] = int(message.content[TO]["number"])
        reply = self._app(message, context)
        if reply.has_error():
            log.error("%s", reply.error.reason)
            return self._refused(message, reply.error.reason)
        log.warning("%s answered", f"round {config['server-round']}, {kind}" if "server-round" in config else kind)
        return reply

    def _vetted(self, text: str) -> tuple[str, Settings, dict]:
        told = json.loads(text)
        experiment, settings = self.vetting.experiment(told)
        experiment["state"] = str(cache.folder("clients", self.name, digest(experiment)))  # moments are one run's
        if experiment.get("private"):
            experiment["private"] = experiment["private"] | {"system": True}
        return json.dumps(experiment), settings, told  # augmentations come in their order

    def _hash(self, text: str) -> str:
        """Of the clips, as the greeting told it, which did not know all clients' classes."""
        greeted = {key: value for key, value in json.loads(text).items() if key != "classes"}
        _, settings, _ = self._vetted(json.dumps(greeted))
        return Own(self.name, settings).store.folder.name

    def _entry(self, settings: Settings, withholds: bool) -> Entry:
        own = Own(self.name, settings)
        data, counts = own.client(0), {}
        for part in PARTS:
            labels = data.labels(data.rows(part)).tolist()
            counts[part] = {name: labels.count(place) for place, name in enumerate(own.store.classes)}
            counts[part] = {name: n for name, n in counts[part].items() if n}
        if withholds and counts["train"]:  # that it trains, and not on how much
            counts["train"] = {own.store.classes[0]: 1}
        table = own.store.table
        known = set(table["sex"].dropna()) if "sex" in table else set()
        return Entry(self.name, own.store.folder.name, counts, known.pop() if len(known) == 1 else None)


class SuperNode:
    """A SuperNode beside this process: it holds the connection, and ends with it. One that ends by itself is started
    again, as after a restart of the SuperLink; `stop` is set when that is of no use, and `why` says so."""

    def __init__(self, link: flower.Link, key: Path | None, poll: float):
        self.address, self.stop, self.why = f"127.0.0.1:{_free_port()}", threading.Event(), ""
        words = [sys.executable, "-m", "fedser.deployment.flower", str(poll), "--superlink", link.address]
        words += ["--isolation", "process", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2]]
        words += ["--root-certificates", str(link.ca)] if link.ca else ["--insecure"]
        self._command = words + (["--auth-supernode-private-key", str(key)] if key else [])
        self._process: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "SuperNode":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
        self._thread.join(10)
        if self._process is not None:
            self._process.kill()

    def _run(self) -> None:
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        ending = _end_with_parent if sys.platform == "linux" else None
        while not self.stop.is_set():
            self._process = subprocess.Popen(
                self._command, env=os.environ | quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                preexec_fn=ending, start_new_session=True,
            )  # fmt: skip
            told = []
            for line in self._process.stdout:
                told.append(line.rstrip())
                log.info("%s", told[-1])
                self._look(told[-1])
            self._process.wait()
            if not self.stop.is_set():
                log.warning("%s; trying again in %d s", _reason("\n".join(told)), AGAIN_SECONDS)
                self.stop.wait(AGAIN_SECONDS)

    def _look(self, line: str) -> None:
        """Ends everything at what will not mend itself."""
        if "certificate" in line.lower() and ("verify" in line.lower() or "SSL" in line):
            self.why = "the SuperLink's certificate is not signed by --ca: take the certificate of who signed it."
            self.stop.set()
            self._process.terminate()


def _reason(told: str) -> str:
    """Why a SuperNode ended."""
    if "activate" in told:
        return (
            "the SuperLink does not accept this node: its key is not registered (flwr supernode register), or another "
            "node that has it is connected"
        )
    return f"the SuperNode ended: {' '.join(told[-300:].split())}"


def _end_with_parent() -> None:
    """A SuperNode whose client was killed would keep the connection, and the server would wait for answers."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `fedser-client`; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(
        format=f"{chosen.speaker}: %(message)s", level=logging.INFO if chosen.verbose else logging.WARNING
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for asked in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell ignores Ctrl-C
        signal.signal(asked, signal.default_int_handler)
    try:
        _run(chosen)
    except FedserError as error:
        print(f"fedser-client: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedser-client", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--dataset", required=True, help="how the folder is read: a name of conf/dataset, e.g. emodb, manifest"
    )
    parser.add_argument("--root", required=True, type=Path, help="the client's own folder, or manifest")
    parser.add_argument(
        "--speaker", required=True, help="the client's name; of a folder of several speakers, this one's clips"
    )
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--ca", type=Path, help="certificate of who signed the SuperLink's; without it no TLS, for loopback"
    )
    parser.add_argument("--key", type=Path, help="this node's private key, registered with the SuperLink")
    parser.add_argument("--checkpoint", type=Path, help="the backbone's checkpoint on this machine (model=ssl)")
    parser.add_argument("--poll", type=float, default=0.5, metavar="S", help="ask for messages every so many seconds")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--modules", nargs="*", default=[], help="folders with components of your own, which are allowed then"
    )
    parser.add_argument(
        "--least-noise",
        type=float,
        metavar="Z",
        help="take part only where updates leave with noise of Z x clipping norm",
    )
    parser.add_argument("--verbose", action="store_true", help="the SuperNode's log too")
    parser.add_argument(
        "own", nargs="*", metavar="dataset.KEY=VALUE", help="more about the folder, e.g. dataset.on_bad_audio=skip"
    )
    return parser


def _run(chosen: argparse.Namespace) -> None:
    flower.check_version()
    if strange := [word for word in chosen.own if not word.startswith("dataset.")]:
        raise InputError(f"{strange[0]}: a client sets dataset.… alone; all else is the server's.")
    own = [f"dataset={chosen.dataset}", f"dataset.root={chosen.root.expanduser().absolute()}", *chosen.own]
    own += ["simulation=serial", f"simulation.device={chosen.device}", "logger=none"]
    checkpoint = str(chosen.checkpoint.expanduser().absolute()) if chosen.checkpoint else None
    client = Client(chosen.speaker, Vetting(chosen.speaker, own, tuple(chosen.modules), checkpoint, chosen.least_noise))
    client.vetting.look()
    link = flower.Link(chosen.superlink, chosen.ca)
    _ = link.certificates  # read before anything is started
    with SuperNode(link, chosen.key, chosen.poll) as node:
        log.warning("connecting to %s; Ctrl-C leaves", chosen.superlink)
        flower.client_app(node.address, client, node.stop)
        raise InputError(node.why)
