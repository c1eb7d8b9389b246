"""Neural networks: x [B, 1, T, F] in, logits [B, classes] out, any input size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution that keeps the input's size, batch norm, ReLU.

    With its batch norm in eval mode, scale and shift are folded into the convolution: the same function up to
    rounding, without the two passes over the activations that batch norm and its backward take. Attacks and
    evaluation run in eval mode (DeepFool on CNN-4, one thread: 0.9 of the time).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool, bn_momentum: float, bn_eps: float):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(outputs, bn_eps, bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        if norm.training:
            return F.relu(norm(conv(x)))
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        centre = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        return F.relu(F.conv2d(x, weight, norm.bias - centre * scale, padding=conv.padding))


def channels_last(x: Tensor) -> Tensor:
    """x [B, 1, T, F] in the layout that convolutions on a CPU are fastest in, and that they pass on to the next.

    One thread, CNN-4 of width 8: 0.7 of the time for a training step of 8, 0.5 for a forward pass, 0.6 for attacks.
    Parameters keep their layout, and so does what is saved and sent of them.
    """
    return x.to(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def halve(x: Tensor) -> Tensor:
    """2×2 max-pooling that leaves an axis of length 1 alone, so that small inputs do not collapse to nothing.

    x [B, C, T, F] -> [B, C, max(T // 2, 1), max(F // 2, 1)]. A ceiling instead of the floor would spare small inputs
    too, but give 373 frames another length than the paper's networks have.
    """
    return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
