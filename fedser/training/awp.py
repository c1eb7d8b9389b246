"""Adversarial weight perturbation (Wu et al., NeurIPS 2020, Eq. 8–10): a loss at the weights that are worst nearby.

Each layer's weights p (tensors of two or more axes; biases and normalisation stay) move along the gradient g of the
batch's loss by a fixed share of their own length, v = radius · ‖p‖ · g / ‖g‖, Euclidean norms. The loss is taken at
p + v, and its gradient, v held fixed, is that of p. `radius` is the paper's γ, 0.005 there.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedser.training.objective import Samples

TINY = 1e-20  # keeps a layer without a gradient where it is


def perturbed(loss: Callable[[nn.Module, Samples], Tensor], model: nn.Module, batch: Samples, radius: float) -> Tensor:
    """`loss(model, batch)` at the weights moved against it; the model itself keeps its weights.

    Batch norm's running statistics see one pass, that at the moved weights: the pass that finds the direction works on
    copies of them.
    """
    whole = Loss(loss, model)
    copies = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    weights = {name: p for name, p in whole.named_parameters() if p.dim() > 1 and p.requires_grad}
    value = functional_call(whole, copies, (batch,))
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    moved = {
        name: weight + _step(weight.detach(), gradient, radius)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
    }
    return functional_call(whole, moved, (batch,))


def _step(weight: Tensor, gradient: Tensor, radius: float) -> Tensor:
    return radius * weight.norm() * gradient / (gradient.norm() + TINY)


class Loss(nn.Module):
    """A loss as a module, so that `functional_call` reaches whatever of the model it uses."""

    def __init__(self, loss: Callable[[nn.Module, Samples], Tensor], model: nn.Module):
        super().__init__()
        self.loss, self.model = loss, model

    def forward(self, batch: Samples) -> Tensor:
        return self.loss(self.model, batch)
