"""MI-FGSM: the sign of a momentum of gradients, which survives a step at which the gradient vanishes.

>>> MIFGSM(model, eps=0.05, alpha=0.0125, steps=10)(x, y)
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped
from fedser.config.schema import Count, NonNegative, Positive


class MIFGSM(Attack):
    """Steps along the sign of accumulated gradients, each divided by its mean size (Dong et al., CVPR 2018, Alg. 1).

    The iterates are torchattacks', bit for bit. Theirs divides by the mean size as it is: where a sample's gradient
    once vanishes its momentum is not a number, and it stays where it is for good. Here it goes on along what it has.

    eps: how far a cell moves, in the units of x.
    alpha: the step.
    decay: the share of the momentum that stays from step to step (μ of Alg. 1).
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(
        self,
        model,
        eps: NonNegative = 8 / 255,
        alpha: Positive | None = 2 / 255,
        steps: Count = 10,
        decay: NonNegative = 1.0,
        clip=None,
    ):
        super().__init__("MIFGSM", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.decay = decay
        self.clip = clip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        x = images.detach()
        x_adv, momentum = x, torch.zeros_like(x)
        for _ in range(self.steps):
            momentum = self._direction(x_adv, labels) + momentum * self.decay
            x_adv = x_adv + self.alpha * momentum.sign()
            x_adv = clipped(x + (x_adv - x).clamp(-self.eps, self.eps), self.clip)
        return x_adv

    def _direction(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss's gradient over its mean size per sample; 0 where it vanishes."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(functional.cross_entropy(self.get_logits(x), labels), x)
        return over_mean_size(gradient)


def over_mean_size(gradient: Tensor) -> Tensor:
    """A gradient [B, ...] over its mean size per sample, as a momentum takes it; 0 where it vanishes."""
    size = gradient.abs().mean(tuple(range(1, gradient.dim())), keepdim=True)
    return torch.where(size > 0, gradient / size, 0)
