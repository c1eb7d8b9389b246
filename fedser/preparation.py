"""Preparation of a run: data, client splits, the initial model, every component built and tried.

Whatever a client would stumble over in the first round, or only after the training, fails here, by name.
"""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fedser.attacks import undisturbed
from fedser.attacks.waveform import Listening
from fedser.augmentation.draws import Draws
from fedser.config import components, identity, interfaces
from fedser.config.components import Component
from fedser.config.protocol import Protocols
from fedser.config.settings import Settings
from fedser.corruption.field import Field, Recorded
from fedser.corruption.field import built as built_corruption
from fedser.corruption.field import check as check_corruption
from fedser.data import corpora
from fedser.data.corpora import Corpus
from fedser.data.partition import ClientSplit, partition, repeated, warn_of_gaps
from fedser.data.states import cached
from fedser.data.store import FeatureStore, extract
from fedser.defences import inference
from fedser.deployment.roster import Roster
from fedser.deployment.vetting import greeting
from fedser.detectors.detector import Detector, Watched
from fedser.display import Display
from fedser.errors import FedserError, InputError
from fedser.evaluation import groups, record
from fedser.evaluation.detection import moments
from fedser.evaluation.groups import SEXES
from fedser.evaluation.parts import Parts
from fedser.evaluation.results import Results
from fedser.features.front_end import on_waveforms
from fedser.features.normalisation import Sums, of_unknown
from fedser.federation import (
    batch_norm,
    client_data,
    guarantee,
    optimizer_state,
    server_app,
    strategies,
    transport,
)
from fedser.federation.client_data import STATES, WAVEFORMS
from fedser.federation.optimizer_state import MOMENTS
from fedser.models.embedding import check_embed
from fedser.models.flops import flops
from fedser.models.lengths import logits
from fedser.models.weights import trained
from fedser.randomness import derive
from fedser.runs import checkpoint
from fedser.runs.folder import PARTS
from fedser.simulation import backend
from fedser.simulation.plan import Plan
from fedser.simulation.probe import probe
from fedser.training.objective import Samples, Step

SECONDS = 6  # of the clip that a pass is counted for, the longest in Trust-SER
LATE = 10**6  # a round in which every objective does all that it ever does


@dataclass(frozen=True)
class Preparation:
    """One configuration, ready to be federated."""

    settings: Settings
    protocols: Protocols
    corpus: Corpus
    store: FeatureStore
    splits: list[ClientSplit]
    model: torch.nn.Module
    norm: str = "aggregate"  # what the setting `batch_norm` comes to
    forms: Mapping[str, FeatureStore] = field(default_factory=dict)  # of the clips, beside the features
    roster: Roster | None = None  # of clients on machines of their own

    @property
    def classes(self) -> list[str]:
        """The emotions, in the order of the logits."""
        return self.corpus.classes

    @property
    def data(self) -> str:
        """The hash of the features, of audio and settings."""
        return self.store.folder.name

    @property
    def model_key(self) -> str:
        """The hash of everything that decides the trained weights."""
        return identity.digest(identity.training(self.settings) | {"data": self.data})

    @property
    def reply_bytes(self) -> int:
        """The size of a reply: the model's weights, and the optimizer's moments where they are averaged."""
        return sum(array.nbytes for key, array in self.weights.items() if key != batch_norm.LOCAL)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The initial weights as they travel, a copy, with all else that goes from round to round."""
        weights = transport.pack(self.model)
        if self.settings.client.optimizer_state == "average":
            optimizer = self.settings.client.build_optimizer(trained(self.model))
            weights[MOMENTS] = optimizer_state.flat(optimizer)
        local, _ = self._batch_norm()
        return local.begin(weights, len(self.splits)) if local else weights

    @property
    def private(self) -> dict | None:
        """What clients withhold for the strategy, plain; None where it promises them no privacy."""
        found = strategies.private(strategies.build_strategy(self.settings.strategy, self.trainers))
        return found and found | {"sums": not guarantee.needs_sums(self.settings, self.splits)}

    @functools.cached_property
    def guarantee(self) -> dict | None:
        """What a strategy that adds noise guarantees, or why it does not; None for others."""
        return guarantee.of(self.settings, self.model, self.norm, self.splits)

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def trainers(self) -> int:
        """How many clients train."""
        return sum(split.seen for split in self.splits)

    @property
    def unseen(self) -> dict[str, list[str]]:
        """The names of the clients that do not train, by what they are for; nothing where all train."""
        apart = [split for split in self.splits if not split.seen]
        parts = {part: [each.name for each in apart if len(getattr(each, part))] for part in ("test", "validation")}
        return parts if apart else {}

    def cost(self) -> dict[str, float]:
        """What model and training take: `parameters`, those `trained`, `gflop` of a pass of a clip of 6 s, bytes
        of arrays that a client has `received` and `sent` after a round, and how many `clients` do."""
        weights, strategy = self.weights, self.settings.strategy
        own = weights[batch_norm.LOCAL][0].nbytes if batch_norm.LOCAL in weights else 0
        pooled = strategies.pooled(strategies.build_strategy(strategy, self.trainers))
        count = {"parameters": self.parameters, "trained": sum(each.numel() for each in trained(self.model))}
        size = {"received": self.reply_bytes + own, "sent": self.reply_bytes}
        size["clients"] = 1 if pooled else strategies.clients_per_round(strategy, self.trainers)
        return count | {"gflop": self._gflop()} | size

    def _gflop(self) -> float:
        features = self.settings.features
        steps, width = features.shape
        if features.ragged:
            most = (features.limit, getattr(self.model, "most", None))
            steps = min([SECONDS * features.sample_rate, *filter(None, most)])
        x = torch.linspace(-1, 1, steps * width).view(1, 1, steps, width)
        return flops(self.model, x, torch.tensor([steps])) / 1e9

    def plan(self) -> Plan:
        """Where the clients run and how many at a time, by what one was measured to take."""
        shape = self.forms.get(STATES, self.store).shape
        probed = probe(self.settings, len(self.classes), self.splits, self.protocols.attacks, shape)
        return backend.plan(self.settings, self.splits, self.reply_bytes, probed)

    def federation(self, grid, plan: Plan, stop: threading.Event, state: Path, moments=()) -> server_app.Federation:
        """The server's side of the clients behind `grid`, after the handshake; in `state` they keep their moments."""
        trainers = [split.number for split in self.splits if split.seen]
        experiment = {"classes": self.classes, "trainers": trainers, "private": self.private}
        experiment |= greeting(self.settings) if self.roster else self._local(plan, state)
        least, window = self.settings.simulation.min_reply_fraction, plan.window
        federation = server_app.Federation(
            grid,
            len(self.splits),
            experiment,
            stop,
            least,
            window,
            *self._batch_norm(),
            moments=list(moments),
            stacked=plan.stacked,
        )
        federation.present = Field.of(self.settings, len(self.classes)).present
        federation.handshake()
        return federation

    def _local(self, plan: Plan, state: Path) -> dict:
        """What simulated clients find on this machine."""
        return {
            "settings": self.settings.plain,
            "attacks": {name: attack.node for name, attack in self.protocols.attacks.items()},
            "store": str(self.store.folder),
            "forms": {name: str(store.folder) for name, store in self.forms.items()},
            "state": str(state),
            "path": sys.path,  # so that workers import what this process does
            "clients_per_gpu": int(1 / plan.num_gpus) if 0 < plan.num_gpus <= 1 else 1,
        }

    def _batch_norm(self) -> tuple[batch_norm.Local | None, batch_norm.Recomputed | None]:
        local = batch_norm.Local(self.model) if self.norm == "local" else None
        return local, batch_norm.Recomputed(self.model) if self.norm == "recompute" else None

    def evaluate(
        self, federation: server_app.Federation, round: int, weights: dict, folder: Path, display: Display
    ) -> Results:
        """The last evaluation of a model after `round`, its record written to `folder`. Raises OSError.

        Each set of examples is kept there as soon as it is done; interrupted, the evaluation goes on from there.
        """
        final, began = self.protocols.final, time.monotonic()
        model = {"weights": checkpoint.digest(weights), "round": round, "data": self.data}
        key = identity.digest(identity.everything(self.settings) | model)
        learnt = self.protocols.learnt
        with display.evaluation(1 + len(final.sets) + bool(learnt)) as shown:
            kept, fit = Parts(folder / PARTS, key, shown), self.settings.detector.build
            detector = federation.detector(round, weights, learnt, fit(), kept) if learnt else None
            results = federation.evaluate(round, weights, final, kept, detector)
        compiled = record.compiled(results, self.settings, self.protocols, self.sexes(), round)
        record.write(folder, compiled, results, self.store, max(kept.seconds, time.monotonic() - began))
        kept.remove()
        return results

    def counts(self) -> dict[str, dict[str, int]]:
        """Utterances per class in the clients' training and test sets, as in Chang et al. 2022, Table 2.

        And in the test sets of clients that do not train, `unseen`, where there are such.
        """
        seen, apart = ([split for split in self.splits if split.seen is each] for each in (True, False))
        parts = {part: np.concatenate([getattr(split, part) for split in seen]) for part in ("train", "test")}
        parts |= {"unseen": np.concatenate([split.test for split in apart])} if apart else {}
        counted = {
            part: np.bincount(self.store.labels[rows], minlength=len(self.classes)) for part, rows in parts.items()
        }
        return {part: dict(zip(self.classes, map(int, counts), strict=True)) for part, counts in counted.items()}

    def repeated(self) -> dict[str, int] | None:
        """How many test clips have a sentence that is trained on (`partition.repeated`)."""
        return repeated(self.store.table, self.splits)

    def sexes(self) -> dict[str, str | None]:
        """Per client the sex of whoever speaks there, None where it is unknown or they differ."""
        table = self.store.table
        if "sex" not in table:
            return {split.name: None for split in self.splits}
        found = {split.name: set(table["sex"].iloc[split.test].map(SEXES)) for split in self.splits}
        return {name: next(iter(sexes)) if len(sexes) == 1 else None for name, sexes in found.items()}


def prepare(settings: Settings, roster: Roster | None = None) -> Preparation:
    """Reads the corpus, extracts or finds its features, splits them among clients, builds and tries every component.
    Where clients are real, their `roster` is all that is known of a corpus.

    Raises InputError for what a client would stumble over in the first round, or only after the training.
    """
    interfaces.conform(settings.dataset.component, interfaces.Corpus)
    interfaces.conform(settings.partition.component, interfaces.Partition)
    interfaces.conform(settings.partition.split, interfaces.Split)
    protocols = Protocols.of(settings)
    corpus, store, splits, recorded = (*roster.known(settings), None) if roster else _data(settings)
    warn_of_gaps(store.table, splits, corpus.classes)
    model = _initial_model(settings, len(corpus.classes))
    if not roster:
        _check_lengths(store, model, settings)
    _Trial(settings, len(corpus.classes)).everything(protocols, model)
    pooled = strategies.pooled(strategies.build_strategy(settings.strategy, sum(split.seen for split in splits)))
    _check_pooled(settings, pooled)
    norm = batch_norm.chosen(settings, model, pooled)
    forms = {} if roster else _forms(corpus, store, model, settings, protocols, recorded)
    return Preparation(settings, protocols, corpus, store, splits, model, norm, forms, roster)


def _data(settings: Settings) -> tuple[Corpus, FeatureStore, list[ClientSplit], Recorded | None]:
    """The corpus, what is made of it, whose clips are which, and what is wrong with recordings in the field."""
    corpus = corpora.load(settings.dataset, settings.partition.column, *settings.evaluation.groups)
    for column in settings.evaluation.groups:
        groups.check(corpus.table, column, "evaluation.groups")
    conditions = Field.of(settings, len(corpus.classes))
    splits = partition(corpus.table, settings.partition, settings.seed)
    _check_splits(conditions.dealt(splits, corpus.table["label"].to_numpy())[0], settings)
    store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
    splits, _ = conditions.dealt(partition(store.table, settings.partition, settings.seed), store.labels)
    if recorded := conditions.recorded(splits):
        store = client_data.again(corpus, store, settings.features, recorded)
    return corpus, store, splits, recorded


def _forms(
    corpus: Corpus,
    store: FeatureStore,
    model: torch.nn.Module,
    settings: Settings,
    protocols: Protocols,
    recorded: Recorded | None,
) -> dict[str, FeatureStore]:
    """Other forms of the store's clips that the clients need, row for row."""
    forms = {STATES: cached(store, settings.features, model, _why_live(settings))}
    forms[WAVEFORMS] = client_data.waveforms(corpus, store, settings, protocols.attacks.values(), recorded)
    return {name: form for name, form in forms.items() if form is not None}


def _why_live(settings: Settings) -> str | None:
    """What needs a waveform in training, if anything does."""
    if settings.defence.training:
        return f"{settings.defence.training.key}={settings.defence.training.name} attacks waveforms"
    if settings.augment:
        return f"augment=[{','.join(settings.augment)}] changes waveforms"
    return None


def _check_lengths(store: FeatureStore, model: torch.nn.Module, settings: Settings) -> None:
    """Raises InputError for a clip that is shorter or longer than the network can hear."""
    if not settings.features.ragged:
        return
    least, most = getattr(model, "least", 1), getattr(model, "most", None) or np.inf
    for wrong, words, advice in (
        (store.lengths < least, f"too short, model={settings.model.name} needs {least}", "remove it"),
        (store.lengths > most, f"too long, model={settings.model.name} hears {most}", "set features.seconds"),
    ):
        if (rows := np.flatnonzero(wrong)).size:
            more = f" ({len(rows)} clips like that)" if len(rows) > 1 else ""
            raise InputError(
                f"{store.table['path'].iloc[rows[0]]}: {store.lengths[rows[0]]} samples are {words}{more}; {advice}."
            )


def _check_pooled(settings: Settings, pooled: bool) -> None:
    """Raises InputError where one client trains for all, and a share of the clients is to train by the objective, some
    are not to answer, or the objective's attack goes through each client's own normalisation."""
    training = settings.defence.training
    if pooled and (gone := Field.of(settings, 2).names("rounds")):
        raise InputError(f"corruption.{gone[0]}: strategy={settings.strategy.name} has one client, who can't drop out.")
    objective = training.build() if pooled and training else None
    if on_waveforms(objective) and not settings.features.ragged:
        raise InputError(
            f"{training.key}.attack attacks waveforms in front of each client's own normalisation: "
            f"strategy={settings.strategy.name} has one client, who trains for all."
        )
    if objective and getattr(objective, "client_fraction", 1) != 1:
        raise InputError(
            f"{training.key}.client_fraction: strategy={settings.strategy.name} has one client, who trains for all."
        )


def _check_splits(splits: list[ClientSplit], settings: Settings) -> None:
    """Raises InputError where there is nothing to select by, or no normaliser for a client that does not train.

    Before features are extracted, which takes minutes.
    """
    if settings.selection.name == "best" and not any(len(split.validation) for split in splits):
        raise InputError(
            f"selection=best chooses by validation utterances, and partition/split={settings.partition.split.name} "
            "leaves none."
        )
    if settings.evaluation.validation and not any(len(split.validation) for split in splits):
        raise InputError("evaluation.validation=true, but this split leaves no validation utterances.")
    if all(split.seen for split in splits):
        return
    chosen = settings.features.normalisation
    interfaces.conform(chosen, interfaces.Normalisation, made := chosen.build())
    if of_unknown(made, Sums.of(np.eye(settings.features.shape[1])[None])) is None:
        raise InputError(
            f"features.normalisation={chosen.name} normalises each client by its own training clips, of which clients "
            f"that are held out (partition/split={settings.partition.split.name}) have none: choose zscore_client, "
            "which takes everybody's for them, or zscore_global."
        )


def _initial_model(settings: Settings, classes: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(settings.seed, "initial weights"))
        return settings.model.component.build(classes=classes)


class _Little(torch.nn.Module):
    """Logits of an input of any size at next to no cost: what attacks and objectives are tried on."""

    def __init__(self, classes: int):
        super().__init__()
        self.layer = torch.nn.Linear(4, classes)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 1, T, F] → the input of the last layer [B, 4]."""
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embed(x))


class _Trial:
    """Every component in use, built, held against its interface and tried on a little input before training.

    Raises InputError naming the component: many look at their settings only when they are called.
    """

    def __init__(self, settings: Settings, classes: int):
        self.settings, self.classes = settings, classes
        self.little = _Little(classes).eval()
        self.shape = settings.features.shape
        self.defence = self.detector = None

    def everything(self, protocols: Protocols, model: torch.nn.Module) -> None:
        """All of them; `model` is the one to be trained, on which nothing is changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            normalisation, strategy = self.settings.features.normalisation, self.settings.strategy
            interfaces.conform(normalisation, interfaces.Normalisation, normalisation.build())
            self._inference(self.settings.defence.inference)
            self._model(self.settings.model.component, model)
            interfaces.conform(strategy.component, interfaces.Strategy, strategies.build_strategy(strategy, 2))
            self._detector(self.settings.detector, model)
            for name in dict.fromkeys([*protocols.final.sets, *protocols.curve.sets, *protocols.learnt]):
                self._attack(name, protocols.attacks[name.removeprefix("adaptive/")])
            self._objective(self.settings.defence.training, model)
            self._schedule(self.settings.client.schedule)
            for component in self.settings.augment.values():
                self._augmentation(component)
            for component in self.settings.corruption.values():
                self._corruption(component)
            if self.settings.averaging:
                interfaces.conform(self.settings.averaging, interfaces.Averaging, self.settings.averaging.build())

    def _inference(self, component: Component | None) -> None:
        if component is None:
            return
        self.defence = component.build()
        interfaces.conform(component, interfaces.InferenceDefence, self.defence)
        with self._named(component):
            inference.apply(self.defence, *self._inputs(2), torch.Generator().manual_seed(0))

    def _model(self, component: Component, model: torch.nn.Module) -> None:
        interfaces.conform(component, interfaces.Model, model)
        if wrong := sorted({str(tensor.dtype) for tensor in model.parameters()} - {"torch.float32"}):
            raise InputError(f"model={component.name}: its parameters must be float32, some are {', '.join(wrong)}.")
        given = [self._inputs(2)]
        if self.defence is not None:
            given.append(inference.apply(self.defence, *given[0]))
        training = model.training
        for x, lengths in given:
            with (
                self._named(component, what=f"its network can't take inputs of shape {list(x.shape)}: "),
                torch.no_grad(),
            ):
                scores = logits(model.eval(), x, lengths)
            if tuple(scores.shape) != (2, self.classes):
                raise InputError(
                    f"model={component.name}: {component.target} answers two inputs {list(x.shape)} with "
                    f"{list(scores.shape)}; it must be logits [2, {self.classes}]."
                )
        model.train(training)

    def _attack(self, name: str, component: Component) -> None:
        attack = component.build()
        interfaces.conform(component, interfaces.Attack, attack)
        if (least := getattr(attack, "least_classes", 2)) > self.classes:
            raise InputError(
                f"{name} needs at least {least} classes, {self.settings.dataset.name} has {self.classes}: "
                "choose another attack."
            )
        knows = self.defence if name.startswith("adaptive/") else None
        for method in _methods(components.build(_one_step(component.node), key=name)):
            low, high = getattr(method, "box", None) or (-1, 1)
            x, lengths = self._inputs(1)
            x, victim = low + (high - low) * x, self.little
            if on_waveforms(method):
                victim, x, lengths = self._listening(1)
            with self._named(component, name, f"{getattr(method, 'name', name)} can't attack with its settings: "):
                victim = Watched(self.little, self.detector) if getattr(method, "evades", False) else victim
                made = method(victim, x, logits(victim, x, lengths).argmax(1), 0, randomise=knows, lengths=lengths)
            if not isinstance(made, torch.Tensor) or made.shape != x.shape:
                raise InputError(
                    f"{name}: {component.target} must return a tensor of the inputs' shape {list(x.shape)}."
                )

    def _detector(self, component: Component, model: torch.nn.Module) -> None:
        if not component:
            return
        interfaces.conform(component, interfaces.Detector, fit := component.build())
        with self._named(component):
            with undisturbed(model, torch.device("cpu"), 0):
                check_embed(model, *self._inputs(2))
            x, lengths = self._inputs(8)
            self.detector = fit(*(moments(self.little, [each], lengths, 8) for each in (x, x + 1)))
            if not isinstance(self.detector, Detector) or len(self.detector.weights) != 4 + self.classes:
                raise InputError("it must make a fedser.detectors.detector.Detector with a weight for each dimension")

    def _objective(self, component: Component | None, model: torch.nn.Module) -> None:
        if component is None:
            return
        interfaces.conform(component, interfaces.Objective, built := component.build())
        if (check_model := getattr(built, "check_model", None)) is not None:
            with self._named(component), undisturbed(model, torch.device("cpu"), 0):
                check_model(model, *self._inputs(2))
        objective = components.build(_one_step(component.node), key=component.key)
        little, x, lengths = self._listening(4) if on_waveforms(built) else (self.little, *self._inputs(4))
        samples = Samples.of(x, torch.arange(4) % self.classes, lengths)
        with self._named(component):
            samples = objective.start_round(little, samples, round=LATE, seed=0)
            loss = objective(little, samples, Step(LATE, 0, 0, 0))
            if not isinstance(loss, torch.Tensor) or loss.shape != () or not loss.requires_grad:
                raise InputError("its loss must be a single number with a gradient")

    def _schedule(self, component: Component) -> None:
        interfaces.conform(component, interfaces.Schedule, schedule := component.build())
        with self._named(component):
            factors = [schedule(round) for round in range(1, self.settings.rounds + 1)]
            if not all(isinstance(factor, int | float) and 0 <= factor < float("inf") for factor in factors):
                raise InputError("its factors must be numbers of at least 0")

    def _augmentation(self, component: Component) -> None:
        interfaces.conform(component, interfaces.Augmentation, augment := component.build())
        x, lengths = self._inputs(4)
        if on_waveforms(augment):
            lengths = torch.tensor([8000, 7000, 8000, 6000])
            x = torch.rand(4, 1, 8000, 1) * (torch.arange(8000) < lengths[:, None])[:, None, :, None]
        samples = Samples.of(x, torch.arange(4) % self.classes, lengths).softened(self.classes, 0.0)
        with self._named(component):
            made = augment(samples, Draws.of(0, torch.arange(4)))
            training = self.settings.defence.training
            behind = training and on_waveforms(training.build()) and not self.settings.features.ragged
            if behind and not torch.equal(made.targets, samples.targets):
                raise InputError(
                    f"it mixes labels, and {training.key}.attack attacks waveforms before that: leave it out"
                )
            same = isinstance(made, Samples) and (
                made.x.shape == x.shape or (on_waveforms(augment) and made.x.dim() == 4)
            )
            if not same or not made.x.isfinite().all():
                raise InputError(f"it must return Samples of the same shape {list(x.shape)}, without NaN")

    def _corruption(self, component: Component) -> None:
        interfaces.conform(component, interfaces.Corruption, corruption := built_corruption(component, self.classes))
        with self._named(component):
            check_corruption(corruption, self.classes)

    def _listening(self, count: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
        """What attacks on waveforms are tried on: the little network behind a front end, waveforms, their lengths."""
        victim = Listening(self.little, lambda x, _: (functional.adaptive_avg_pool2d(x, self.shape), None))
        return victim, torch.rand(count, 1, 4000, 1) - 0.5, torch.full((count,), 3000)

    def _inputs(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and their lengths."""
        return torch.rand(count, 1, *self.shape), torch.full((count,), self.shape[0])

    @contextlib.contextmanager
    def _named(self, component: Component, name: str | None = None, what: str = "") -> Iterator[None]:
        """A block whose errors are the component's."""
        try:
            yield
        except Exception as error:
            why = str(error) if isinstance(error, FedserError) else f"{type(error).__name__}: {error}"
            raise InputError(f"{name or component.key}: {what}{why}") from error


def _methods(attack) -> list:
    """An attack, or those that it is composed of: together they stop at the first that fools."""
    parts = [*getattr(attack, "members", {}).values(), *getattr(attack, "rand", {}).values()]
    return [method for part in parts for method in _methods(part)] or [attack]


def _one_step(node):
    """An attack's settings with as few steps as there can be."""
    if not isinstance(node, dict):
        return node
    least = {"steps": 1, "searches": 1, "queries": 3, "eot": 1}
    return {key: least[key] if key in least and value else _one_step(value) for key, value in node.items()}
