"""Batch norm in train mode, 2×2 max-pooling and ReLU as one operation, on a CPU: PyTorch's numbers, to the bit.

PyTorch goes over a convolution's output nine times for these three, forwards and backwards; `kernels/norm.c` reads it
five times and writes its gradient, and remembers of a pooled cell which of its four inputs it was.
"""

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedser.models import kernels

LANES = 8  # channels come by so many
UPDATES = 16  # of running statistics that are compared
OPTIONS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}  # of the compiler
_I, _F, _D, _P = ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_void_p


def fused(norm: nn.Module, y: Tensor, pool: bool) -> Tensor | None:
    """ReLU(max-pool(norm(y))) of a convolution's output y [B, C, T, F]; None where PyTorch's own have to do it.

    They have to for other layers than batch norm in train mode, on a GPU, with several threads, for other numbers than
    float32 or, as autocast has them, bfloat16, and where no kernel gives their bits. In bfloat16 it is the float32
    kernel that reads and rounds on the way.
    """
    if not _suits(norm, y, pool) or (library := _kernel(y.shape[1], pool, y.dtype)) is None:
        return None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _NormPoolReLU.apply(y, norm.weight, norm.bias, norm, pool, library)


def _suits(norm: nn.Module, y: Tensor, pool: bool) -> bool:
    return (
        not torch._C._functorch.peek_interpreter_stack()  # under vmap only PyTorch's own are known
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and y.dtype in OPTIONS
        and norm.weight.dtype == norm.running_mean.dtype == torch.float32
        and y.device.type == "cpu"
        and y.shape[1] % LANES == 0
        and (not pool or min(y.shape[2:]) > 1)
        and y.numel() > y.shape[1]
        and y.is_contiguous(memory_format=torch.channels_last)
        and not y.is_contiguous()
        and torch.get_num_threads() == 1
    )


@functools.cache
def _kernel(channels: int, pool: bool, dtype: torch.dtype = torch.float32) -> "ctypes.CDLL | None":
    """The library that gives PyTorch's bits on this machine for so many channels; None where none does.

    In bfloat16 those of the library for float32, rounded.
    """
    reference = None if dtype == torch.float32 else _kernel(channels, pool)
    if dtype != torch.float32 and reference is None:
        return None
    for library in kernels.libraries("norm", *OPTIONS[dtype]):
        library.forward.argtypes = [_P] + 5 * [_I] + [_P, _P, _F, _F, _D] + 5 * [_P]
        library.backward.argtypes = 4 * [_P] + 5 * [_I] + 4 * [_P]
        library.forward.restype = library.backward.restype = None
        if all(_same(library, channels, pool, *shape, dtype, reference) for shape in ((2, 9, 7), (3, 33, 16))):
            return library
    return None


def _same(library, channels: int, pool: bool, batch: int, frames: int, mels: int, dtype, reference) -> bool:
    """Whether a library's numbers and gradients are PyTorch's, or those of a reference, on inputs with equal ones among
    them."""
    draw = torch.Generator().manual_seed(channels)
    results = []
    y = torch.randn(batch, channels, frames, mels, generator=draw) + 0.3
    y[:, :, : frames // 3] = 0.25
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=draw))
        norm.bias.copy_(torch.randn(channels, generator=draw))
    start, g = {key: value.clone() for key, value in norm.state_dict().items()}, None
    for own in (library, reference):
        norm.load_state_dict(start)
        kind = dtype if own is library else torch.float32
        x = y.to(dtype).to(kind, memory_format=torch.channels_last, copy=True).requires_grad_()

        def done(x, own=own):
            if own:
                return _NormPoolReLU.apply(x, norm.weight, norm.bias, norm, pool, own)
            out = norm(x)
            return F.relu(F.max_pool2d(out, 2) if pool else out)

        with torch.inference_mode(False), torch.enable_grad():
            out = done(x)
            g = torch.randn(out.shape, generator=draw).to(dtype) if g is None else g
            gx, *grads = torch.autograd.grad(out, (x, norm.weight, norm.bias), g.to(kind))
        for step in range(UPDATES):  # of few pixels: one rounding more is seen in one running variance of seven
            done((x.detach() * 2.0**step)[:, :, -2:, -2:].contiguous(memory_format=torch.channels_last))
        ends = [out.detach().to(dtype), gx.to(dtype)]
        results.append([*ends, *grads, norm.running_mean.clone(), norm.running_var.clone()])
    return all(torch.equal(one, other) for one, other in zip(*results, strict=True))


class _NormPoolReLU(torch.autograd.Function):
    """The operation; once differentiable."""

    @staticmethod
    def forward(ctx, y, weight, bias, norm, pool, library):
        """y [B, C, T, F] → [B, C, T // 2, F // 2], or as it is without pooling; running statistics move."""
        batch, channels, frames, mels = y.shape
        size = (batch, channels, frames // 2, mels // 2) if pool else tuple(y.shape)
        out = torch.empty(size, dtype=y.dtype, memory_format=torch.channels_last)
        at = torch.empty(out.shape if pool else 0, dtype=torch.int32)  # channels last too, whatever its strides say
        kept = torch.empty(4, channels)
        library.forward(
            y.data_ptr(), batch, frames, mels, channels, pool, weight.data_ptr(), bias.data_ptr(),
            norm.momentum, 1 - norm.momentum, norm.eps, norm.running_mean.data_ptr(), norm.running_var.data_ptr(),
            kept.data_ptr(), out.data_ptr(), at.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(y, weight, kept, at, out)
        ctx.pool, ctx.library = pool, library
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        """Gradients of y, weight and bias."""
        y, weight, kept, at, out = ctx.saved_tensors
        batch, channels, frames, mels = y.shape
        g = g.to(y.dtype).contiguous(memory_format=torch.channels_last)
        dx, grads = torch.empty_like(y), torch.empty(4, channels)
        ctx.library.backward(
            y.data_ptr(), g.data_ptr(), out.data_ptr(), at.data_ptr(), batch, frames, mels, channels, ctx.pool,
            kept.data_ptr(), weight.data_ptr(), dx.data_ptr(), grads.data_ptr(),
        )  # fmt: skip
        return dx, grads[0], grads[1], None, None, None
