"""What there is before the first message: the data, who holds what, the initial model, what the clients are told."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from fedser.config import identity, protocol
from fedser.config.compose import build
from fedser.data import corpora
from fedser.data.corpora import Corpus
from fedser.data.partition import Share, partition, warn_of_gaps
from fedser.data.store import FeatureStore, extract
from fedser.errors import FedserError, InputError
from fedser.evaluation.results import SEXES
from fedser.federation import server_app, transport
from fedser.randomness import derive
from fedser.simulation import backend
from fedser.simulation.plan import Plan
from fedser.simulation.probe import probe


@dataclass(frozen=True)
class Preparation:
    """One configuration, ready to be federated; `attacks` are those of the evaluation, by name."""

    settings: dict
    corpus: Corpus
    store: FeatureStore
    shares: list[Share]
    attacks: dict[str, dict]
    model: torch.nn.Module

    @property
    def classes(self) -> list[str]:
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
        """What a model's weights take."""
        return sum(array.nbytes for array in transport.pack(self.model).values())

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def plan(self) -> Plan:
        """Where the clients run and how many at a time, by what one was measured to take."""
        probed = probe(self.settings, len(self.classes), self.shares, self.attacks)
        return backend.plan(self.settings, self.shares, self.reply_bytes, probed)

    def federation(self, grid, plan: Plan, stop: threading.Event, state: Path, moments=()) -> server_app.Federation:
        """The server's side of the clients behind `grid`, introduced; `state` is where they keep their moments."""
        told = {
            "settings": self.settings,
            "classes": self.classes,
            "attacks": self.attacks,
            "store": str(self.store.folder),
            "state": str(state),
            "clients_per_gpu": int(1 / plan.num_gpus) if 0 < plan.num_gpus <= 1 else 1,
        }
        least = self.settings["simulation"]["min_reply_fraction"]
        federation = server_app.Federation(
            grid, len(self.shares), told, stop, least, plan.window, moments=list(moments)
        )
        federation.introduce()
        return federation

    def sexes(self) -> dict[str, str | None]:
        """Per client the sex of whoever speaks there, None where it is unknown or they differ."""
        table = self.store.table
        if "sex" not in table:
            return {share.name: None for share in self.shares}
        found = {share.name: set(table["sex"].iloc[share.test].map(SEXES)) for share in self.shares}
        return {name: next(iter(sexes)) if len(sexes) == 1 else None for name, sexes in found.items()}


def prepare(settings: dict) -> Preparation:
    """Reads the corpus, extracts or finds its features, deals them out, builds the model and every defence once.

    `settings` come from `config.settle`. Raises InputError for what a client would stumble over in the first round, or
    only after the training.
    """
    attacks = protocol.attacks(settings)
    corpus = corpora.load(settings)
    store = extract(corpus, settings["features"], settings["dataset"]["on_bad_audio"])
    shares = partition(store.table, settings["partition"], settings["seed"])
    warn_of_gaps(store.table, shares, corpus.classes)
    for name, attack in attacks.items():
        if (least := build(attack).least_classes) > (known := len(corpus.classes)):
            raise InputError(
                f"{name} needs at least {least} classes, {corpus.name} has {known}: choose another attack."
            )
    build(settings["defence"]["training"])
    if (randomise := build(settings["defence"]["inference"])) is not None:
        randomise(torch.zeros(1, 1, settings["features"]["frames"], settings["features"]["mels"]))
    _try_attacks(settings, attacks, randomise, len(corpus.classes))
    return Preparation(settings, corpus, store, shares, attacks, _initial_model(settings, len(corpus.classes)))


def _initial_model(settings: dict, classes: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(settings["seed"], "initial weights"))
        return build(settings["model"]["module"], classes=classes)


class _Little(torch.nn.Module):
    """Logits of an input of any size at next to no cost: what an attack's settings are tried on."""

    def __init__(self, classes: int):
        super().__init__()
        self.layer = torch.nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def _try_attacks(settings: dict, attacks: dict[str, dict], randomise: torch.nn.Module | None, classes: int) -> None:
    """Has each attack take a step on a little model: many methods look at their settings only when they are called.

    Raises InputError naming the attack, here and not after the training.
    """
    sets = dict.fromkeys([*protocol.final(settings).sets, *protocol.curve(settings).sets])
    tried = {name: attacks[name.removeprefix("adaptive/")] for name in sets}
    if (training := settings["defence"]["training"]) is not None:
        tried["defence.training.attack"] = training["attack"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Little(classes).eval()
        unit = torch.rand(1, 1, settings["features"]["frames"], settings["features"]["mels"])
    for name, attack in tried.items():
        for method in _methods(build(_one_step(attack))):
            low, high = method.box or (-1, 1)
            x = low + (high - low) * unit
            try:
                method(model, x, model(x).argmax(1), 0, randomise=randomise if name.startswith("adaptive/") else None)
            except Exception as error:
                why = str(error) if isinstance(error, FedserError) else f"{type(error).__name__}: {error}"
                raise InputError(f"{name}: {method.name} can't attack with its settings: {why}") from error


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
