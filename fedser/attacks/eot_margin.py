"""The margin through every draw of a randomisation: what is left of it falls draw by draw, not in the mean of logits.

>>> EOTMargin(Defended(model, randomise, draws=20), eps=0.05, steps=30)(x, y)
"""

import math

import torch
from torch import Tensor
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped, each_draw, margin
from fedser.attacks.mifgsm import over_mean_size
from fedser.config.schema import Count, Fraction, NonNegative, Share


class EOTMargin(Attack):
    """Ascends the mean over draws of tanh(best other logit − true logit), by the sign of a momentum of gradients.

    The cross-entropy of mean logits, which `Defended` offers to every attack, is led by the draws that are fooled or
    right by far; tanh lets go of both, so that the gradient goes to draws near their boundary. The momentum (Dong et
    al. 2018) evens out the noise of the draws, the step falls to 0 with half a cosine.

    eps: how far a cell moves, in the units of x.
    first: the first step, as a share of eps.
    decay: the share of the momentum that stays from step to step.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(
        self,
        model,
        eps: NonNegative = 0.05,
        steps: Count = 30,
        first: Fraction = 0.5,
        decay: Share = 0.75,
        clip=None,
    ):
        super().__init__("EOTMargin", model)
        self.eps = eps
        self.steps = steps
        self.first = first
        self.decay = decay
        self.clip = clip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        x = images.detach()
        x_adv, momentum = x, torch.zeros_like(x)
        for step in range(self.steps):
            momentum = self._direction(x_adv, labels) + self.decay * momentum
            size = self.first * self.eps * (1 + math.cos(math.pi * step / self.steps)) / 2
            x_adv = x + (x_adv + size * momentum.sign() - x).clamp(-self.eps, self.eps)
            x_adv = clipped(x_adv, self.clip)
        return x_adv

    def _direction(self, x: Tensor, labels: Tensor) -> Tensor:
        """The objective's gradient over its mean size per sample; 0 where it vanishes."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            scores = each_draw(self.model, x)
            each = labels.repeat_interleave(scores.shape[1])
            fooled = -margin(scores.flatten(0, 1), each).tanh().view(scores.shape[:2])
            (gradient,) = torch.autograd.grad(fooled.mean(1).sum(), x)
        return over_mean_size(gradient)
