"""FGSM from a random start: the inner attack of fast adversarial training.

>>> RandomFGSM(model, eps=0.05)(x, y)
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped
from fedser.config.schema import NonNegative, Positive


class RandomFGSM(Attack):
    """A start drawn evenly within eps, one step along the sign of the loss's gradient there, back into the budget (Wong
    et al., ICLR 2020, Alg. 3).

    The same start on every device for the same state of the CPU's generator.

    eps: how far each cell moves, in the units of x.
    step: the step's length, in eps; 1.25 in the paper, which finds that longer ones fail.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(self, model, eps: NonNegative = 8 / 255, step: Positive = 1.25, clip=None):
        super().__init__("RandomFGSM", model)
        self.eps, self.step, self.clip = eps, step, clip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        x = images.detach()
        start = self.eps * (2 * torch.rand(x.shape) - 1).to(x)
        point = clipped(x + start, self.clip).requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(self.get_logits(point), labels), point)
        moved = point.detach() - x + self.step * self.eps * gradient.sign()
        return clipped(x + moved.clamp(-self.eps, self.eps), self.clip)
