"""What a network computes: the floating-point operations of one pass."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedser.config import eager
from fedser.models.lengths import logits


def flops(model: nn.Module, x: Tensor, lengths: Tensor) -> int:
    """Of the logits of x [B, C, T, F] with so many real steps [B], in eval mode: convolutions and matrix products, with
    those of attention; a multiplication and an addition are two. Model and generators stay as they are."""
    model = copy.deepcopy(model).eval()
    with torch.random.fork_rng([]), torch.no_grad(), _unfused(), FlopCounterMode(display=False) as counter:
        eager.method(type(counter.mode).__torch_dispatch__)
        logits(model, x, lengths)
    return counter.get_total_flops()


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """A block in which attention is matrix products: torch's counter knows nothing of the fused ones on a CPU."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
