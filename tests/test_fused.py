"""Kernels in C for batch norm with pooling and ReLU, and for an input's gradient: PyTorch's bits, or PyTorch itself."""

import ctypes
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedser.models import fused, input_conv, kernels, layers
from fedser.models.cnn4 import CNN4
from fedser.models.layers import ConvNorm, channels_last
from fedser.models.statcnn import StatCNN

pytestmark = pytest.mark.rounding  # PyTorch's own kernels are others where instructions are
needs_compiler = pytest.mark.skipif(not kernels.libraries("norm"), reason="no C compiler")
needs_kernel = pytest.mark.skipif(fused._kernel(8, True) is None, reason="no kernel that rounds as PyTorch does here")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(make, x, monkeypatch, own, steps=6):
    """All tensors, and the losses, of some steps; by our kernels or without."""
    if not own:
        monkeypatch.setattr(layers, "fused", lambda *arguments: None)
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    y, losses = torch.arange(len(x)) % 7, []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*((x, torch.full((len(x),), x.shape[2])) if "Stat" in str(make) else (x,))), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    monkeypatch.undo()
    return losses, model.state_dict()


@needs_kernel
@pytest.mark.parametrize("make", [lambda: CNN4(7, width=8), lambda: StatCNN(7, width=16)], ids=["cnn4", "statcnn"])
def test_training_is_the_same_to_the_bit(make, monkeypatch):
    x = torch.randn(5, 1, 101, 64, generator=torch.Generator().manual_seed(0))
    x[0, :, 60:] = 0  # silence: equal values in a pooled cell
    make.__qualname__ = "StatCNN" if isinstance(make(), StatCNN) else "CNN4"
    (one, ours), (other, theirs) = (trained(make, x, monkeypatch, own) for own in (True, False))
    assert one == other and one[0] != one[-1]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@needs_kernel
def test_it_is_really_used_in_training_and_only_there(monkeypatch):
    calls = []
    monkeypatch.setattr(layers, "fused", lambda *arguments: calls.append(fused.fused(*arguments)) or calls[-1])
    model = CNN4(7, width=8)
    model(torch.randn(2, 1, 40, 64))
    assert len(calls) == 4 and all(torch.is_tensor(call) for call in calls)
    model.eval()(torch.randn(2, 1, 40, 64))
    assert len(calls) == 4  # folded into the convolution


@needs_kernel
def test_who_is_not_suited_is_left_to_pytorch():
    def used(block, x):
        y = block.conv(channels_last(x))
        return fused.fused(block.norm, y, block.pool) is not None

    x, block = torch.randn(2, 1, 12, 16), ConvNorm(1, 8, 3, False, pool=True).train()
    assert used(block, x)
    assert not used(ConvNorm(1, 12, 3, False, pool=True), x)  # not a multiple of eight channels
    assert not used(ConvNorm(1, 8, 3, False, norm="group", pool=True), x)
    assert not used(block, torch.randn(2, 1, 1, 16))  # nothing to halve
    assert not used(block.double(), x.double())
    block.float()
    torch.set_num_threads(2)
    assert not used(block, x)
    torch.set_num_threads(1)
    state = {key: torch.stack([value, value]) for key, value in block.state_dict().items()}
    stacked = torch.func.vmap(lambda state, each: torch.func.functional_call(block, state, each))(
        state, x[None].repeat(2, 1, 1, 1, 1)
    )
    assert stacked.shape == (2, 2, 8, 6, 8)  # by plain operations: there are no others under vmap
    block.norm.register_forward_hook(lambda *arguments: None)
    assert not used(block, x)


@needs_kernel
@pytest.mark.parametrize("pool", [False, True])
def test_in_bfloat16_it_is_the_float32_kernel_rounded(pool):
    draw = torch.Generator().manual_seed(0)
    y = channels_last(torch.randn(3, 16, 11, 9, generator=draw).bfloat16())
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        norm, x = nn.BatchNorm2d(16), y.detach().to(dtype).requires_grad_()
        out = fused.fused(norm, x, pool)
        g = torch.randn(out.shape, generator=draw.manual_seed(1)).bfloat16().to(dtype)
        out.backward(g)
        ends = [out, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        found.append([each.detach().bfloat16() if each.ndim == 4 else each for each in ends])
    assert found[0][0].unique().numel() > 100
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    y[0, 0, 0, 0] = float("nan")
    assert fused.fused(nn.BatchNorm2d(16), y, pool)[:, 0].isnan().any()  # a client's loss says so
    with torch.autocast("cpu", torch.bfloat16):
        block = ConvNorm(1, 8, 3, False, pool=pool).train()
        assert block(channels_last(torch.randn(2, 1, 12, 16))).dtype == torch.bfloat16


@needs_compiler
def test_a_kernel_that_rounds_otherwise_is_not_used(monkeypatch):
    class Other:
        """Rounds once more than PyTorch does."""

        def __init__(self, library):
            self.library, self.backward = library, library.backward

        class forward:
            argtypes = restype = None

        def __getattr__(self, name):
            return getattr(self.library, name)

    fused._kernel(8, True)
    library = kernels.libraries("norm")[0]
    other = Other(library)

    def forward(*arguments):
        library.forward(*arguments)
        out = (ctypes.c_float * 8).from_address(arguments[-2])
        out[0] += 1e-6

    forward.argtypes = forward.restype = None
    other.forward = forward
    fused._kernel.cache_clear()
    monkeypatch.setattr(kernels, "libraries", lambda name: [other])
    assert fused._kernel(8, True) is None
    fused._kernel.cache_clear()


@needs_compiler
def test_libraries_are_compiled_once_and_without_a_compiler_none_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSER_CACHE", str(tmp_path))
    kernels._library.cache_clear()
    assert kernels.libraries("norm")
    files = sorted((tmp_path / "kernels").iterdir())
    assert files and all(file.suffix == ".so" for file in files)
    kernels._library.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert not kernels.libraries("norm")
    monkeypatch.setenv("CC", "/bin/false")
    shutil.rmtree(tmp_path / "kernels")
    kernels._library.cache_clear()
    assert not kernels.libraries("norm")  # a compiler that fails
    kernels._library.cache_clear()


needs_conv = pytest.mark.skipif(
    input_conv._kernel(8, 5, 1, 40, 64) is None, reason="no kernel that rounds as PyTorch does here"
)


@needs_conv
@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 1), (5, 2)])
@pytest.mark.parametrize("train", [False, True])
def test_an_inputs_gradient_is_the_same_to_the_bit(kernel, stride, train, monkeypatch):
    torch.manual_seed(0)
    block = ConvNorm(1, 16, kernel, False, stride=stride, pool=True).train(train)
    x, found = torch.randn(3, 1, 42, 64), []
    wanted = [*block.parameters()] if train else []
    for own in (True, False):
        monkeypatch.setattr(layers, "conv2d", input_conv.conv2d if own else F.conv2d)
        leaf = x.clone().requires_grad_()
        out = block(channels_last(leaf))
        assert ("_InputConv" in str(graph(out))) == own
        found.append(torch.autograd.grad(out.square().sum(), [leaf, *wanted]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def graph(out):
    """The names of the operations that a tensor was made by."""
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        todo += [before for before, _ in node.next_functions if before is not None]
    return names


@needs_conv
def test_an_input_that_wants_no_gradient_or_several_at_once_is_pytorchs():
    x, weight = channels_last(torch.randn(2, 1, 40, 64)), torch.randn(8, 1, 5, 5)
    arguments = weight, None, (1, 1), (2, 2)
    assert input_conv._suits(x.requires_grad_(), weight, *arguments[2:])
    with torch.no_grad():
        assert not input_conv._suits(x, weight, *arguments[2:])
    assert not input_conv._suits(x.detach(), weight, *arguments[2:])
    out = input_conv.conv2d(x, *arguments)
    draw = torch.randn(3, *out.shape).to(memory_format=torch.channels_last_3d).contiguous()
    (together,) = torch.autograd.grad(out, x, draw, is_grads_batched=True, retain_graph=True)
    for one, g in zip(together, draw, strict=True):
        (apart,) = torch.autograd.grad(out, x, g, retain_graph=True)
        torch.testing.assert_close(one, apart)


def test_batch_norm_counts_its_batches():
    block = ConvNorm(1, 8, 3, False, pool=True).train()
    for _ in range(3):
        block(channels_last(torch.randn(2, 1, 12, 16)))
    assert isinstance(block.norm, nn.BatchNorm2d) and block.norm.num_batches_tracked == 3
