"""What a network makes of an input before its last layer: what its own `embed`, called by its `forward`, gives."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedser.errors import InputError
from fedser.models.lengths import logits


@contextlib.contextmanager
def embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """A block in which what the model's `embed` gives to its `forward` is kept, one tensor a pass.

    Logits and embedding then come from one pass, with one dropout and one look of batch norm at the batch.
    """
    embed, kept = model.embed, []

    def keeping(*arguments, **more) -> Tensor:
        kept.append(embed(*arguments, **more))
        return kept[-1]

    model.embed = keeping
    try:
        yield kept
    finally:
        del model.embed


def described(model: nn.Module, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The logits [B, K] and the embeddings [B, D] of x [B, 1, T, F] with so many real frames [B], float32."""
    with embeddings(model) as kept:
        scores = logits(model, x, lengths)
    return scores.float(), kept[0].float().flatten(1)


def check_embed(model: nn.Module, x: Tensor, lengths: Tensor) -> None:
    """Raises InputError where the network has no `embed`, or does without it."""
    embed, name = getattr(model, "embed", None), type(model).__name__
    if not callable(embed) or isinstance(embed, nn.Module):
        raise InputError(f"{name} has no method `embed` whose results could be compared: choose another model.")
    with torch.no_grad(), embeddings(model) as kept:
        logits(model, x, lengths)
    if len(kept) != 1 or kept[0].shape[:1] != x.shape[:1]:
        raise InputError(f"the forward of {name} must call its `embed` once, which gives a vector for each input.")
