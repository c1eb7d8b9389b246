"""How many frames of each input are real: networks that want to know take `forward(x, lengths)`, others do without.

Inputs x are [B, C, T, F]. Log-Mels have C = 1 and are as long as `features.frames`; of shorter clips the frames after
the first `lengths` [B] are repetitions. Waveforms [B, 1, samples, 1] and the hidden states of a network for speech
[B, layers, frames, width] are as long as the longest, with zeros behind.
"""

import functools
import inspect

import torch
from torch import Tensor, nn


def as_inputs(frames: Tensor) -> Tensor:
    """Features [n, T, F], or [n, T, C, F], as a network's inputs [n, C, T, F]."""
    return frames.unsqueeze(1) if frames.dim() == 3 else frames.transpose(1, 2)


@functools.cache  # looked at in every step of every attack
def takes_lengths(kind: type[nn.Module]) -> bool:
    """Whether the `forward` of this kind of network has the argument `lengths`."""
    return "lengths" in inspect.signature(kind.forward).parameters


def logits(model: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The model's logits [B, classes] of x [B, 1, T, F] with so many real frames [B]; None: all that there are."""
    if not takes_lengths(type(model)):
        return model(x)
    return model(x, torch.full((len(x),), x.shape[2], device=x.device) if lengths is None else lengths)
