"""Adversarial examples in the model's own input units, with the budget checked and no trace left on the model.

>>> fgsm = hydra.utils.instantiate(config.attack)
>>> x_adv = fgsm(model, x, y, seed=0)

torchattacks' methods assume images in [0, 1] and clamp to it; standardised log-Mels have no such bounds.

An attacker who knows of a randomisation at inference attacks the mean of many draws of it (`Defended`):

>>> x_adv = fgsm(model, x, y, seed=0, randomise=Randomise())
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from fedser.config import components
from fedser.config.schema import Count, NonNegative, Positive, must, shown
from fedser.defences import inference
from fedser.errors import InputError, RunError
from fedser.models.lengths import logits, takes_lengths
from fedser.randomness import torch_seeded

# Settings of a method that scale with the box, and by which power of its width: lengths in feature units, and Carlini &
# Wagner's c, a squared length per logit.
SCALES = {"eps": 1, "alpha": 1, "lr": 1, "c": 2}
# What the settings of methods without annotations, as libraries have them, may be.
OF_LIBRARIES = {
    "alpha": Positive | None,
    "steps": Count,
    "decay": NonNegative,
    "random_start": bool,
    "multi_targeted": bool,
}
Labels = Annotated[Literal["predicted", "true", True], must("must be predicted or true")]
SURE = 0.9  # of the draws of a known randomisation: so many fooled, and an attack for the smallest change is done
CPU_CHUNK = 16  # samples attacked at a time on a CPU, where more are not faster but take memory (VGG-15: 50 MB each)


class BudgetError(RunError):
    """An attack moved its input further than its budget allows, or to somewhere that is not a number."""


class Adversary:
    """An attack on log-Mels by one method: `adversary(model, x, y, seed) -> x_adv`.

    eps: the budget, in the units of x (σ of a mel bin under z-scoring), measured in `norm`: "Linf" per cell, "L2" per
        sample. It means nothing to a method without an `eps` of its own (DeepFool) and is then dropped.
    labels: what the attack leads away from: "true" labels, or "predicted" ones as in Chang et al. 2022's code.
    method: a torchattacks class or partial, called as `method(model, **settings)`.
    box: (low, high) that x_adv stays in, e.g. (0, 1) for min-max features; None for features without bounds.
    eot: draws that each pass averages over where a randomisation is known (expectation over transformation).
    adaptive: this attack always knows the randomisation; whoever evaluates gives it the defence.
    evades: this attack always knows a detector; whoever evaluates gives it a model that has a method `watched`.
    in_order: whether the method passes all of its samples through the model each time, in their order, or says which
        ones (`among`). One that does not is given samples of one length at a time where the network goes by lengths:
        often a single one, and slow.
    settings: passed on to `method`; `alpha`, a step size, is in the units of x, and None means eps / 4. A method that
        knows `n_classes` or `seed` is given them where they are not set.

    Raises InputError for settings that the method does not know.
    """

    def __init__(
        self,
        name: str,
        eps: Positive | None,
        labels: Labels,
        method: Callable,
        norm: Literal["Linf", "L2"] = "Linf",
        box: tuple[float, float] | None = None,
        eot: Count = 10,
        adaptive: bool = False,
        in_order: bool = False,
        evades: bool = False,
        **settings: Any,
    ):
        self.name = name
        self.labels = known_labels(labels)
        self.method = method
        self.norm = norm
        self.box = None if box is None else tuple(box)
        self.eot = eot
        self.adaptive = adaptive
        self.in_order = in_order
        self.evades = evades
        self.knowledge = getattr(getattr(method, "func", method), "knowledge", "white-box")
        known = inspect.signature(method).parameters
        self.eps = eps if "eps" in known else None
        self._check(known, settings)
        if self.eps is not None:
            settings = {"eps": eps, **settings}
            if settings.get("alpha", 0) is None:
                settings |= {"alpha": eps / 4}
        if self.box is not None and "clip" in known:
            settings |= {"clip": (0.0, 1.0)}
        self.settings = settings
        self._given = [key for key in ("n_classes", "seed") if key in known and key not in settings]

    @property
    def least_classes(self) -> int:
        """How many classes a model must tell apart for the method to work."""
        method = getattr(self.method, "func", self.method)
        options = {**getattr(self.method, "keywords", {}), **self.settings}
        return method.least_classes(**options) if hasattr(method, "least_classes") else 2

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError where the method has no such setting, or can't take its value.

        Beyond their bounds many methods do nothing and say nothing, and a model that was not attacked looks robust.
        """
        method = node.get("method")
        if not (isinstance(method, dict) and "_target_" in method):
            raise InputError(f"{key}.method={shown(method)} must be settings with a _target_, as in conf/attack.")
        known = components.parameters(components.locate(method["_target_"], f"{key}.method"))
        own = {name: value for name, value in node.items() if name not in components.parameters(Adversary)}
        for path, options in ((key, own), (f"{key}.method", method)):
            for name, value in options.items():
                annotation = known[name].annotation if name in known else inspect.Parameter.empty
                if annotation is inspect.Parameter.empty:
                    annotation = OF_LIBRARIES.get(name, annotation)
                components.check_value(annotation, value, f"{path}.{name}")

    def _check(self, known, settings):
        key = f"attack.{{}} of {self.name}".format
        if self.labels not in ("true", "predicted"):
            raise InputError(f"{key('labels')} is 'true' or 'predicted', not {self.labels!r}")
        if self.norm not in ("Linf", "L2"):
            raise InputError(f"{key('norm')} is Linf or L2, not {self.norm!r}")
        if "eps" in known and not (isinstance(self.eps, int | float) and 0 <= self.eps < math.inf):
            raise InputError(f"{key('eps')} must be a number of at least 0, not {self.eps!r}")
        if self.box is not None and not (len(self.box) == 2 and self.box[0] < self.box[1]):
            raise InputError(f"{key('box')} must be [low, high], not {list(self.box)}")
        for setting in settings:
            if setting not in known:
                raise InputError(f"{key(setting)}: this attack has no such setting, it has {', '.join(known)}")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        *,
        predictions: Tensor | None = None,
        batch_size: int | None = None,
        randomise: nn.Module | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Attacks `model` in eval mode at x [B, 1, T, F] with labels y [B]; returns x_adv, of x's shape, detached.

        y may be None where `labels` is "predicted". `predictions` [B], the model's own in eval mode, spare a forward
        pass to a caller who has them. `randomise` is the defence at inference, known to the attacker: examples are then
        made on `Defended`, and the undefended model's `predictions` mean nothing.
        `lengths` [B] are the real frames of each x, for a network that goes by them: samples of one length are then
        attacked together, unless the method is `in_order`.
        `batch_size` bounds the memory: so many samples (draws of them, where a randomisation is known) are attacked at
        a time, None for as many as are fast. A sample's result depends on it by rounding only, but for random starts on
        a GPU, and draws of a randomisation.
        All modes, flags, gradients and random states are as before afterwards, also after an exception.

        Raises BudgetError if the budget did not hold.
        """
        x = x.detach()
        if len(x) == 0:
            return x.clone()
        low, high = self._box(x)
        attacked = defended(model, randomise, self.eot)
        inner = _Boxed(attacked, low, high - low)
        with undisturbed(inner, x.device, seed):
            attack = self.method(inner, **self._scaled(high - low), **self._facts(model, x, seed))
            known = predictions if randomise is None else None
            x_adv = x.clone()
            size = samples_at_a_time(attacked, x, batch_size)
            for rows, inner.length in _chunks(model, x, lengths, size, self.in_order):
                x_adv[rows] = self._attack(attack, inner, rows, x, y, known)
        self._verify(x, x_adv, (low, high))
        return x_adv

    def _scaled(self, width: float) -> dict:
        return {k: v / width ** SCALES[k] if k in SCALES else v for k, v in self.settings.items()}

    def _facts(self, model: nn.Module, x: Tensor, seed: int) -> dict:
        """The facts that a library's method asks for: how many classes there are, and the seed that it sets itself."""
        facts = {"seed": seed % 2**32, "n_classes": classes_of(model, x) if "n_classes" in self._given else None}
        return {key: facts[key] for key in self._given}

    def _attack(self, attack, inner, rows, x, y, predictions):
        x = x[rows]
        u = inner.enter(x)
        if self.labels == "true":
            labels = y[rows]
        elif predictions is not None:
            labels = predictions[rows]
        elif _predicts(attack):
            labels = None
        else:
            with torch.no_grad():
                labels = inner(u).argmax(1)
        # Adding the change, rather than mapping the result back, leaves cells that did not move exactly alone.
        return x + (attack(u, labels).detach() - u) * inner.width

    def _box(self, x: Tensor) -> tuple[float, float]:
        """The box that becomes [0, 1]: the given one, or one so wide that the method's clamp never acts.

        The latter is symmetric and its width a power of two: scaling is then exact, and the box the same for nearly
        every batch, so that a sample's result hardly depends on which others share its batch.
        """
        if self.box is not None:
            return self.box
        peak = x.abs().max().item()
        if not math.isfinite(peak):
            raise RunError(f"The input of attack {self.name} has cells that are NaN or infinite.")
        reach = peak + self.eps if self.eps is not None and self.norm == "Linf" else 2 * peak + (self.eps or 0)
        half = 2.0 ** math.ceil(math.log2(max(reach, 1.0)))
        return -half, half

    def _verify(self, x, x_adv, box):
        """Raises BudgetError if x_adv is not finite, left a given box, or is further from x than eps."""
        low, high = box
        change = (x_adv - x).flatten(1)
        if not change.isfinite().all():
            raise BudgetError(f"Attack {self.name} made cells that are NaN or infinite.")
        rounding = 4 * torch.finfo(x.dtype).eps * (high - low)  # of x mapped into the box and back, per cell
        where = f"Its box is [{low:g}, {high:g}], the inputs lie in [{x.min():g}, {x.max():g}]."
        if self.box is not None and (x_adv.min() < low - rounding or x_adv.max() > high + rounding):
            raise BudgetError(f"Attack {self.name} left its box: cells in [{x_adv.min():g}, {x_adv.max():g}]. {where}")
        if self.eps is None:
            return
        moved = change.abs().amax(1) if self.norm == "Linf" else change.norm(dim=1)
        limit = self.eps + rounding * (1 if self.norm == "Linf" else math.sqrt(change.shape[1]))
        if (moved > limit).any():
            raise BudgetError(
                f"Attack {self.name} broke its budget: it moved {int((moved > limit).sum())} of {len(x)} samples "
                f"by more than eps = {self.eps:g} ({self.norm}), the furthest by {moved.max():g}. {where}"
            )

    def __str__(self):
        """The threat model in one line."""
        options = {**getattr(self.method, "keywords", {}), **self.settings}
        options = [f"{name}={value}" for name, value in options.items() if name != "eps"]
        knows = "knows the randomisation" if self.adaptive else "where it knows the randomisation"
        if self.knowledge != "no knowledge":
            options.append(f"{knows}: mean of {self.eot} draw{'s' * (self.eot > 1)}")
        return threat(self, *options)


def threat(attack, *options: str) -> str:
    """The threat model of an attack (name, knowledge, norm, eps, box, labels) in one line, ending with `options`."""
    each = {"Linf": "cell", "L2": "sample"}[attack.norm]
    budget = "the smallest change" if attack.eps is None else f"at most {attack.eps:g} per {each}"
    box = "features without bounds" if attack.box is None else f"inside [{attack.box[0]:g}, {attack.box[1]:g}]"
    labels = [] if attack.knowledge == "no knowledge" else [f"{attack.labels} labels"]
    return ", ".join([f"{attack.name}: {attack.knowledge}, {attack.norm}, {budget}", box, *labels, *options])


def known_labels(labels) -> str:
    """`labels` as a word: YAML and Hydra read a bare `true` as a boolean."""
    return "true" if labels is True else labels


def clipped(x: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """x kept in (low, high), or as it is where features have no bounds."""
    return x if clip is None else x.clamp(*clip)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much [B] the label's logit exceeds the best other one: negative where the model is fooled."""
    of_label = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return of_label[:, 0] - others.amax(1)


def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many classes a model in eval mode tells apart, found by asking it for one sample of x."""
    with torch.no_grad():
        return logits(model, x[:1]).shape[1]


class Defended(nn.Module):
    """A model behind a randomisation, as an attacker who knows of it sees it.

    x [B, 1, T, F] -> logits [B, classes], each the mean over `draws` fresh draws from torch's global generator, with
    the gradient through the randomisation: expectation over transformation (Athalye et al. 2018, §4.2) of the logits,
    so that any attack can use it, and not of each attack's loss.
    """

    def __init__(self, model: nn.Module, randomise: nn.Module, draws: int):
        super().__init__()
        self.model = model
        self.randomise = randomise
        self.draws = draws

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.each(x, lengths).mean(1)

    def each(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The logits of every draw: x [B, 1, T, F] of these real frames [B] -> [B, draws, classes]."""
        many = None if lengths is None else lengths.repeat_interleave(self.draws)
        scores = logits(self.model, *inference.apply(self.randomise, x.repeat_interleave(self.draws, dim=0), many))
        return scores.unflatten(0, (len(x), self.draws))


def defended(model: nn.Module, randomise: nn.Module | None, draws: int) -> nn.Module:
    """`model` behind the randomisation that is known: `Defended`, or itself where that is None."""
    return model if randomise is None else Defended(model, randomise, draws)


def draws_anew(model: nn.Module) -> bool:
    """Whether two passes of the same input differ, because there is a randomisation inside."""
    return any(isinstance(module, Defended) for module in model.modules())


def each_draw(model: nn.Module, x: Tensor) -> Tensor:
    """The logits [B, draws, classes] of x [B, ...]: of every fresh draw of a known randomisation, else of one pass."""
    return model.each(x) if draws_anew(model) else model(x)[:, None]


def samples_at_a_time(model: nn.Module, x: Tensor, batch_size: int | None) -> int:
    """How many samples of x go through the model together, so that those of all its draws are at most `batch_size`."""
    batch_size = batch_size or (CPU_CHUNK if x.device.type == "cpu" else len(x))
    return max(1, batch_size // (model.draws if isinstance(model, Defended) else 1))


def _predicts(attack) -> bool:
    """Whether the method finds the predicted labels in its own first pass, which spares another one."""
    return inspect.signature(attack.forward).parameters["labels"].default is None


class _Boxed(nn.Module):
    """A model whose inputs u in [0, 1] stand for features in [low, low + width]; `length` of their frames are real, one
    number for all or one for each."""

    def __init__(self, model, low, width):
        super().__init__()
        self.model = model
        self.low = low
        self.width = width
        self.length: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.width

    def forward(self, u: Tensor) -> Tensor:
        return logits(self.model, u * self.width + self.low, self._lengths(u))

    def each(self, u: Tensor) -> Tensor:
        return self.model.each(u * self.width + self.low, self._lengths(u))

    def watched(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and suspicion of a model with a detector. Raises InputError where there is none."""
        if not hasattr(self.model, "watched"):
            raise InputError("an attack on a detector needs one: choose detector=lda, or another attack.")
        return self.model.watched(u * self.width + self.low, self._lengths(u))

    def _lengths(self, u: Tensor) -> Tensor | None:
        return None if self.length is None else self.length.expand(len(u))


@contextlib.contextmanager
def among(model: nn.Module, rows: Tensor):
    """A block in which a method passes only these samples, numbers or a mask [B], through the model it was given."""
    lengths = model.length if isinstance(model, _Boxed) else None
    if lengths is None or lengths.dim() == 0:  # nothing goes by them, or all have the same
        yield
        return
    model.length = lengths[rows]
    try:
        yield
    finally:
        model.length = lengths


def _chunks(
    model: nn.Module, x: Tensor, lengths: Tensor | None, size: int, mixed: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows of x that are attacked together, at most so many, and how many of their frames are real if that counts.

    Lengths are one for all of these rows, or where they may be `mixed` one for each: then the shortest come first, as a
    network's work goes by the longest.
    """
    if lengths is None or not takes_lengths(type(model)):
        yield from ((rows, None) for rows in torch.arange(len(x), device=x.device).split(size))
        return
    by_length = lengths.argsort(stable=True)
    if mixed:
        yield from ((rows, lengths[rows]) for rows in by_length.split(size))
        return
    for length in lengths.unique():
        yield from ((rows, length) for rows in by_length[lengths[by_length] == length].split(size))


@contextlib.contextmanager
def undisturbed(model: nn.Module, device: torch.device, seed: int):
    """A block in which the model is in eval mode and frozen, and torch's generators start from `seed`.

    Afterwards every module's mode, every parameter's requires_grad and the generators of the CPU and `device` are as
    before. Nothing writes to a parameter's `.grad` in between: frozen, it gets none.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch_seeded(seed, device):
        try:
            model.eval().requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
