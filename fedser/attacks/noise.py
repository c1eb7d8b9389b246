"""Noise of the same size as an attack: what a change does that knows nothing of the model.

>>> Noise(model, eps=0.05)(x)
"""

import torch
from torch import Tensor
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped
from fedser.config.schema import NonNegative


class Noise(Attack):
    """A random sign times eps in every cell: the control that a gradient's signs have to beat.

    The same on every device for the same state of the CPU's generator.

    eps: how far each cell moves, in the units of x.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    knowledge = "no knowledge"

    def __init__(self, model, eps: NonNegative = 8 / 255, clip=None):
        super().__init__("Noise", model)
        self.eps = eps
        self.clip = clip

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B, ...] with every cell moved by +eps or -eps; labels mean nothing."""
        signs = torch.where(torch.rand(images.shape) < 0.5, 1, -1).to(images)
        x_adv = images.detach() + self.eps * signs
        return clipped(x_adv, self.clip)
