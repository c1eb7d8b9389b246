"""Interfaces: the methods that a component of each kind must have, checked before anything is trained.

A class of your own needs no base class: it conforms when its methods can be called as these are. `conform` compares
signatures; every component is then also tried on a little input (`fedser.preparation`).
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedser.config.components import Component, locate, signature
from fedser.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from torch import Tensor, nn


class Attack(Protocol):
    """Inputs x [B, 1, T, F] with labels y [B] → adversarial examples of the same shape, detached.

    Options: `eps` and `norm`, by which budgets are compared, `labels`, `steps`, …. An attack that is given a
    `randomise` knows of the defence at inference. Simplest is a method for `fedser.attacks.Adversary`, which does all
    of this and checks the budget: a class with `__init__(self, model, **settings)` and `__call__(self, x, y)`.
    """

    def __call__(
        self,
        model: "nn.Module",
        x: "Tensor",
        y: "Tensor",
        seed: int,
        *,
        predictions: "Tensor | None" = None,
        batch_size: int | None = None,
        randomise: "nn.Module | None" = None,
        lengths: "Tensor | None" = None,
    ) -> "Tensor": ...


class Objective(Protocol):
    """The loss of local training. `fedser.training.objective.CrossEntropy` is the simplest, and a base to inherit from.

    `samples` and `batch` are its `Samples`, `step` its `Step`; the first method returns samples, the second a loss.
    """

    def start_round(self, model: "nn.Module", samples, *, round: int, seed: int): ...

    def __call__(self, model: "nn.Module", batch, step) -> "Tensor": ...


class Augmentation(Protocol):
    """A client's training `Samples` of a round → the same, changed; the originals are left as they are.

    With the attribute `of_waveforms = True` it is given waveforms x [n, 1, samples, 1], zeros behind `lengths` [n], and
    may change how long they are.

    Random numbers come from `draws` (`fedser.augmentation.draws.Draws`): its methods give some for each clip.
    """

    def __call__(self, samples, draws): ...


class Corruption(Protocol):
    """What is wrong in the field: with a client's training clips, in every round the same, or with who answers.

    The attribute `of` says what is given and comes back: "labels", int64 [n] of a client's clips, −1 where one is
    missing; "waveforms", float32 [samples] of a clip; "rounds", a round's number → whether the client answers in it.
    `client` and `random` are NumPy generators, the client's (the same again for each of its clips and rounds) and one
    of the clip, or the round. An option `classes` is told how many there are.
    """

    def __call__(self, given, client: "np.random.Generator", random: "np.random.Generator"): ...


class Schedule(Protocol):
    """A round, counted from 1 → what `client.lr` is multiplied by in it."""

    def __call__(self, round: int) -> float: ...


class Averaging(Protocol):
    """The weights after a round, flat vectors by kind → the model that the training would end with.

    `state()` gives all that it remembers as arrays by name, for checkpoints; `restore` takes them back.
    """

    def __call__(self, weights): ...

    def state(self): ...

    def restore(self, state): ...


class InferenceDefence(Protocol):
    """An nn.Module through which inputs x [B, 1, T, F] go before they are classified.

    Draws come from `generator`, or from torch's global one where it is None. With an argument `lengths` [B] it returns
    (x, lengths).
    """

    def forward(self, x: "Tensor", generator: "torch.Generator | None" = None) -> "Tensor": ...


class Detector(Protocol):
    """Sums over clean clips and over their adversarial examples (`fedser.detectors.moments.Moments`) → a
    `fedser.detectors.detector.Detector`. Option: `attack`, names of what the examples are made by; `knowing`, if it has
    it, the name of the attack that is told of the detector."""

    def __call__(self, clean, adversarial): ...


class Model(Protocol):
    """An nn.Module made by `Class(classes=K, **options)`: x [B, 1, T, F] → logits [B, K], for inputs of any size.

    All parameters and float buffers are float32. With an argument `lengths` [B] it is given how many frames are real.
    With features=waveform x is [B, 1, samples, 1], zeros behind the first `lengths` [B] samples. Parameters that
    require no gradient are frozen: they neither travel nor are saved, and every worker must build the same. Attributes
    `least` and `most` say how many samples it can hear.
    """

    def forward(self, x: "Tensor") -> "Tensor": ...


class Normalisation(Protocol):
    """A client's training frames [n, T, F] and the `Sums` over all clients' → the `Normaliser` of its inputs (both in
    `fedser.features.normalisation`)."""

    def __call__(self, train: "np.ndarray", everyone): ...


class Corpus(Protocol):
    """A function: the corpus's folder or file → its utterances, with the columns path, speaker, emotion[, sex, …]."""

    def __call__(self, root: Path) -> "pd.DataFrame": ...


class Partition(Protocol):
    """A function: utterances with the columns client, label, … → the rows of each client by its name."""

    def __call__(self, table: "pd.DataFrame", *, seed: int) -> "dict[str, np.ndarray]": ...


class Split(Protocol):
    """A function: utterances, the rows of each client by its name, the partition's settings → per client its training,
    validation and test rows (`fedser.data.split.Parts`). Who has no training rows is only evaluated."""

    def __call__(self, table: "pd.DataFrame", rows: "dict[str, np.ndarray]", settings, *, seed: int) -> dict: ...


class Strategy(Protocol):
    """A `flwr.serverapp.strategy.Strategy`; the arrays to be aggregated are in the record "parameters"."""

    def configure_train(self, server_round, arrays, config, grid) -> Any: ...

    def aggregate_train(self, server_round, replies) -> Any: ...


def conform(component: Component, interface: type, made: Any = None) -> None:
    """Raises InputError where a component, or what it has `made`, can't be called as the interface says."""
    target = locate(component.target, component.key) if made is None else made
    for name, wanted in vars(interface).items():
        if not inspect.isfunction(wanted) or (name.startswith("_") and name != "__call__"):
            continue
        has = target if made is None else getattr(made, name, None)
        if not callable(has):
            fault = f" has no {name}"
        elif missing := _missing(has, wanted):
            fault = f"{'' if made is None else f'.{name}'} does not take {missing}"
        else:
            continue
        raise InputError(
            f"{component.key}={component.name}: {component.target}{fault}, as it must to be used as "
            f"{_kind(interface)}: {_form(name, wanted)}. See fedser.config.interfaces.{interface.__name__}."
        )


def _kind(interface: type) -> str:
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in interface.__name__).strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _form(name: str, wanted: Callable) -> str:
    return f"{name}({', '.join(list(inspect.signature(wanted).parameters)[1:])})"


def _missing(has: Callable, wanted: Callable) -> str:
    """Which of the arguments it can't be called with: by their places, or those that have a default by their names."""
    taken, given, refused = signature(has), [], []
    for item in list(inspect.signature(wanted).parameters.values())[1:]:
        by_place = item.kind is item.POSITIONAL_OR_KEYWORD and item.default is item.empty
        given += [item.name] if by_place else []
        try:
            taken.bind_partial(*given) if by_place else taken.bind_partial(**{item.name: None})
        except TypeError:
            refused.append(item.name)
    return ", ".join(refused)
