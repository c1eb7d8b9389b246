"""FGSM in one pass: the labels to lead away from can come from the very forward pass that its gradient needs.

>>> FGSM(model, eps=0.05)(x, None)
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped
from fedser.config.schema import NonNegative


class FGSM(Attack):
    """One step of eps per cell along the sign of the loss's gradient (Goodfellow et al. 2015, §4).

    Called with x [B, ...] and labels [B], or None for the model's own predictions as in Chang et al. 2022's code; a
    caller who asks the model himself pays for a forward pass of its own, a third of the attack. Gradients are taken
    with respect to x alone.

    eps: the step, in the units of x.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(self, model, eps: NonNegative = 8 / 255, clip=None):
        super().__init__("FGSM", model)
        self.eps = eps
        self.clip = clip

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_adv of x [B, ...] and labels [B], or None for the model's own predictions; same shape, detached."""
        x = images.detach().requires_grad_()
        logits = self.get_logits(x)
        labels = logits.detach().argmax(1) if labels is None else labels
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels), x)
        x_adv = x.detach() + self.eps * gradient.sign()
        return clipped(x_adv, self.clip)
