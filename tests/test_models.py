"""The networks: sizes as in the papers, any input size, settings that reach the layers."""

from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fedser.config import compose
from fedser.config.components import build
from fedser.models.cnn4 import CNN4
from fedser.models.layers import ConvNorm, halve, real_frames, statistics
from fedser.models.resnet50 import ResNet50
from fedser.models.statcnn import StatCNN
from fedser.models.tdnn import TDNN
from fedser.models.vgg15 import VGG15
from fedser.models.vgg16 import VGG16

CONF = str(Path(__file__).parents[1] / "conf")

BUILDERS = (lambda: VGG15(7), lambda: CNN4(7, width=4), lambda: CNN4(7, width=8, norm="group"))
IDS = ["vgg15", "cnn4", "cnn4-group"]


def composed(*overrides):
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return hydra.compose(overrides=list(overrides))


def configured(classes, *overrides):
    return build(OmegaConf.to_container(composed(*overrides).model, resolve=True), classes=classes)


def count(model):
    parameters = sum(p.numel() for p in model.parameters())
    statistics = sum(b.numel() for name, b in model.named_buffers() if "num_batches" not in name)
    return parameters, statistics


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_vgg15_has_the_papers_size():
    assert count(VGG15(classes=7)) == (14_855_111, 8_448)


def test_cnn4_has_ren_et_als_size():
    # 25 · (64 + 64·128 + 128·256 + 256·512) weights, 2 · 960 of batch norm, 512·7 + 7 of the last layer
    assert count(CNN4(classes=7, width=64)) == (4_302_400 + 1_920 + 3_591, 1_920)


def test_vgg15_pools_373_frames_like_the_paper():
    x = torch.zeros(1, 1, 373, 64)
    lengths = []
    for _ in range(5):
        x = halve(x)
        lengths.append(tuple(x.shape[2:]))
    assert lengths == [(186, 32), (93, 16), (46, 8), (23, 4), (11, 2)]


def test_halve_takes_maxima_and_leaves_an_axis_of_one_alone():
    x = torch.tensor([[1.0, 5.0, 9.0], [7.0, 2.0, 9.0]])[None, None]
    assert halve(x).tolist() == [[[[7.0]]]]
    assert halve(x[..., :1]).tolist() == [[[[7.0]]]]
    assert halve(x[..., :1, :2]).tolist() == [[[[5.0]]]]


@pytest.mark.parametrize("bias", [True, False])
def test_folding_batch_norm_changes_nothing(bias):
    layer = ConvNorm(3, 5, 3, bias=bias, bn_momentum=0.1, bn_eps=1e-3)
    nn.init.uniform_(layer.norm.weight, 0.5, 2)
    nn.init.normal_(layer.norm.bias)
    layer.train()(3 + 2 * torch.randn(4, 3, 8, 6))  # running statistics other than 0 and 1
    layer.eval()
    x = torch.randn(2, 3, 8, 6)
    expected = layer.norm(layer.conv(x)).relu()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(out.square().sum(), list(layer.parameters())) for out in (layer(x), expected)]
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("build", BUILDERS, ids=IDS)
@pytest.mark.parametrize("frames, mels", [(373, 64), (380, 66), (12, 8), (1, 1)])
def test_any_input_size(build, frames, mels):
    with torch.no_grad():
        logits = build().eval()(torch.randn(2, 1, frames, mels))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("build", BUILDERS, ids=IDS)
def test_a_batch_of_one_trains(build):
    model = build()
    model.train()(torch.randn(1, 1, 373, 64)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(bn.num_batches_tracked == 1 for bn in batch_norms(model))


def test_ren_et_als_large_networks_have_their_sizes():
    assert count(VGG16(classes=7))[0] == 14_721_351
    assert count(ResNet50(classes=7))[0] == 23_516_103
    narrow = [kind(classes=7, width=8) for kind in (VGG16, ResNet50)]
    assert [model(torch.zeros(2, 1, 96, 64)).shape for model in narrow] == [(2, 7)] * 2
    assert [count(model)[0] for model in narrow] == [231_407, 375_167]


@pytest.mark.parametrize("kind", [VGG16, ResNet50])
@pytest.mark.parametrize("frames, mels", [(100, 66), (12, 8)])
def test_they_take_any_size(kind, frames, mels):
    model = kind(7)
    model.train()(torch.randn(2, 1, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    x = torch.randn(2, 1, frames, mels)
    with torch.no_grad():
        assert model.eval()(x).isfinite().all()
        assert torch.equal(model.fc(model.embed(x)), model(x))


class TestTDNN:
    LENGTHS = torch.tensor([40, 9, 1])

    @pytest.fixture(params=["batch", "group", "layer"])
    def model(self, request):
        torch.manual_seed(0)
        model = TDNN(7, mels=16, width=16, norm=request.param)
        model.train()(torch.randn(4, 1, 40, 16), torch.full((4,), 40))  # running statistics other than 0 and 1
        return model.eval()

    def test_has_its_size(self):
        # 64·64·5 + 2·64·64·3 + 64·64 weights, 4 · (64 biases and 128 of the norms), 128·7 + 7 of the last layer
        assert count(TDNN(7))[0] == 20_480 + 24_576 + 4_096 + 768 + 903

    def test_what_lies_behind_the_real_frames_changes_nothing(self, model):
        x = torch.randn(3, 1, 50, 16)
        other = torch.where(torch.arange(50)[:, None] < self.LENGTHS[:, None, None, None], x, torch.randn(x.shape))
        with torch.no_grad():
            one, same = model(x, self.LENGTHS), model(other, self.LENGTHS)
            alone = torch.cat([model(x[[n], :, :length], self.LENGTHS[[n]]) for n, length in enumerate((40, 9, 1))])
        assert torch.equal(one, same)
        torch.testing.assert_close(one, alone, atol=1e-5, rtol=0)
        assert not torch.equal(one, model(torch.roll(x, 1, 2), self.LENGTHS))

    @pytest.mark.parametrize("frames, mels", [(373, 16), (380, 18), (12, 8), (1, 16)])
    def test_any_size(self, model, frames, mels):
        x, lengths = torch.randn(2, 1, frames, mels), torch.full((2,), frames)
        assert model(x, lengths).isfinite().all()
        model.train()(x, lengths).sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


class TestStatCNN:
    @pytest.fixture(params=["batch", "group", "layer"])
    def model(self, request):
        torch.manual_seed(0)
        model = StatCNN(7, width=4, norm=request.param)
        model.train()(torch.randn(4, 1, 90, 16), torch.full((4,), 90))  # running statistics other than 0 and 1
        return model.eval()

    def test_has_its_size(self):
        # 25·16 + 9 · (16·32 + 32·64 + 64·128) weights, 2 · 240 of the norms, 256·7 + 7 of the last layer
        assert count(StatCNN(7))[0] == 97_168 + 480 + 1_799

    def test_a_clip_counts_as_in_a_batch_of_its_own(self, model):
        x, lengths = torch.randn(3, 1, 373, 64), torch.tensor([230, 77, 5])
        with torch.no_grad():
            together = model(x, lengths)
            alone = torch.cat([model(x[[n]], lengths[[n]]) for n in range(3)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_frames_far_behind_the_real_ones_change_nothing(self):
        model = StatCNN(7).eval()
        x = torch.randn(2, 1, 200, 64)
        other = x.clone()
        other[:, :, 100 + 32 :] += 5
        with torch.no_grad():
            assert torch.equal(model(x, torch.tensor([100, 60])), model(other, torch.tensor([100, 60])))
            assert not torch.equal(model(x, torch.tensor([180, 60])), model(other, torch.tensor([180, 60])))

    @pytest.mark.parametrize("frames, mels", [(373, 64), (380, 66), (12, 8), (1, 1)])
    def test_any_size(self, model, frames, mels):
        x, lengths = torch.randn(2, 1, frames, mels), torch.full((2,), frames)
        assert model(x, lengths).isfinite().all()
        if frames > 1:
            model.train()(x, lengths).sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())


def test_statistics_by_hand():
    h = torch.tensor([[[1.0, 3.0, 100.0], [2.0, 2.0, 100.0]]])
    pooled = statistics(h, real_frames(torch.tensor([2]), 3))
    torch.testing.assert_close(pooled, torch.tensor([[2.0, 2.0, 1.000005, 1e-5**0.5]]))


@pytest.mark.parametrize("build, width", list(zip(BUILDERS, (256, 32, 64), strict=True)), ids=IDS)
def test_the_last_layer_reads_the_embedding(build, width):
    model = build().eval()
    x = torch.randn(2, 1, 40, 16)
    with torch.no_grad():
        embedding = model.embed(x)
        assert embedding.shape == (2, width)
        assert torch.equal(model.fc(embedding), model(x))


def test_configured_vgg15():
    model = configured(5, "+model=vgg15", "model.bn_momentum=0.2")
    assert model.fc.out_features == 5
    assert {(bn.momentum, bn.eps) for bn in batch_norms(model)} == {(0.2, 1e-3)}
    default = configured(7, "+model=vgg15")
    assert {bn.momentum for bn in batch_norms(default)} == {0.1}
    paper = compose.compose(["experiment=chang2022"])
    assert (paper.model.name, paper.model.bn_momentum, paper.model.bn_eps) == ("vgg15", 0.01, 1e-3)


def test_configured_cnn4():
    default = configured(7, "+model=cnn4")
    assert [bn.num_features for bn in batch_norms(default)] == [8, 16, 32, 64]
    assert {(bn.momentum, bn.eps) for bn in batch_norms(default)} == {(0.1, 1e-5)}
    wide = configured(7, "+model=cnn4", "model.width=64")
    assert count(wide) == count(CNN4(7, width=64))
