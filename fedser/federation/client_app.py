"""The Flower ClientApp: message → local work → reply.

Clients answer three kinds of message: *query* (sums for the global normalisation), *train* and *evaluate*. A failure
is answered with a Flower error that names the client and carries its traceback.
"""

import contextlib
import functools
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedser.config.compose import build
from fedser.config.protocol import Agenda
from fedser.data.partition import Share, partition, stratified
from fedser.data.store import FeatureStore
from fedser.evaluation import measure
from fedser.evaluation.results import answer, example
from fedser.federation import transport
from fedser.federation.optimizer_state import OptimizerState, folder_of
from fedser.models.normalisation import Normaliser, Sums, normaliser
from fedser.randomness import derive
from fedser.training.local import autocast
from fedser.training.local import train as train_locally

SECONDS_OF_GRACE = 5  # for a client that is out of time to notice
RESIDENT = 0.1  # of a client's share of the GPU's free memory may hold the features
CLIENT_FAILED = 1  # Flower's error code for an exception raised in a ClientApp


class Workbench:
    """What every client on this worker shares: settings, features (memory-mapped), model and attacks."""

    def __init__(self, experiment: dict):
        self.experiment = experiment
        self.settings = settings = experiment["settings"]
        self.classes: list[str] = experiment["classes"]
        self.state_folder = Path(experiment["state"])
        torch.set_num_threads(settings["client"]["threads"])
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings["client"]["tf32"]
        self.device = torch.device(device(settings))
        self.store = FeatureStore.open(Path(experiment["store"]))
        self.shares = partition(self.store.table, settings["partition"], settings["seed"])
        self.model = build(settings["model"]["module"], classes=len(self.classes)).to(self.device)
        self.weights = transport.Packed(self.model)
        self._optimizer = build(settings["client"]["optimizer"])
        self.resident = self._resident()
        self.attacks = {name: build(attack) for name, attack in experiment["attacks"].items()}
        self.training_defence = build(settings["defence"]["training"])
        self.inference_defence = build(settings["defence"]["inference"])

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh one for the model's parameters."""
        return self._optimizer(self.model.parameters())

    def tensors(self, rows: np.ndarray, normalise: Normaliser) -> tuple[Tensor, Tensor]:
        """Inputs [n, 1, frames, mels] and labels [n] of these rows, on the device."""
        labels = torch.from_numpy(self.store.table["label"].to_numpy()[rows].astype(np.int64))
        if self.resident is not None:
            frames = self.resident[torch.from_numpy(rows).to(self.device)]
            shift, scale = (torch.from_numpy(part).to(self.device) for part in (normalise.shift, normalise.scale))
            return ((frames - shift) / scale).unsqueeze(1), labels.to(self.device)
        inputs = torch.from_numpy(normalise(self.store.frames[rows])).unsqueeze(1)
        if self.device.type == "cuda":
            inputs = inputs.pin_memory()
        return inputs.to(self.device, non_blocking=True), labels.to(self.device)

    def tested(self, share: Share, fraction: float) -> np.ndarray:
        """The client's rows that are tested, where `fraction` of all clients' test utterances are."""
        if fraction == 1:
            return share.test
        rows = np.concatenate([other.test for other in self.shares])
        chosen = stratified(self.store.table["label"].to_numpy(), rows, fraction, self.settings["seed"])
        return share.test[np.isin(share.test, chosen)]

    def _resident(self) -> Tensor | None:
        """The whole store's log-Mels on the GPU, where that takes a small part of this client's share of it."""
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        if self.store.frames.nbytes > RESIDENT * free / self.experiment.get("clients_per_gpu", 1):
            return None
        return torch.from_numpy(np.array(self.store.frames, np.float32)).to(self.device)


@functools.lru_cache(maxsize=2)
def workbench(experiment: str) -> Workbench:
    """One per worker process and experiment (JSON), kept from message to message."""
    return Workbench(json.loads(experiment))


def device(settings: dict) -> str:
    """Where this process computes: CUDA unless `simulation.device=cpu` or there is none."""
    return "cuda" if settings["simulation"]["device"] != "cpu" and torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def time_limit(seconds: float | None, expendable: bool) -> Iterator[None]:
    """A block that raises TimeoutError after so many seconds; None for no limit.

    What hangs outside of Python does not notice. An `expendable` process, a worker that will be started again, is ended
    some seconds later then. Signals reach the main thread only, so elsewhere there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum, frame):
        raise TimeoutError(f"no answer within client.timeout={seconds:g} s")

    end = threading.Timer(seconds + SECONDS_OF_GRACE, os.kill, (os.getpid(), signal.SIGKILL))
    end.daemon = True
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if expendable:
        end.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        end.cancel()


def advice(error: Exception, bench: Workbench) -> str:
    """What to set when a client ran out of memory; nothing for other errors."""
    if isinstance(error, torch.OutOfMemoryError):
        shared = bench.experiment.get("clients_per_gpu", 1)
        return (
            f" (out of GPU memory with {shared} clients on the card at a time: raise simulation.num_gpus, the share of "
            "the card that each is given, or lower client.batch_size or measure.batch_size)"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return " (out of memory: lower simulation.actors, client.batch_size or measure.batch_size)"
    return ""


def guarded(handle: Callable[[Workbench, Share, Message], RecordDict]) -> Callable[[Message, Context], Message]:
    """Finds the client whom the message is for; turns its exception into an error reply that names it."""

    @functools.wraps(handle)
    def handler(message: Message, context: Context) -> Message:
        """The client's reply, or an error that names it."""
        number = int(context.node_config["partition-id"])
        name, bench = f"number {number}", None
        try:
            bench = workbench(message.content["config"]["experiment"])
            torch.set_num_threads(bench.settings["client"]["threads"])
            share = bench.shares[number]
            name = f"'{share.name}'"
            with time_limit(bench.settings["client"]["timeout"], bench.settings["simulation"]["backend"] == "ray"):
                return Message(handle(bench, share, message), reply_to=message)
        except Exception as error:
            more = advice(error, bench) if bench else ""
            reason = f"client {name}: {type(error).__name__}: {error}{more}\n{traceback.format_exc()}"
            return Message(Error(CLIENT_FAILED, reason), reply_to=message)

    return handler


def query(bench: Workbench, share: Share, message: Message) -> RecordDict:
    """Name, numbers of utterances, and per mel bin the sums over the client's training frames."""
    sums = Sums.of(bench.store.frames[share.train])
    numbers = {
        "num-examples": len(share.train),
        "count": sums.count,
        "total": sums.total.tolist(),
        "squares": sums.squares.tolist(),
    }
    return RecordDict({"metrics": MetricRecord(numbers), "config": ConfigRecord({"name": share.name})})


def train(bench: Workbench, share: Share, message: Message) -> RecordDict:
    """A local epoch from the global weights, adversarial where the defence says so; replies with weights and loss."""
    config, settings = message.content["config"], bench.settings
    round, client = int(config["server-round"]), settings["client"]
    bench.weights.load(transport.from_records(message.content))
    optimizer = bench.optimizer()
    moments = None
    if client["optimizer_state"] == "persist":
        moments = OptimizerState(folder_of(bench.state_folder, share.number))
        before = config["moments"][share.number]
        moments.restore(optimizer, before)

    x, y = bench.tensors(share.train, _normaliser(bench, share, config))
    weight = torch.ones(len(x), device=x.device)
    if bench.training_defence is not None:
        seed = derive(settings["seed"], "defence", round, share.name)
        with autocast(client["attack_precision"], bench.device):
            x, y, weight = bench.training_defence.batch(bench.model, x, y, round=round, seed=seed)
    loss = train_locally(
        bench.model,
        optimizer,
        (x, y, weight),
        epochs=client["epochs"],
        batch_size=client["batch_size"],
        precision=client["precision"],
        mu=float(config.get("proximal-mu", 0.0)),
        seed=derive(settings["seed"], "train", round, share.name),
    )
    if moments:
        moments.save(optimizer, round, keep={before, config["committed"][share.number]})
    metrics = MetricRecord({"num-examples": len(share.train), "loss": loss})
    return RecordDict(transport.to_records(bench.weights.arrays()) | {"metrics": metrics})


def evaluate(bench: Workbench, share: Share, message: Message) -> RecordDict:
    """What became of the client's own test utterances under the message's agenda (see `Outcome`)."""
    config, settings = message.content["config"], bench.settings
    agenda = Agenda(**json.loads(config["agenda"]))
    bench.weights.load(transport.from_records(message.content))
    rows = bench.tested(share, agenda.fraction)
    x, y = bench.tensors(rows, _normaliser(bench, share, config))
    with autocast(settings["evaluation"]["precision"], bench.device):
        measured = measure.evaluate(
            bench.model,
            x,
            y,
            agenda,
            attacks=bench.attacks,
            randomise=bench.inference_defence,
            batch_size=settings["evaluation"]["batch_size"],
            seed=derive(settings["seed"], "evaluate", int(config["server-round"]), share.name),
        )
    told = {"name": share.name, "answer": json.dumps(answer(measured, y, rows, len(bench.classes), agenda.utterances))}
    if agenda.example and share.number == 0 and len(rows):
        told["example"] = example(measured, share.name, bench.classes)
    return RecordDict({"config": ConfigRecord(told)})


def _normaliser(bench: Workbench, share: Share, config: ConfigRecord) -> Normaliser:
    everyone = None
    if "count" in config:
        everyone = Sums(int(config["count"]), np.array(config["total"]), np.array(config["squares"]))
    return normaliser(bench.settings["features"]["normalisation"], bench.store.frames[share.train], everyone)


class Importable(ClientApp):
    """A ClientApp that workers import. It goes with every message, and to pickle its handlers took milliseconds."""

    def __reduce__(self):
        return _imported, ()


def _imported() -> ClientApp:
    return app


def make_app() -> ClientApp:
    """The ClientApp with its three handlers."""
    app = Importable()
    app.query()(guarded(query))
    app.train()(guarded(train))
    app.evaluate()(guarded(evaluate))
    return app


app = make_app()
