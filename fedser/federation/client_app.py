"""The Flower ClientApp: message → local work → reply.

Clients answer five kinds of message: *query* (sums for the global normalisation), *query.statistics* (sums for batch
norm), *query.detector* (sums that a detector of adversarial examples is learnt from), *train* and *evaluate*. A failure
is answered with a Flower error that names the client and carries its traceback.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedser.attacks.waveform import Listening, Spoken
from fedser.augmentation.draws import Draws
from fedser.config import components, eager
from fedser.config.protocol import Protocol
from fedser.config.settings import Settings
from fedser.detectors.detector import Detector
from fedser.errors import FedserError
from fedser.evaluation import detection, groups, measure
from fedser.evaluation.metrics import confusion
from fedser.evaluation.results import answer, example
from fedser.features.front_end import fitted, log_mel, on_waveforms
from fedser.features.normalisation import Normaliser, Sums, of_unknown
from fedser.federation import allocator, batch_norm, optimizer_state, transport
from fedser.federation.batch_norm import LOCAL, STATISTICS, SUMS
from fedser.federation.client_data import STATES, WAVEFORMS, ClientData, Clients, Simulated
from fedser.federation.dp_fedavg import Withheld
from fedser.federation.optimizer_state import MOMENTS, OptimizerState, folder_of
from fedser.federation.transport import PARAMETERS
from fedser.models.lengths import as_inputs
from fedser.models.weights import trained
from fedser.randomness import derive
from fedser.training import stacked
from fedser.training.local import autocast
from fedser.training.local import train as train_locally
from fedser.training.objective import CrossEntropy, Samples

SECONDS_OF_GRACE = 5  # for a client that is out of time to notice
RESIDENT = 0.1  # of a client's share of the GPU's free memory may hold the features
CLIENT_FAILED = 1  # Flower's error code for an exception raised in a ClientApp


class ClientState:
    """A process's state as a client: settings, the data of the clients it may be, one model, attacks and defences."""

    def __init__(self, experiment: dict, data: Callable[[dict, Settings], Clients]):
        allocator.keep_memory()
        self.experiment = experiment
        components.search(experiment.get("path", ()))
        self.settings = settings = Settings.of(experiment["settings"])
        self.classes: list[str] = experiment["classes"]
        self.state_folder = Path(experiment["state"])
        torch.set_num_threads(settings.client.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.client.tf32
        self.device = torch.device(device(settings))
        self.clients = data(experiment, settings)
        eager.optimizers()  # they import for seconds, which no client's time limit is for
        self.model = settings.model.component.build(classes=len(self.classes)).to(self.device)
        self.make_optimizer = settings.client.optimizer_maker()
        self.weights, self.local = transport.Packed(self.model), batch_norm.Local(self.model)
        self.attacks = {name: components.build(node, key=name) for name, node in experiment["attacks"].items()}
        self.objective = settings.defence.training.build() if settings.defence.training else CrossEntropy()
        self.augment = {name: component.build() for name, component in settings.augment.items()}
        self.front_end = None if settings.features.ragged else log_mel(settings.features).to(self.device)
        self.schedule = settings.client.schedule.build()
        self.inference_defence = settings.defence.inference.build() if settings.defence.inference else None
        self.normalisation = settings.features.normalisation.build()
        self.normalisers: dict[int, Normaliser] = {}  # of clients that this process has been, by number
        self.resident: Tensor | None = None
        self.withheld = Withheld(**plain) if (plain := experiment.get("private")) else None
        self.why_not_stacked: dict[type, str | None] = {}  # by the kind of objective, once that has been looked into

    def objective_of(self, client: int) -> Callable:
        """The objective that a client trains by, where only a share of them is to train by the chosen one.

        Which they are is drawn with the run's seed, and the same in each round.
        """
        share = getattr(self.objective, "client_fraction", 1.0)
        if share == 1:
            return self.objective
        everyone = np.array(self.experiment["trainers"])
        order = np.random.default_rng(derive(self.settings.seed, "objective")).permutation(len(everyone))
        chosen = everyone[order[: max(1, int(share * len(everyone) + 0.5))]]
        return self.objective if client in chosen else CrossEntropy()

    def remarks(self) -> dict[str, ConfigRecord]:
        """What the objective has to say to the user since it was last asked: a record, or none."""
        if not (said := list(getattr(self.objective, "remarks", ()))):
            return {}
        self.objective.remarks = []
        return {"remarks": ConfigRecord({"lines": said})}

    def load(self, content: RecordDict) -> None:
        """Takes over a message's weights, and those batch-norm layers that are the client's own."""
        weights = transport.from_records(content)
        if LOCAL in content:
            weights = self.local.put(weights, transport.from_record(content[LOCAL]))
        self.weights.load(weights)

    def training_samples(self, data: ClientData, normalise: Normaliser, round: int, listens: bool = False) -> Samples:
        """What the client trains on in a round before its objective looks at it: weighed, smoothed and augmented; where
        the model `listens`, waveforms, and what is augmented behind the front end is so there."""
        client = self.settings.client
        samples = self._waveforms(data, round) if listens else self._spoken(data, normalise, round)
        if client.class_weights == "balanced":
            samples = samples.balanced()
        if client.label_smoothing or self.augment:
            samples = samples.softened(len(self.classes), client.label_smoothing)
        return samples if listens else self._augmented(samples, data, round, of_waveforms=False)

    def listening(self, data: ClientData, normalise: Normaliser, round: int) -> Listening:
        """The model behind its front end, for training on waveforms: in train mode augmentations of log-Mels stand
        between, drawn anew in each pass, as dropout is."""
        front, passes = self.front(normalise), itertools.count()

        def heard(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            made, real = front(x, lengths)
            if not self.model.training:
                return made, real
            samples = Samples.of(made, torch.zeros_like(real), real)
            samples = self._augmented(samples, data, round, False, next(passes))
            return samples.x, samples.lengths

        return Listening(self.model, heard)

    def _spoken(self, data: ClientData, normalise: Normaliser, round: int) -> Samples:
        """The training samples as the network hears them, whose waveforms may be augmented."""
        if not any(on_waveforms(augment) for augment in self.augment.values()):
            return self.samples(data.form(STATES), data.rows("train"), normalise)
        spoken = self._waveforms(data, round)
        if self.front_end is None:
            return spoken
        front, ends = self.front(normalise), spoken.lengths.tolist()
        # Clip by clip: no padding is heard, and what is small stays in the processor's cache (a quarter of the time).
        made = [front(spoken.x[[row], :, :end], spoken.lengths[[row]]) for row, end in enumerate(ends)]
        x, lengths = (torch.cat(part) for part in zip(*made, strict=True))
        return replace(spoken, x=x, lengths=lengths)

    def _waveforms(self, data: ClientData, round: int) -> Samples:
        """The training samples' waveforms, augmented."""
        spoken = self.samples(data.form(WAVEFORMS), data.rows("train"), Normaliser.of(0, 1))
        return self._augmented(spoken, data, round, of_waveforms=True)

    def front(self, normalise: Normaliser) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """From waveforms [n, 1, samples, 1] and real samples [n] to normalised log-Mels and their real frames."""
        shift, scale = (torch.from_numpy(part).to(self.device) for part in (normalise.shift, normalise.scale))

        def heard(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            """[n, 1, frames, mels] and [n]"""
            made, real = fitted(self.front_end, self.settings.features.frames, x[:, 0, :, 0], lengths)
            return as_inputs((made - shift) / scale), real

        return heard

    def spoken(self, data: ClientData, rows: np.ndarray, normalise: Normaliser) -> Spoken | None:
        """The waveforms that these rows' log-Mels are made of, where they are kept."""
        if self.front_end is None or data.form(WAVEFORMS) is data:
            return None
        samples = self.samples(data.form(WAVEFORMS), rows, Normaliser.of(0, 1))
        return Spoken(samples.x, samples.lengths, self.front(normalise))

    def _augmented(self, samples: Samples, data: ClientData, round: int, of_waveforms: bool, *drawn: int) -> Samples:
        for name, augment in self.augment.items():
            if on_waveforms(augment) == of_waveforms:
                seed = derive(self.settings.seed, "augment", name, round, data.name, *drawn)
                samples = augment(samples, Draws.of(seed, torch.arange(len(samples), device=self.device)))
        return samples

    def samples(self, data: ClientData, rows: np.ndarray, normalise: Normaliser) -> Samples:
        """Normalised inputs [n, C, frames, F], labels and lengths of these rows, on the device."""
        labels, lengths = (torch.from_numpy(part(rows)).to(self.device) for part in (data.labels, data.lengths))
        return Samples.of(self._inputs(data, rows, normalise), labels, lengths, self.settings.features.ragged)

    def _inputs(self, data: ClientData, rows: np.ndarray, normalise: Normaliser) -> Tensor:
        if (resident := self._resident()) is not None:
            frames = resident[torch.from_numpy(rows).to(self.device)]
            shift, scale = (torch.from_numpy(part).to(self.device) for part in (normalise.shift, normalise.scale))
            return as_inputs((frames - shift) / scale)
        inputs = as_inputs(torch.from_numpy(normalise(data.frames(rows))))
        if self.device.type == "cuda":
            inputs = inputs.pin_memory()
        return inputs.to(self.device, non_blocking=True)

    def _resident(self) -> Tensor | None:
        """All clients' log-Mels on the GPU, where that takes a small part of a client's share of it."""
        frames = self.clients.store.frames
        if self.resident is None and self.device.type == "cuda" and isinstance(frames, np.ndarray):
            free, _ = torch.cuda.mem_get_info(self.device)
            if frames.nbytes <= RESIDENT * free / self.experiment.get("clients_per_gpu", 1):
                self.resident = torch.from_numpy(np.array(frames, np.float32)).to(self.device)
        return self.resident


def simulated(experiment: dict, settings: Settings) -> Clients:
    """The clients of a simulation: parts of the store that the experiment names."""
    return Simulated(Path(experiment["store"]), settings, experiment.get("forms", {}))


def device(settings: Settings) -> str:
    """Where this process computes: CUDA unless `simulation.device=cpu` or there is none."""
    return "cuda" if settings.simulation.device != "cpu" and torch.cuda.is_available() else "cpu"


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


def advice(error: Exception, state: ClientState) -> str:
    """Advice for a client that ran out of memory; empty for other errors."""
    if isinstance(error, torch.OutOfMemoryError):
        shared = state.experiment.get("clients_per_gpu", 1)
        return (
            f" (out of GPU memory with {shared} clients on the card at a time: raise simulation.num_gpus, the share of "
            "the card that each is given, or lower client.batch_size or evaluation.batch_size)"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return " (out of memory: lower simulation.actors, client.batch_size or evaluation.batch_size)"
    return ""


Handler = Callable[[ClientState, ClientData, Message], RecordDict]


def guarded(handle: Handler, state_of: Callable[[str], ClientState]) -> Callable[[Message, Context], Message]:
    """Finds the client whom the message is for; turns its exception into an error reply that names it."""

    @functools.wraps(handle)
    def handler(message: Message, context: Context) -> Message:
        """The client's reply, or an error that names it."""
        number = int(context.node_config["partition-id"])
        name, state = f"number {number}", None
        try:
            state = state_of(message.content["config"]["experiment"])
            torch.set_num_threads(state.settings.client.threads)
            data = state.clients.client(number)
            name = f"'{data.name}'"
            with time_limit(state.settings.client.timeout, state.settings.simulation.backend == "ray"):
                return Message(handle(state, data, message), reply_to=message)
        except Exception as error:
            return failed(error, name, state, message)

    return handler


def failed(error: Exception, name: str, state: ClientState | None, message: Message) -> Message:
    """The reply of a client whose work raised: an error that names it, with advice and traceback."""
    more, trace = advice(error, state) if state else "", "".join(traceback.format_exception(error))
    reason = f"client {name}: {type(error).__name__}: {error}{more}\n{trace}"
    return Message(Error(CLIENT_FAILED, reason), reply_to=message)


def query(state: ClientState, data: ClientData, message: Message) -> RecordDict:
    """Name, numbers of utterances, and per mel bin the sums over the client's training frames."""
    rows = data.rows("train")
    numbers = {"num-examples": len(rows)} | data.sums(rows).plain()
    if state.withheld:
        numbers = state.withheld.query(numbers)
    return RecordDict({"metrics": MetricRecord(numbers), "config": ConfigRecord({"name": data.name})})


def statistics(state: ClientState, data: ClientData, message: Message) -> RecordDict:
    """What the model's batch-norm layers see of the client's training utterances, as they are: sums."""
    state.load(message.content)
    samples = state.samples(data.form(STATES), data.rows("train"), normaliser(state, data, message.content["config"]))
    size = state.settings.evaluation.batch_size
    sums = batch_norm.statistics(state.model, samples.x, samples.lengths, size)
    return RecordDict({SUMS: transport.to_record(SUMS, sums)})


def watch(state: ClientState, data: ClientData, message: Message) -> RecordDict:
    """Sums over logits and embeddings of the client's training clips: as they are, and under each of some attacks."""
    config, settings, model = message.content["config"], state.settings, state.model
    state.load(message.content)
    samples = state.samples(data, data.rows("train"), normaliser(state, data, config))
    size = settings.evaluation.batch_size
    seed = derive(settings.seed, "detector", int(config["server-round"]), data.name)
    with autocast(settings.evaluation.precision, state.device):
        predicted = measure.predict(model, samples.x, size, samples.lengths)
        known = {"predictions": predicted, "lengths": samples.lengths}
        made = [
            measure.attacked(state.attacks[name], model, samples.x, samples.y, known, None, size, derive(seed, name))
            for name in config["attacks"]
        ]
        found = [detection.moments(model, sets, samples.lengths, size) for sets in ([samples.x], made)]
    return RecordDict({SUMS: transport.to_record(SUMS, np.stack([each.sums for each in found]).ravel())})


def train(state: ClientState, data: ClientData, message: Message) -> RecordDict:
    """Local epochs from the global weights, under the objective; replies with weights and loss."""
    work = Work.begun(state, data, message)
    optimizer = work.optimizer(state, trained(state.model))
    more = {"mu": work.mu, "seed": work.seed(state, "train")}
    loss = train_locally(work.model, optimizer, work.samples, work.objective, **work.options(state), **more)
    return work.reply(state, optimizer, state.weights.arrays(), loss)


def train_together(state: ClientState, jobs: Sequence[tuple[ClientData, Message]]) -> list[RecordDict | Exception]:
    """The replies of several clients, in order, each in memory of its own: what `train` would give.

    With `simulation.stacked` above 1 so many neighbours are trained side by side where they can be, equal up to
    rounding, for which it matters who they are: an equal run passes equal jobs. Where a client's training raises, its
    exception stands in its reply's place. Raises TimeoutError where the caller's limit is over.
    """
    replies: list[RecordDict | Exception] = []
    for some in _stacks(state, jobs):
        made = _side_by_side(state, some) if len(some) > 1 else None
        replies += made or [_alone(state, *job) for job in some]
    return replies


def _stacks(state: ClientState, jobs: Sequence[tuple[ClientData, Message]]) -> Iterator[list]:
    """The jobs in order, in groups that may be trained side by side: of one round and one objective."""
    most = 1 if state.withheld else state.settings.simulation.stacked

    def kind(job: tuple[ClientData, Message]) -> tuple[int, type]:
        return int(job[1].content["config"]["server-round"]), type(state.objective_of(job[0].number))

    for _, alike in itertools.groupby(jobs, kind):
        alike = list(alike)
        yield from (alike[first : first + most] for first in range(0, len(alike), most))


def _alone(state: ClientState, data: ClientData, message: Message) -> RecordDict | Exception:
    try:
        reply = train(state, data, message)
    except TimeoutError:
        raise
    except Exception as error:
        return error
    transport.detach(reply)
    return reply


def _side_by_side(state: ClientState, jobs: list[tuple[ClientData, Message]]) -> list[RecordDict] | None:
    """The replies of clients that are trained as one stack; None where they are to be trained one by one, be it
    because one of them fails, which then does so by itself."""
    kind = type(state.objective_of(jobs[0][0].number))
    try:
        if kind not in state.why_not_stacked:
            state.why_not_stacked[kind] = None
            work, client = Work.begun(state, *jobs[0]), state.settings.client
            tried = work.model, work.objective, work.samples, client.precision, client.batch_size
            _refuse(state, kind, stacked.why_not(*tried))
        return _stacked(state, jobs) if state.why_not_stacked[kind] is None else None
    except TimeoutError:
        raise
    except FedserError:
        return None
    except Exception as error:
        _refuse(state, kind, f"{type(error).__name__}: {error}")
        return None


def _refuse(state: ClientState, kind: type, reason: str | None) -> None:
    """Trains no more stacks under this kind of objective, and tells the user why, where there is a reason."""
    state.why_not_stacked[kind] = reason
    if reason:
        line = f"simulation.stacked: clients are trained one after the other, as {reason}"
        state.objective.remarks = [*getattr(state.objective, "remarks", ()), line]


def _stacked(state: ClientState, jobs: list[tuple[ClientData, Message]]) -> list[RecordDict]:
    begun = [(Work.begun(state, *job), stacked.weights_of(state.model)) for job in jobs]
    order = sorted(range(len(begun)), key=lambda place: -len(begun[place][0].samples))
    works, weights = zip(*(begun[place] for place in order), strict=True)
    stack = stacked.Stack(state.model, weights)
    optimizers = [work.optimizer(state, own) for work, own in zip(works, stack.parameters, strict=True)]
    more = {"mu": [work.mu for work in works], "seeds": [work.seed(state, "train") for work in works]}
    samples, common = [work.samples for work in works], works[0].options(state)
    losses = stacked.train(stack, optimizers, samples, works[0].objective, **common, **more)
    ends = zip(order, works, optimizers, stack.arrays(), losses, strict=True)
    replies = {place: work.reply(state, *end) for place, work, *end in ends}
    return [replies[place] for place in range(len(jobs))]


@dataclass(frozen=True)
class Work:
    """A client's part in a round of training, its objective having begun: what it trains, on which samples.

    number: how many samples it has. start: of a private client the parameters that it received.
    """

    data: ClientData
    config: ConfigRecord
    moments: np.ndarray | None
    objective: Callable
    model: nn.Module
    samples: Samples
    number: int
    start: np.ndarray | None

    @classmethod
    def begun(cls, state: ClientState, data: ClientData, message: Message) -> "Work":
        """What a message asks for; the process's model has its weights now."""
        config = message.content["config"]
        state.load(message.content)
        start = state.weights.arrays()[PARAMETERS].copy() if state.withheld else None
        moments = transport.from_record(message.content[MOMENTS]) if MOMENTS in message.content else None
        objective = state.objective_of(data.number)
        model, samples = _to_train(state, data, config, objective)
        number, round = len(samples), int(config["server-round"])
        with autocast(state.settings.client.attack_precision, state.device):
            seed = derive(state.settings.seed, "defence", round, data.name)
            samples = objective.start_round(model, samples, round=round, seed=seed)
        return cls(data, config, moments, objective, model, samples, number, start)

    @property
    def round(self) -> int:
        return int(self.config["server-round"])

    @property
    def mu(self) -> float:
        """FedProx's."""
        return float(self.config.get("proximal-mu", 0.0))

    def seed(self, state: ClientState, purpose: str) -> int:
        return derive(state.settings.seed, purpose, self.round, self.data.name)

    def options(self, state: ClientState) -> dict:
        """Of the local epochs, what all clients of a round have in common."""
        client = state.settings.client
        sizes = {"epochs": client.epochs, "batch_size": client.batch_size}
        return {"round": self.round, **sizes, "precision": client.precision, "clip_norm": client.clip_norm}

    def optimizer(self, state: ClientState, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The client's, with the moments and the rate that it has in this round."""
        client = state.settings.client
        optimizer = state.make_optimizer(parameters)
        rates = [group["lr"] * state.schedule(self.round) for group in optimizer.param_groups]
        if client.optimizer_state == "persist":
            self._kept(state).restore(optimizer, self.config["moments"][self.data.number])
        if self.moments is not None:
            optimizer_state.fill(optimizer, self.moments)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):  # moments come with the rate they saw last
            group["lr"] = rate
        return optimizer

    def _kept(self, state: ClientState) -> OptimizerState:
        return OptimizerState(folder_of(state.state_folder, self.data.number))

    def reply(self, state: ClientState, optimizer: torch.optim.Optimizer, sent: dict, loss: float) -> RecordDict:
        """What the trained client sends, of its weights; a private one what it may say."""
        if state.settings.client.optimizer_state == "persist":
            keep = {self.config[key][self.data.number] for key in ("moments", "committed")}
            self._kept(state).save(optimizer, self.round, keep)
        if self.moments is not None:
            sent = sent | {MOMENTS: optimizer_state.flat(optimizer)}
        if not state.withheld:
            metrics = MetricRecord({"num-examples": self.number, "loss": loss})
            return RecordDict(transport.to_records(sent) | {"metrics": metrics} | state.remarks())
        noise = derive(self.seed(state, "defence"), "noise")
        sent = sent | {PARAMETERS: state.withheld.update(self.start, sent[PARAMETERS], noise)}
        return RecordDict(transport.to_records(sent) | {"metrics": MetricRecord(state.withheld.metrics)})


def _to_train(state: ClientState, data: ClientData, config: ConfigRecord, objective) -> tuple[nn.Module, Samples]:
    """The model and what it is trained on in a round: behind its front end, and waveforms, where these are attacked."""
    listens = state.front_end is not None and on_waveforms(objective)
    round, parts = int(config["server-round"]), state.clients.everyone() if config.get("pooled") else [data]
    samples = [state.training_samples(part, normaliser(state, part, config), round, listens) for part in parts]
    model = state.listening(data, normaliser(state, data, config), round) if listens else state.model
    return model, Samples.joined(samples)


def evaluate(state: ClientState, data: ClientData, message: Message) -> RecordDict:
    """What became of the client's own test utterances under the message's protocol (see `evaluation.results`).

    Also of the validation utterances, counts alone: on original data, or in all conditions (`Protocol.validation`).
    """
    config, settings = message.content["config"], state.settings
    protocol = Protocol(**json.loads(config["protocol"]))
    detector = Detector(**json.loads(config["detector"])) if "detector" in config else None
    state.load(message.content)
    normalise = normaliser(state, data, config)
    data = data if protocol.sets else data.form(STATES)  # what is attacked is what is heard
    rows = data.rows(protocol.part, protocol.fraction, settings.seed)
    samples = state.samples(data, rows, normalise)
    seed = derive(settings.seed, "evaluate", int(config["server-round"]), data.name)
    with autocast(settings.evaluation.precision, state.device):
        spoken = state.spoken(data, rows, normalise) if protocol.sets else None
        measured = _measured(state, samples, protocol, seed, detector, spoken)
        validation = {}
        if protocol.part == "test" and (protocol.clean or protocol.validation):
            fraction = protocol.fraction if protocol.validation else 1.0
            own = data.rows("validation", fraction, settings.seed)
            known, spoken = state.samples(data, own, normalise), state.spoken(data, own, normalise)
            validation = _validation(state, known, protocol, derive(seed, "validation"), detector, spoken)
    reply = answer(measured, samples.y, rows, len(state.classes), protocol.utterances) | {"validation": validation}
    for column in protocol.groups:
        of_each = data.groups(column, rows), len(state.classes), protocol.min_support
        reply.setdefault("groups", {})[column] = groups.counts(measured.predictions, samples.y.cpu(), *of_each)
    sent = {"name": data.name, "answer": json.dumps(reply)}
    if protocol.example and data.number == config.get("shown", 0) and len(rows):
        sent["example"] = example(measured, data.name, state.classes)
    return RecordDict({"config": ConfigRecord(sent)})


def _measured(
    state: ClientState, samples: Samples, protocol: Protocol, seed: int, detector, spoken: Spoken | None
) -> measure.Measured:
    defence, size = state.inference_defence, state.settings.evaluation.batch_size
    more = {"attacks": state.attacks, "randomise": defence, "batch_size": size, "lengths": samples.lengths}
    more["spoken"] = spoken
    return measure.evaluate(state.model, samples.x, samples.y, protocol, seed=seed, detector=detector, **more)


def _validation(
    state: ClientState, samples: Samples, protocol: Protocol, seed: int, detector, spoken: Spoken | None
) -> dict[str, list]:
    """Per condition of the protocol, or without attack alone, the counts of these samples, added up over draws."""
    if protocol.validation:
        found = _measured(state, samples, replace(protocol, gradients=False), seed, detector, spoken).predictions
    else:
        size = state.settings.evaluation.batch_size
        found = {"original": measure.predict(state.model, samples.x, size, samples.lengths)[None]}
    counts = {name: [confusion(samples.y, each, len(state.classes)) for each in draws] for name, draws in found.items()}
    return {name: sum(draws).tolist() for name, draws in counts.items()}


def normaliser(state: ClientState, data: ClientData, config: ConfigRecord) -> Normaliser:
    """The client's, which is the same in all messages of an experiment; one that does not train is unknown to all."""
    if data.number not in state.normalisers:
        everyone, own, make = Sums.from_plain(config), data.rows("train"), state.normalisation
        made = make(data.frames(own), everyone) if len(own) else of_unknown(make, everyone)
        state.normalisers[data.number] = made
    return state.normalisers[data.number]


class Importable(ClientApp):
    """A ClientApp that workers import: its handlers are not pickled. It trains several clients at once, too."""

    state_of: Callable[[str], ClientState]

    def together(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """The replies of clients that are to train side by side, in order (`simulation.stacked`)."""
        state = self.state_of(messages[0].content["config"]["experiment"])
        torch.set_num_threads(state.settings.client.threads)
        data = [state.clients.client(int(context.node_config["partition-id"])) for context in contexts]
        limit, ray = state.settings.client.timeout, state.settings.simulation.backend == "ray"
        try:
            with time_limit(limit and limit * len(messages), ray):
                made = train_together(state, list(zip(data, messages, strict=True)))
        except Exception as error:
            made = [error] * len(messages)
        return [
            failed(reply, f"'{own.name}'", state, message)
            if isinstance(reply, Exception)
            else Message(reply, reply_to=message)
            for reply, own, message in zip(made, data, messages, strict=True)
        ]

    def __reduce__(self):
        return _imported, ()


def _imported() -> ClientApp:
    return app


def make_app(
    data: Callable[[dict, Settings], Clients] = simulated,
    kind: type[ClientApp] = ClientApp,
    more: Mapping[str, Handler] = MappingProxyType({}),
) -> ClientApp:
    """A ClientApp with its handlers; `data` opens what its clients have, `more` are handlers of queries by action."""

    @functools.lru_cache(maxsize=2)
    def state_of(experiment: str) -> ClientState:
        """One per worker process and experiment (JSON), kept from message to message."""
        return ClientState(json.loads(experiment), data)

    app = kind()
    app.state_of = state_of
    app.query()(guarded(query, state_of))
    app.query(STATISTICS)(guarded(statistics, state_of))
    for action, handle in ({detection.NAME: watch} | more).items():
        app.query(action)(guarded(handle, state_of))
    app.train()(guarded(train, state_of))
    app.evaluate()(guarded(evaluate, state_of))
    return app


app = make_app(kind=Importable)
