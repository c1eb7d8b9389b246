"""An attack that knows of a detector: misclassified is not enough, the example must also pass unnoticed.

>>> Evading(watched, eps=0.05, steps=50)(x, y)
"""

import torch
from torch import Tensor

from fedser.attacks.adversary import margin
from fedser.attacks.eot_margin import EOTMargin
from fedser.attacks.mifgsm import over_mean_size
from fedser.config.schema import Count, Fraction, NonNegative, Share

LEEWAY = 0.5  # standard deviations of clean scores below the threshold


class Evading(EOTMargin):
    """Ascends tanh(best other logit − true logit) − weight · max(suspicion + ½, 0), in the steps of `EOTMargin`.

    Carlini & Wagner 2017 ("Adversarial examples are not easily detected", §3): a detector is worth what it is worth
    against an attack whose loss has it in it. Suspicion is how far the detector's score lies above its threshold, in
    standard deviations of clean scores. Whatever is misclassified by far or clearly unnoticed is let go of, so that the
    gradient goes to what is still wanting; a softplus never lets go, and loses examples that way (docs/detector.md).

    Of each sample's iterates the best is kept: misclassified and unnoticed before misclassified before the rest, and
    among these the one where the objective is highest.

    model: one with a method `watched`: x → logits, suspicion (`detectors.detector.Watched`).
    weight: what suspicion counts beside misclassification. The others are `EOTMargin`'s.
    """

    def __init__(
        self,
        model,
        weight: NonNegative = 1.0,
        eps: NonNegative = 0.05,
        steps: Count = 50,
        first: Fraction = 0.5,
        decay: Share = 0.75,
        clip=None,
    ):
        super().__init__(model, eps, steps, first, decay, clip)
        self.weight = weight

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        self._best = _Best(images.detach())
        last = super().forward(images, labels)
        with torch.no_grad():
            self._best.take(last, *self._judged(last, labels))
        return self._best.x

    def _direction(self, x: Tensor, labels: Tensor) -> Tensor:
        """The objective's gradient over its mean size per sample; 0 where it vanishes."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            rank, objective = self._judged(x, labels)
            (gradient,) = torch.autograd.grad(objective.sum(), x)
        self._best.take(x.detach(), rank, objective.detach())
        return over_mean_size(gradient)

    def _judged(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Per sample [B] how far it is (2: misclassified and unnoticed, 1: misclassified, 0) and the objective."""
        logits, suspicion = self.model.watched(x)
        fooled = -margin(logits, labels)
        rank = (fooled > 0) * (1 + (suspicion < 0).long())
        return rank, fooled.tanh() - self.weight * (suspicion + LEEWAY).relu()


class _Best:
    """Of each sample the best iterate so far."""

    def __init__(self, x: Tensor):
        self.x = x.clone()
        self.rank = torch.full((len(x),), -1, device=x.device)
        self.objective = x.new_full((len(x),), -torch.inf)

    def take(self, x: Tensor, rank: Tensor, objective: Tensor) -> None:
        """Looks at an iterate x [B, ...] of this rank [B] and objective [B]."""
        better = (rank > self.rank) | ((rank == self.rank) & (objective > self.objective))
        self.x[better], self.rank[better] = x[better], rank[better]
        self.objective[better] = objective[better].to(x.dtype)
