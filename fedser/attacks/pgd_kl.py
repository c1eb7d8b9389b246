"""PGD away from the model's own answer: the inner attack of TRADES and of CalFAT.

>>> DivergencePGD(model, eps=0.05, alpha=0.0125, steps=10)(x)
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchattacks.attack import Attack

from fedser.attacks.adversary import clipped
from fedser.config.schema import Count, NonNegative, Positive


class DivergencePGD(Attack):
    """Steps along the sign of the gradient of KL(p(x) ‖ p(x′)), p = softmax of the logits (Zhang et al., ICML 2019,
    Alg. 1). It asks for no labels.

    The same start on every device for the same state of the CPU's generator.

    eps: how far each cell moves, in the units of x.
    alpha: the length of a step, in the units of x.
    start: the deviation of the normal noise that it starts from, in eps: at x itself the gradient is zero. The paper's
        is 0.001 for an eps of 0.031.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(
        self,
        model,
        eps: NonNegative = 8 / 255,
        alpha: Positive | None = 2 / 255,
        steps: Count = 10,
        start: Positive = 0.03,
        clip=None,
    ):
        super().__init__("DivergencePGD", model)
        self.eps, self.alpha, self.steps, self.start, self.clip = eps, alpha, steps, start, clip

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_adv of x [B, ...]; same shape, detached; labels mean nothing."""
        x = images.detach()
        with torch.no_grad():
            answer = self.get_logits(x).log_softmax(1)
        point = self._project(x + self.start * self.eps * torch.randn(x.shape).to(x), x)
        for _ in range(self.steps):
            point.requires_grad_()
            now = self.get_logits(point).log_softmax(1)
            (gradient,) = torch.autograd.grad(functional.kl_div(now, answer, reduction="sum", log_target=True), point)
            point = self._project(point.detach() + self.alpha * gradient.sign(), x)
        return point

    def _project(self, point: Tensor, x: Tensor) -> Tensor:
        return clipped(x + (point - x).clamp(-self.eps, self.eps), self.clip)
