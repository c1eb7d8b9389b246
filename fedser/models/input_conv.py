"""A convolution whose input has one channel and wants a gradient, on a CPU: PyTorch's numbers, to the bit.

Every attack on log-Mels ends in that gradient. PyTorch's takes five times as long as the convolution, `kernels/conv.c`
a quarter of that.
"""

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fedser.models import kernels

_I, _P = ctypes.c_int64, ctypes.c_void_p


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """`torch.nn.functional.conv2d`; the gradient of x by our kernel where that gives PyTorch's bits."""
    if _suits(x, weight, stride, padding) and _kernel(*weight.shape[::3], stride[0], *x.shape[2:]):
        return _InputConv.apply(x, weight, bias, stride[0])
    return F.conv2d(x, weight, bias, stride, padding)


def _suits(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    size = weight.shape[-1]
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and not torch._C._functorch.peek_interpreter_stack()  # under vmap only PyTorch's own are known
        and not torch.is_autocast_enabled("cpu")
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[1] == 1
        and weight.shape[2] == size
        and size % 2 == 1
        and tuple(stride) in ((1, 1), (2, 2))
        and tuple(padding) == (size // 2, size // 2)
        and _channels_last(x)
        and torch.get_num_threads() == 1
    )


def _channels_last(x: Tensor) -> bool:
    """Also by its strides, which PyTorch goes by where one channel leaves open how a tensor lies."""
    return x.is_contiguous(memory_format=torch.channels_last) and x.stride()[1:] == (
        1,
        x.shape[1] * x.shape[3],
        x.shape[1],
    )


@functools.lru_cache(maxsize=4096)
def _kernel(channels: int, size: int, stride: int, frames: int, mels: int) -> "ctypes.CDLL | None":
    """The library that gives PyTorch's bits for inputs of this size, on which PyTorch's way depends; else None."""
    for library in kernels.libraries("conv"):
        library.scratch.argtypes, library.scratch.restype = 5 * [_I], _I
        library.input_gradient.argtypes, library.input_gradient.restype = [_P, _P] + 8 * [_I] + [_P, _P], None
        if _same(library, channels, size, stride, frames, mels):
            return library
    return None


def _same(library: ctypes.CDLL, channels: int, size: int, stride: int, frames: int, mels: int) -> bool:
    draw = torch.Generator().manual_seed(channels)
    x = torch.zeros(2, 1, frames, mels).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, size, size, generator=draw)
    y = F.conv2d(x, weight, None, stride, size // 2)
    g = torch.randn(y.shape, generator=draw).to(memory_format=torch.channels_last)
    return torch.equal(
        _gradient(library, g, weight, x, stride), _plain(g, x, weight, None, stride, [True, False, False])[0]
    )


def _gradient(library: ctypes.CDLL, g: Tensor, weight: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient [B, 1, T, F] of x, from that of the output [B, C, …], which lies channels last."""
    (batch, _, frames, mels), (channels, _, size, _), (rows, columns) = x.shape, weight.shape, g.shape[2:]
    weight, dx = weight.contiguous(), torch.empty_like(x)
    apart = torch.empty(library.scratch(frames, mels, channels, size, stride))
    library.input_gradient(
        g.data_ptr(), weight.data_ptr(), batch, frames, mels, rows, columns, channels, size, stride,
        apart.data_ptr(), dx.data_ptr(),
    )  # fmt: skip
    return dx


def _plain(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, wanted: list[bool]) -> tuple:
    sizes, pad = None if bias is None else list(bias.shape), weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        g, x, weight, sizes, [stride, stride], [pad, pad], [1, 1], False, [0, 0], 1, wanted
    )


class _InputConv(torch.autograd.Function):
    """The convolution; once differentiable."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        """x [B, 1, T, F] → [B, C, …]."""
        ctx.save_for_backward(x, weight, bias)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        """Gradients of x, weight and bias, as far as they are wanted."""
        x, weight, bias = ctx.saved_tensors
        several = torch._C._functorch.is_legacy_batchedtensor(g)  # gradients at once, of torch.autograd.grad
        own = ctx.needs_input_grad[0] and not several and _channels_last(g)
        wanted = [
            ctx.needs_input_grad[0] and not own,
            ctx.needs_input_grad[1],
            bias is not None and ctx.needs_input_grad[2],
        ]
        dx, dw, db = _plain(g, x, weight, bias, ctx.stride, wanted) if any(wanted) else (None, None, None)
        if own:
            library = _kernel(*weight.shape[::3], ctx.stride, *x.shape[2:])
            dx = _gradient(library, g, weight, x, ctx.stride)
        return dx, dw, db, None
