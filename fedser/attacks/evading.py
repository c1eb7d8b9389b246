"""An attack that knows of a detector: misclassified is not enough, the example must also pass unnoticed.

>>> Evading(watched, eps=0.05, steps=50)(x, y)
"""

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped, margin
from fedser.attacks.mifgsm import over_mean_size
from fedser.config.schema import Count, Fraction, NonNegative, Share


class Evading(Attack):
    """Ascends tanh(best other logit − true logit) − weight · softplus(suspicion), by the sign of a momentum.

    Carlini & Wagner 2017 ("Adversarial examples are not easily detected", §3): a detector is worth what it is worth
    against an attack whose loss has it in it. Suspicion is how far the detector's score lies above its threshold, in
    standard deviations of clean scores. tanh lets go of what is misclassified by far and softplus of what is far below
    the threshold, so that the gradient goes to what is still wanting. Momentum and steps are `EOTMargin`'s.

    Of each sample's iterates the best is kept: misclassified and unnoticed before misclassified before the rest, and
    among these the one where the objective is highest.

    model: one with a method `watched`: x → logits, suspicion (`detectors.Watched`).
    eps: how far a cell moves, in the units of x.
    first: the first step, as a share of eps.
    decay: the share of the momentum that stays from step to step.
    weight: what suspicion counts beside misclassification.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(
        self,
        model,
        eps: NonNegative = 0.05,
        steps: Count = 50,
        first: Fraction = 0.5,
        decay: Share = 0.75,
        weight: NonNegative = 1.0,
        clip=None,
    ):
        super().__init__("Evading", model)
        self.eps = eps
        self.steps = steps
        self.first = first
        self.decay = decay
        self.weight = weight
        self.clip = clip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        x = images.detach()
        x_adv, momentum, best = x, torch.zeros_like(x), _Best(x)
        for step in range(self.steps):
            momentum = self._direction(x_adv, labels, best) + self.decay * momentum
            size = self.first * self.eps * (1 + math.cos(math.pi * step / self.steps)) / 2
            x_adv = x + (x_adv + size * momentum.sign() - x).clamp(-self.eps, self.eps)
            x_adv = clipped(x_adv, self.clip)
        with torch.no_grad():
            best.take(x_adv, *self._judged(x_adv, labels))
        return best.x

    def _direction(self, x: Tensor, labels: Tensor, best: "_Best") -> Tensor:
        """The objective's gradient over its mean size per sample, 0 where it vanishes; `best` is shown what it saw."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            rank, objective = self._judged(x, labels)
            (gradient,) = torch.autograd.grad(objective.sum(), x)
        best.take(x.detach(), rank, objective.detach())
        return over_mean_size(gradient)

    def _judged(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Per sample [B] how far it is (2: misclassified and unnoticed, 1: misclassified, 0) and the objective."""
        scores, suspicion = self.model.watched(x)
        fooled = -margin(scores, labels)
        rank = (fooled > 0) * (1 + (suspicion < 0).long())
        return rank, fooled.tanh() - self.weight * functional.softplus(suspicion)


class _Best:
    """Of each sample the best iterate so far."""

    def __init__(self, x: Tensor):
        self.x = x.clone()
        self.rank = torch.full((len(x),), -1, device=x.device)
        self.objective = torch.full((len(x),), -torch.inf, device=x.device)

    def take(self, x: Tensor, rank: Tensor, objective: Tensor) -> None:
        """Looks at an iterate x [B, ...] of this rank [B] and objective [B]."""
        better = (rank > self.rank) | ((rank == self.rank) & (objective > self.objective))
        self.x[better] = x[better]
        self.rank = torch.where(better, rank, self.rank)
        self.objective = torch.where(better, objective.to(self.objective.dtype), self.objective)
