"""An attack made on another run's model: what someone can do who has a similar model, and not this one.

>>> transfer = hydra.utils.instantiate(config.attacks.transfer, source="outputs/synthetic-cnn4-…")
>>> x_adv = transfer(model, x, y, seed=0)
"""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fedser.attacks.adversary import classes_of, known_labels, threat, undisturbed
from fedser.config import components
from fedser.errors import InputError
from fedser.models import weights
from fedser.runs.folder import RunFolder


class Transfer:
    """Attacks the model of a finished run and hands on the examples; the interface of `fedser.attacks.Adversary`.

    eps, labels, box: of the attack `base` (see `Adversary`), whatever its own file says. "predicted" labels are those
        of the source's model: the attacked model is not asked for anything.
    source: the run's folder, with its config.yaml, summary.json and model.safetensors.
    base: settings of the attack on the source's model, as in `conf/attack`; `norm` says what it is measured in.
    victim: {"features": …, "dataset": {"classes": …, "drop": …}} of the run under attack, which the source must share:
        its model would read other inputs, or other classes, otherwise. None for no check.

    Raises InputError where the source is missing, unfinished or of other settings.
    """

    adaptive = False
    knowledge = "transfer"

    def __init__(
        self, name: str, eps, labels, source, base: dict, victim: dict | None = None, norm: str = "Linf", box=None
    ):
        self.name = name
        self.labels = known_labels(labels)
        self.base = components.build({**base, "eps": eps, "labels": self.labels, "box": box}, key=f"{name}.base")
        self.eps, self.norm, self.box, self.eot = self.base.eps, norm, self.base.box, self.base.eot
        if self.base.norm != norm:
            raise InputError(
                f"attack.norm of {name} is {norm}, but its base {self.base.name} is measured in {self.base.norm}."
            )
        if source is None:
            raise InputError(f"attack.source of {name} must be set to the folder of a finished run: source=outputs/…")
        self.source = Path(source).expanduser()
        self._config = self._read()
        self._check(victim or {})
        self._model: nn.Module | None = None

    def _read(self) -> dict:
        """The source's settings. Raises InputError unless it has finished, and has a model."""
        run = RunFolder(self.source)
        for name in ("config.yaml", "summary.json"):
            if not (self.source / name).is_file():
                raise self._wrong(self.source / name, "is not there, so there is no run")
        try:
            config, status = OmegaConf.to_container(run.config()), (run.summary() or {}).get("status")
        except InputError as error:
            raise self._wrong(self.source, f"is damaged ({error})") from error
        if status != "finished":
            raise self._wrong(self.source / "summary.json", f"says that the run is {status}, not finished")
        if not (model := self.source / "model.safetensors").is_file():
            raise self._wrong(model, "is not there")
        return config

    def _check(self, victim: dict) -> None:
        """Raises InputError unless the source's settings have what is in `victim`."""
        found = dict(_leaves(self._config))
        for key, wanted in _leaves(victim):
            if found.get(key) != wanted:
                has = f"has {key}={found.get(key)}, the run under attack {key}={wanted}"
                raise self._wrong(
                    self.source / "config.yaml", f"{has}: its model reads other inputs, choose another run"
                )

    def _wrong(self, file: Path, what: str) -> InputError:
        return InputError(f"attack.source of {self.name}: {file.absolute()} {what}.")

    def __call__(self, model, x, y, seed, *, predictions=None, **known) -> Tensor:
        """Examples of x [B, 1, T, F] made on the source's model; of `model` only the number of classes is looked at.

        What else is `known` is handed on: the source's model too is attacked behind `randomise`. `predictions` are not.
        Raises InputError if the source's model has other classes or is `model` itself, BudgetError as `Adversary` does.
        """
        if len(x) == 0:
            return x.detach().clone()
        with undisturbed(model, x.device, seed):
            source = self._load(classes_of(model, x.detach())).to(x.device, x.dtype)
        if _same(source, model):
            what = "holds the very model under attack, which a transfer attack does not have: choose another run"
            raise self._wrong(self.source, what)
        return self.base(source, x, y, seed, **known)

    @property
    def least_classes(self) -> int:
        """How many classes a model must tell apart for its base to work."""
        return self.base.least_classes

    def _load(self, classes: int) -> nn.Module:
        """The source's model, loaded once."""
        if self._model is None:
            file = self.source / "model.safetensors"
            model = components.component("model", self._config["model"]).build(classes=classes)
            try:
                weights.fill(model, weights.read(file)[0], file)
            except InputError as error:
                raise InputError(f"attack.source of {self.name}: {error}") from error
            self._model = model.eval().requires_grad_(False)
        return self._model

    def __str__(self):
        """The threat model in one line."""
        return threat(self, f"made by {self.base.name} on the model of {self.source}")


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a)


def _leaves(node: dict, prefix: str = ""):
    """(dotted key, value) of everything in nested dictionaries."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
