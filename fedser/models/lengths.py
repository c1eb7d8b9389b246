"""How many frames of each input are real: networks that want to know take `forward(x, lengths)`, others do without.

Inputs x [B, 1, T, F] are as long as `features.frames`; of shorter clips the frames after the first `lengths` [B] are
repetitions.
"""

import functools
import inspect

import torch
from torch import Tensor, nn


@functools.cache  # looked at in every step of every attack
def takes_lengths(kind: type[nn.Module]) -> bool:
    """Whether the `forward` of this kind of network has the argument `lengths`."""
    return "lengths" in inspect.signature(kind.forward).parameters


def logits(model: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The model's logits [B, classes] of x [B, 1, T, F] with so many real frames [B]; None: all that there are."""
    if not takes_lengths(type(model)):
        return model(x)
    return model(x, torch.full((len(x),), x.shape[2], device=x.device) if lengths is None else lengths)
