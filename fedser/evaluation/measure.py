"""Conditions × attacks → predictions → confusion matrices → UAR.

A condition is what a model is tested on; the first four are those of Chang et al. 2022, Table 3:
`original`; `randomised`: the inference-time defence is worn; `adversarial/<attack>`: not worn;
`randomised_adversarial/<attack>`: worn, but examples are made on the undefended model, by an oblivious attacker;
`adaptive/<attack>`: worn and known, examples are made on the defended model and tested on fresh draws.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedser.attacks import undisturbed
from fedser.config.protocol import Agenda, Condition
from fedser.errors import RunError
from fedser.randomness import derive, generator

MEASURES = ("linf", "l2", "rms", "snr")


@dataclass(frozen=True)
class Measured:
    """What became of the n test utterances of one client.

    predictions: class per condition, [draws, n]; one draw where no randomisation is worn.
    examples: per set of adversarial examples `linf`, `l2`, `rms` (in the units of the input) and `snr` (dB), each [n],
        and `seconds` [1]; with `Agenda.gradients` also `flat` [n], 1 where the loss has no gradient to go by.
    shown: one utterance, the first that is classified correctly: `x` [frames, mels] and the class
        `predicted/original`, and per set `delta/<set>` and the class `predicted/<set>`.
    """

    predictions: dict[str, Tensor]
    examples: dict[str, dict[str, Tensor]]
    shown: dict[str, Tensor]


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, agenda: Agenda, *, attacks, randomise, batch_size: int, seed: int
) -> Measured:
    """Attacks and classifies one client's test set x [n, 1, frames, mels], y [n] in every condition of the agenda.

    `attacks` maps names to adversaries, `randomise` is the inference-time defence or None; every draw derives from
    `seed` and its purpose, so that conditions do not disturb each other.
    """
    predictions: dict[str, Tensor] = {}
    examples: dict[str, dict[str, Tensor]] = {}
    shown: dict[str, Tensor] = {}
    vanished: dict[nn.Module | None, Tensor] = {}

    def classify(inputs: Tensor, conditions: list[Condition]) -> None:
        for condition in conditions:
            draws = agenda.draws if condition.worn else 1
            versions = (
                randomise(inputs, generator(seed, "randomise", condition.name, draw)) if condition.worn else inputs
                for draw in range(draws)
            )
            predictions[condition.name] = torch.stack([predict(model, version, batch_size) for version in versions])

    classify(x, [condition for condition in agenda.conditions if condition.examples is None])
    first = int((predictions["original"][0] == y.cpu()).float().argmax()) if len(y) else 0
    if len(x):
        shown |= {"x": x[first, 0].cpu(), "predicted/original": predictions["original"][0, first]}
    for name in agenda.sets:
        attack = attacks[name.removeprefix("adaptive/")]
        knows = randomise if name.startswith("adaptive/") else None
        began = time.perf_counter()
        x_adv = _attacked(attack, model, x, y, predictions["original"][0], knows, batch_size, derive(seed, name))
        examples[name] = _lengths(x, x_adv) | {"seconds": torch.tensor([time.perf_counter() - began])}
        if agenda.gradients:
            if knows not in vanished:  # the same for all attackers who know as much
                vanished[knows] = flat(model, x, y, knows, batch_size, derive(seed, "gradient"))
            examples[name]["flat"] = vanished[knows]
        classify(x_adv, [condition for condition in agenda.conditions if condition.examples == name])
        if len(x):
            unworn = name if name.startswith("adaptive/") else f"adversarial/{name}"
            shown |= {f"delta/{name}": (x_adv - x)[first, 0].cpu(), f"predicted/{name}": predictions[unworn][0, first]}
    return Measured({condition.name: predictions[condition.name] for condition in agenda.conditions}, examples, shown)


def _attacked(attack, model, x, y, predicted, randomise, batch_size, seed) -> Tensor:
    """The adversarial examples of x, made batch by batch."""
    batches = zip(x.split(batch_size), y.split(batch_size), predicted.to(x.device).split(batch_size), strict=True)
    made = [
        attack(model, inputs, labels, derive(seed, number), predictions=known, randomise=randomise)
        for number, (inputs, labels, known) in enumerate(batches)
    ]
    return torch.cat(made) if made else x.clone()


def _lengths(x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
    """How far each sample was moved: largest cell, L2, RMS of the cells, signal-to-noise ratio in dB (0 if unmoved)."""
    change, signal = (x_adv - x).flatten(1), x.flatten(1).norm(dim=1)
    l2 = change.norm(dim=1)
    linf = change.abs().amax(1) if len(x) else l2
    rms = l2 / max(change.shape[1], 1) ** 0.5
    snr = torch.where(l2 > 0, 20 * torch.log10(signal / l2), 0.0)  # JSON knows no infinity
    return {name: value.cpu() for name, value in zip(MEASURES, (linf, l2, rms, snr), strict=True)}


def flat(model: nn.Module, x: Tensor, y: Tensor, randomise, batch_size: int, seed: int) -> Tensor:
    """Per sample [n] 1.0 where the loss's gradient with respect to the input is all zero, else 0.0.

    Gradients that vanish are a sign of masking (Athalye et al. 2018, §3.1; Carlini et al. 2019, §3.1): white-box
    attacks then fail without the model being robust.
    """
    if not len(x):
        return torch.empty(0)
    found = []
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with undisturbed(model, x.device, seed):
            inputs = inputs.detach().clone().requires_grad_()
            logits = model(randomise(inputs) if randomise is not None else inputs)
            (gradient,) = torch.autograd.grad(functional.cross_entropy(logits.float(), labels, reduction="sum"), inputs)
        found.append((gradient.flatten(1).abs().amax(1) == 0).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Predicted classes [n] of inputs [n, 1, frames, mels], in eval mode; on the CPU.

    Raises RunError for logits that are NaN or infinite, which `argmax` would take for a class.
    """
    model.eval()
    if not len(x):
        return torch.empty(0, dtype=torch.long)
    return torch.cat([_classes(model(chunk)).cpu() for chunk in x.split(batch_size)])


def _classes(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise RunError(
            "the model answers with logits that are NaN or infinite: its weights have grown too large. Evaluate an "
            "earlier round (fedser-evaluate RUN round=…), or train with a smaller client.lr; with "
            "evaluation.precision=bf16, see first whether fp32 does better."
        )
    return logits.argmax(dim=1)
