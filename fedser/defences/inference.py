"""How a defence at inference is applied: to inputs, and to what is known of their lengths."""

import inspect

import torch
from torch import Tensor, nn


def apply(
    defence: nn.Module, x: Tensor, lengths: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor | None]:
    """One draw of the defence for each x [B, 1, T, F] → inputs [B, 1, T′, F′] and their real frames [B].

    A defence whose `forward` has no argument `lengths` leaves them as they are.
    """
    if lengths is None or "lengths" not in inspect.signature(defence.forward).parameters:
        return defence(x, generator=generator), lengths
    return defence(x, generator=generator, lengths=lengths)
