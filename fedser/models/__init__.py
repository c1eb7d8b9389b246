"""Neural networks: x [B, 1, T, F] in, logits [B, classes] out, any input size."""

import torch.nn.functional as F
from torch import Tensor


def halve(x: Tensor) -> Tensor:
    """2×2 max-pooling that leaves an axis of length 1 alone, so that small inputs do not collapse to nothing.

    x [B, C, T, F] -> [B, C, max(T // 2, 1), max(F // 2, 1)]. A ceiling instead of the floor would spare small inputs
    too, but give 373 frames another length than the paper's networks have.
    """
    return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
