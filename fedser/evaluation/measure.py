"""Conditions × attacks → predictions → confusion matrices → UAR.

A condition is what a model is tested on; the first four are those of Chang et al. 2022, Table 3:
`original` and `adversarial/<attack>`: without randomisation at inference; `randomised`: with it;
`randomised_adversarial/<attack>`: with it, but examples are made without it, by an oblivious attacker;
`adaptive/<attack>`: with it, and the attacker knows: examples are made on many draws of it and tested on fresh ones.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedser.attacks import undisturbed
from fedser.attacks.waveform import Listening, Spoken, snr
from fedser.config.protocol import Condition, Protocol
from fedser.defences import inference
from fedser.detectors.detector import Detector, Watched
from fedser.errors import RunError
from fedser.evaluation import detection
from fedser.features.front_end import on_waveforms
from fedser.models.lengths import logits
from fedser.randomness import derive, generator


@dataclass(frozen=True)
class Measured:
    """What became of the n test utterances of one client.

    predictions: class per condition, [draws, n]; one draw without randomisation.
    examples: per set of adversarial examples `linf`, `l2`, `rms` (in the units of the input) and `snr` (dB), each [n],
        and `seconds` [1]; with `Protocol.gradients` also `flat` [n], 1 where the loss has no gradient to go by.
    shown: one utterance, the first that is classified correctly: `x` [frames, mels] and the class
        `predicted/original`, and per set `delta/<set>` and the class `predicted/<set>`.
    scores: with a detector, its suspicion and that of an unsure model [2, n] (`detection.scores`) per condition without
        randomisation.
    """

    predictions: dict[str, Tensor]
    examples: dict[str, dict[str, Tensor]]
    shown: dict[str, Tensor]
    scores: dict[str, Tensor] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    protocol: Protocol,
    *,
    attacks,
    randomise,
    batch_size: int,
    seed: int,
    lengths: Tensor | None = None,
    detector: Detector | None = None,
    spoken: Spoken | None = None,
) -> Measured:
    """Attacks and classifies one client's test set x [n, 1, frames, mels], y [n] in every condition of the protocol.

    `attacks` maps names to adversaries, `randomise` is the inference-time defence or None, `lengths` [n] are the real
    frames of each input, `detector` tells adversarial ones or is None, `spoken` are the waveforms for attacks on these.
    Every draw derives from `seed` and its purpose, so that conditions do not disturb each other.
    """
    evaluation = _Evaluation(model, x, y, protocol, attacks, randomise, batch_size, seed, lengths, detector, spoken)
    evaluation.on_original_data()
    for name in protocol.sets:
        evaluation.under(name)
    return evaluation.measured()


@dataclass
class _Evaluation:
    """One under way: its arguments, and what there is so far."""

    model: nn.Module
    x: Tensor
    y: Tensor
    protocol: Protocol
    attacks: dict
    randomise: nn.Module | None
    batch_size: int
    seed: int
    lengths: Tensor | None
    detector: Detector | None
    spoken: Spoken | None = None
    predictions: dict[str, Tensor] = field(default_factory=dict)
    examples: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shown: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    def on_original_data(self) -> None:
        """Classifies the original data, which attacks need even where that is not to be reported."""
        original = Condition("original", None, False)
        self._classify(self.x, [original, *(c for c in self._conditions(None) if c != original)])
        if len(self.x):
            self.shown |= {"x": self.x[self._first, 0].cpu(), "predicted/original": self._predicted("original")}

    def under(self, name: str) -> None:
        """Makes a set of adversarial examples, measures and classifies it."""
        adaptive = name.startswith("adaptive/")
        knows = self.randomise if adaptive else None
        attack, seed = self.attacks[name.removeprefix("adaptive/")], derive(self.seed, name)
        began = time.perf_counter()
        x_adv, more = self._made(attack, knows, seed)
        seconds = torch.tensor([time.perf_counter() - began])
        self.examples[name] = _lengths(self.x, x_adv) | more | {"seconds": seconds}
        if self.protocol.gradients:
            seed = derive(self.seed, "gradient")
            self.examples[name]["flat"] = flat(self.model, self.x, self.y, knows, self.batch_size, seed, self.lengths)
        self._classify(x_adv, self._conditions(name))
        if len(self.x):
            self.examples[name] |= self._success(name if adaptive else f"adversarial/{name}")
            self.shown[f"delta/{name}"] = (x_adv - self.x)[self._first, 0].cpu()
            self.shown[f"predicted/{name}"] = self._predicted(name if adaptive else f"adversarial/{name}")

    def _made(self, attack, knows: nn.Module | None, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Adversarial inputs; of an attack on waveforms what these make, and how loud it is there, `loud` (dB) [n]."""
        known = {"predictions": self.predictions["original"][0], "lengths": self.lengths}
        if not on_waveforms(attack):
            victim = Watched(self.model, self.detector) if getattr(attack, "evades", False) else self.model
            return attacked(attack, victim, self.x, self.y, known, knows, self.batch_size, seed), {}
        spoken = self.spoken or Spoken(self.x, self.lengths, lambda x, lengths: (x, lengths))
        victim = Listening(self.model, spoken.front)
        known["lengths"] = spoken.lengths
        made = attacked(attack, victim, spoken.x, self.y, known, knows, self.batch_size, seed)
        loud = snr(spoken.x, made, spoken.lengths).nan_to_num(posinf=0).float()  # 0: unmoved
        return spoken.inputs(made, self.batch_size) if len(made) else self.x.clone(), {"loud": loud.cpu()}

    def measured(self) -> Measured:
        """What was asked for."""
        predictions = {condition.name: self.predictions[condition.name] for condition in self.protocol.conditions}
        scores = {name: part for name, part in self.scores.items() if name in predictions}
        return Measured(predictions, self.examples, self.shown, scores)

    def _conditions(self, examples: str | None) -> list[Condition]:
        return [condition for condition in self.protocol.conditions if condition.examples == examples]

    @property
    def _first(self) -> int:
        """The first utterance that is classified correctly."""
        return int((self.predictions["original"][0] == self.y.cpu()).float().argmax())

    def _success(self, condition: str) -> dict[str, Tensor]:
        """How many utterances were right at first, and how many of these are wrong under attack, a mean over draws."""
        truth = self.y.cpu()
        right = self.predictions["original"][0] == truth
        fooled = (right & (self.predictions[condition] != truth)).float().mean(0).sum()
        return {"right": right.sum()[None], "fooled": fooled[None]}

    def _predicted(self, condition: str) -> Tensor:
        return self.predictions[condition][0, self._first]

    def _classify(self, inputs: Tensor, conditions: list[Condition]) -> None:
        for condition in conditions:
            versions = self._versions(inputs, condition)
            predicted = [predict(self.model, version, self.batch_size, real) for version, real in versions]
            self.predictions[condition.name] = torch.stack(predicted)
            if self.detector and not condition.randomised:
                watched = Watched(self.model, self.detector)
                self.scores[condition.name] = detection.scores(watched, inputs, self.lengths, self.batch_size)

    def _versions(self, inputs: Tensor, condition: Condition) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The inputs and their lengths as they are, or as many draws of the randomisation."""
        if not condition.randomised:
            yield inputs, self.lengths
            return
        for draw in range(self.protocol.draws):
            draws = generator(self.seed, "randomise", condition.name, draw)
            yield inference.apply(self.randomise, inputs, self.lengths, draws)


def attacked(attack, model, x, y, known: dict, randomise, batch_size, seed) -> Tensor:
    """The adversarial examples of x, made batch by batch; `known` [n] of each sample is handed on to the attack."""
    made = []
    for number, rows in enumerate(torch.arange(len(x), device=x.device).split(batch_size)):
        more = {key: value.to(x.device)[rows] for key, value in known.items() if value is not None}
        made.append(attack(model, x[rows], y[rows], derive(seed, number), randomise=randomise, **more))
    return torch.cat(made) if len(x) else x.clone()


def _lengths(x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
    """How far each sample was moved: largest cell, L2, RMS of the cells, signal-to-noise ratio in dB (0 if unmoved)."""
    change, signal = (x_adv - x).flatten(1), x.flatten(1).norm(dim=1)
    l2 = change.norm(dim=1)
    linf = change.abs().amax(1) if len(x) else l2
    rms = l2 / max(change.shape[1], 1) ** 0.5
    snr = torch.where(l2 > 0, 20 * torch.log10(signal / l2), 0.0)  # JSON knows no infinity
    return {"linf": linf.cpu(), "l2": l2.cpu(), "rms": rms.cpu(), "snr": snr.cpu()}


def flat(model: nn.Module, x: Tensor, y: Tensor, randomise, batch_size: int, seed: int, lengths=None) -> Tensor:
    """Per sample [n] 1.0 where the loss's gradient with respect to the input is all zero, else 0.0.

    Gradients that vanish are a sign of masking (Athalye et al. 2018, §3.1; Carlini et al. 2019, §3.1): white-box
    attacks then fail without the model being robust.
    """
    if not len(x):
        return torch.empty(0)
    found = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        with undisturbed(model, x.device, seed):
            inputs = x[rows].detach().clone().requires_grad_()
            real = None if lengths is None else lengths[rows]
            given = (inputs, real) if randomise is None else inference.apply(randomise, inputs, real)
            loss = functional.cross_entropy(logits(model, *given).float(), y[rows], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
        found.append((gradient.flatten(1).abs().amax(1) == 0).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int, lengths: Tensor | None = None) -> Tensor:
    """Predicted classes [n] of inputs [n, 1, frames, mels] with so many real frames [n], in eval mode; on the CPU.

    Raises RunError for logits that are NaN or infinite, which `argmax` would take for a class.
    """
    model.eval()
    if not len(x):
        return torch.empty(0, dtype=torch.long)
    real = [None] * len(x) if lengths is None else lengths.to(x.device).split(batch_size)
    return torch.cat([_classes(logits(model, *part)).cpu() for part in zip(x.split(batch_size), real, strict=False)])


def _classes(scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise RunError(
            "the model answers with logits that are NaN or infinite: its weights have grown too large. Evaluate an "
            "earlier round (fedser-evaluate RUN round=…), or train with a smaller client.lr; with "
            "evaluation.precision=bf16, see first whether fp32 does better."
        )
    return scores.argmax(dim=1)
