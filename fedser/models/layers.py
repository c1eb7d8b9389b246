"""Layers that the networks share. Networks: x [B, 1, T, F] in, logits [B, classes] out, any input size."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedser.models.fused import fused
from fedser.models.input_conv import conv2d

Norm = Literal["batch", "group", "layer"]
GROUP = 8  # channels of a group
PLAIN = ContextVar("plain", default=False)  # whether networks run vectorised, see `plainly`


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """A block in which networks keep to operations that `torch.func.vmap` can vectorise over several copies of them:
    no layout in memory of their own, no shape that follows from what is in a tensor. Whoever calls cuts inputs himself
    (`cut`, where a network has it)."""
    token = PLAIN.set(True)
    try:
        yield
    finally:
        PLAIN.reset(token)


class ConvNorm(nn.Module):
    """Convolution that keeps the input's size (or takes a part of it, by its stride), normalisation, ReLU; halved by
    2×2 max-pooling where `pool` says so.

    Pooling comes before the ReLU: the same to the bit, as both keep the order of values, with a quarter to rectify.
    With its batch norm in eval mode, scale and shift are folded into the convolution: the same function up to
    rounding, without the two passes over the activations that batch norm and its backward take. Attacks and
    evaluation run in eval mode (DeepFool on CNN-4, one thread: 0.9 of the time). In train mode what follows the
    convolution is one operation on a CPU (`fused`).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        bias: bool,
        bn_momentum: float = 0.1,
        bn_eps: float = 1e-5,
        norm: Norm = "batch",
        stride: int = 1,
        pool: bool = False,
    ):
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(outputs, bn_eps, bn_momentum) if norm == "batch" else group_norm(outputs, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, T, F] -> [B, outputs, T, F], or what stride and pooling leave of T and F."""
        if not self._folds:
            conv = self.conv
            x = conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding) if x.requires_grad else conv(x)
            if (whole := fused(self.norm, x, self.pool)) is not None:
                return whole
            x = self.norm(x)
        else:
            x = self._folded(x)
        return F.relu(halve(x) if self.pool else x)

    @property
    def _folds(self) -> bool:
        return isinstance(self.norm, nn.BatchNorm2d) and not self.norm.training

    def _folded(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        centre = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        return conv2d(x, weight, norm.bias - centre * scale, conv.stride, conv.padding)


def group_norm(channels: int, norm: Norm) -> nn.GroupNorm:
    """Normalisation without running statistics (Wu & He 2018): by groups of at least eight channels, or of all in one
    ("layer")."""
    return nn.GroupNorm(1 if norm == "layer" else max(1, channels // GROUP), channels)


class FrameNorm(nn.Module):
    """Normalises h [B, C, T] frame by frame, so that no frame's value depends on how long the clip is: over the
    frame's channels ("layer"), or over groups of them ("group"); or by batch norm."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels) if norm == "batch" else group_norm(channels, norm)

    def forward(self, h: Tensor) -> Tensor:
        if isinstance(self.norm, nn.BatchNorm1d):
            return self.norm(h)
        frames = h.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).view(frames.shape).transpose(1, 2)


def real_frames(lengths: Tensor, frames: int) -> Tensor:
    """1 where a frame is real, 0 behind: lengths [B] → [B, 1, frames]."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).float().unsqueeze(1)


def statistics(h: Tensor, real: Tensor) -> Tensor:
    """Mean and standard deviation over real frames (statistics pooling, Snyder et al. 2018).

    h [B, C, T], real [B, 1, T] → [B, 2 · C]. The variance has 1e-5 added, so that its root has a gradient.
    """
    count = real.sum(2).clamp(min=1)
    mean = (h * real).sum(2) / count
    variance = ((h - mean.unsqueeze(2)).square() * real).sum(2) / count
    return torch.cat([mean, (variance + 1e-5).sqrt()], 1)


def channels_last(x: Tensor) -> Tensor:
    """x [B, 1, T, F] in the layout that convolutions on a CPU are fastest in, and that they pass on to the next.

    One thread, CNN-4 of width 8: 0.7 of the time for a training step of 8, 0.5 for a forward pass, 0.6 for attacks.
    Parameters keep their layout, and so does what is saved and sent of them.
    """
    return x.to(memory_format=torch.channels_last) if x.device.type == "cpu" and not PLAIN.get() else x


def halve(x: Tensor) -> Tensor:
    """2×2 max-pooling that leaves an axis of length 1 alone, so that small inputs do not collapse to nothing.

    x [B, C, T, F] -> [B, C, max(T // 2, 1), max(F // 2, 1)]. A ceiling instead of the floor would spare small inputs
    too, but give 373 frames another length than the paper's networks have.
    """
    return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
