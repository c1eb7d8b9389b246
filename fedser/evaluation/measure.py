"""Conditions × attacks → predictions → confusion matrices → UAR.

A condition is what a model is tested on; the first four are those of Chang et al. 2022, Table 3:
`original` and `adversarial/<attack>`: without randomisation at inference; `randomised`: with it;
`randomised_adversarial/<attack>`: with it, but examples are made without it, by an oblivious attacker;
`adaptive/<attack>`: with it, and the attacker knows: examples are made on many draws of it and tested on fresh ones.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedser.attacks import undisturbed
from fedser.config.protocol import Condition, Protocol
from fedser.defences import inference
from fedser.errors import RunError
from fedser.models.lengths import logits
from fedser.randomness import derive, generator

MEASURES = ("linf", "l2", "rms", "snr")


@dataclass(frozen=True)
class Measured:
    """What became of the n test utterances of one client.

    predictions: class per condition, [draws, n]; one draw without randomisation.
    examples: per set of adversarial examples `linf`, `l2`, `rms` (in the units of the input) and `snr` (dB), each [n],
        and `seconds` [1]; with `Protocol.gradients` also `flat` [n], 1 where the loss has no gradient to go by.
    shown: one utterance, the first that is classified correctly: `x` [frames, mels] and the class
        `predicted/original`, and per set `delta/<set>` and the class `predicted/<set>`.
    """

    predictions: dict[str, Tensor]
    examples: dict[str, dict[str, Tensor]]
    shown: dict[str, Tensor]


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
) -> Measured:
    """Attacks and classifies one client's test set x [n, 1, frames, mels], y [n] in every condition of the protocol.

    `attacks` maps names to adversaries, `randomise` is the inference-time defence or None, `lengths` [n] are the real
    frames of each input. Every draw derives from `seed` and its purpose, so that conditions do not disturb each other.
    """
    predictions: dict[str, Tensor] = {}
    examples: dict[str, dict[str, Tensor]] = {}
    shown: dict[str, Tensor] = {}
    vanished: dict[nn.Module | None, Tensor] = {}

    def classify(inputs: Tensor, conditions: list[Condition]) -> None:
        for condition in conditions:
            draws = protocol.draws if condition.randomised else 1
            versions = (
                inference.apply(randomise, inputs, lengths, generator(seed, "randomise", condition.name, draw))
                if condition.randomised
                else (inputs, lengths)
                for draw in range(draws)
            )
            predictions[condition.name] = torch.stack([predict(model, x, batch_size, real) for x, real in versions])

    # Attacks need to know what is right without them, whether or not that is to be reported.
    original = Condition("original", None, False)
    classify(x, [original, *(c for c in protocol.conditions if c.examples is None and c != original)])
    first = int((predictions["original"][0] == y.cpu()).float().argmax()) if len(y) else 0
    if len(x):
        shown |= {"x": x[first, 0].cpu(), "predicted/original": predictions["original"][0, first]}
    for name in protocol.sets:
        attack = attacks[name.removeprefix("adaptive/")]
        knows = randomise if name.startswith("adaptive/") else None
        began = time.perf_counter()
        known = {"predictions": predictions["original"][0], "lengths": lengths}
        x_adv = _attacked(attack, model, x, y, known, knows, batch_size, derive(seed, name))
        examples[name] = _lengths(x, x_adv) | {"seconds": torch.tensor([time.perf_counter() - began])}
        if protocol.gradients:
            if knows not in vanished:  # the same for all attackers who know as much
                vanished[knows] = flat(model, x, y, knows, batch_size, derive(seed, "gradient"), lengths)
            examples[name]["flat"] = vanished[knows]
        classify(x_adv, [condition for condition in protocol.conditions if condition.examples == name])
        if len(x):
            condition = name if name.startswith("adaptive/") else f"adversarial/{name}"
            shown |= {f"delta/{name}": (x_adv - x)[first, 0].cpu()}
            shown |= {f"predicted/{name}": predictions[condition][0, first]}
    return Measured({condition.name: predictions[condition.name] for condition in protocol.conditions}, examples, shown)


def _attacked(attack, model, x, y, known: dict, randomise, batch_size, seed) -> Tensor:
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
    return {name: value.cpu() for name, value in zip(MEASURES, (linf, l2, rms, snr), strict=True)}


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
