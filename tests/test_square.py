"""The black box: queries only, patches that fit a spectrogram, and what it does to a trained net."""

import pytest
import torch
import torchattacks
from torch import nn
from toy import accuracy, randomisation, right, trained

from fedser.attacks import Adversary, Defended, margin
from fedser.attacks.square import Square, patch
from fedser.randomness import generator

pytestmark = pytest.mark.rounding


class BlackBox(nn.Module):
    """Answers with logits, counts its queries, and breaks when asked for a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.queries = 0

    def forward(self, x):
        self.queries += 1
        return self.model(_NoGradient.apply(x))


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a black box has no gradient")


def test_torchattacks_square_does_not_fit_a_spectrogram():
    # Its first squares are 138 cells wide: it draws their left edge from below zero, and slices from the wrong end.
    drawn = []

    class Spied(torchattacks.Square):
        def random_int(self, low=0, high=1, shape=(1,)):
            drawn.append(high)
            return super().random_int(low, high, shape)

    net = nn.Sequential(nn.Flatten(), nn.Linear(373 * 64, 2))
    x = torch.rand(1, 1, 373, 64, generator=generator(0))
    Spied(net, n_queries=1, eps=0.0)(x, net(x).argmax(1))
    assert drawn == [373 - 138, 64 - 138]


@pytest.mark.parametrize(
    "share, size",
    [
        (0.8, (298, 64)),  # a square would be 138 wide: as wide as can be, and longer
        (0.1, (49, 49)),  # of 2387 cells
        (0.8 / 512, (6, 6)),
        (1e-9, (1, 1)),
        (1.0, (373, 64)),
    ],
)
def test_patches_by_hand(share, size):
    assert patch(share, 373, 64) == size


def test_patches_fit_where_frames_are_few():
    assert patch(0.8, 10, 100) == (10, 80)


def test_on_a_spectrogram_it_asks_for_no_gradient_and_stays_in_its_budget():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = BlackBox(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(46 * 8, 3)))
    x = torch.randn(4, 1, 373, 64, generator=generator(0)).requires_grad_()
    y = net(x).argmax(1)
    net.queries = 0
    x_adv = Square(net, eps=0.01, queries=60)(x, y)
    assert not x_adv.requires_grad
    assert net.queries <= 60
    change = (x_adv - x).detach()
    assert change.abs().max() <= 0.01 + 1e-6
    assert (change.abs().amax((1, 2, 3)) > 0).all()
    # Every cell is at one end of its budget.
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.01), atol=1e-6, rtol=0)


def test_each_step_lowers_the_margin_or_is_dropped():
    net, (x, y) = trained(), right(20, seed=1)
    margins = []
    for queries in (2, 20, 200):
        torch.manual_seed(0)
        # The draws of a longer search do not begin with those of a shorter one, so only the whole tells.
        margins.append(margin(net(Square(net, eps=0.3, queries=queries)(x, y)), y).mean())
    assert margins[0] > margins[1] > margins[2]


def test_it_lowers_the_accuracy_of_a_trained_net():
    net, (x, y) = trained(), right(60, seed=1)
    torch.manual_seed(0)
    x_adv = Square(net, eps=0.5, queries=200)(x, y)
    noise = torch.where(torch.rand(x.shape) < 0.5, -0.5, 0.5)
    assert accuracy(net, x, y) == 1
    # 0.98, and 0.23 for the attack; 0.9 and more where it keeps every patch, keeps none, or never narrows them.
    assert accuracy(net, x_adv, y) < 0.6 * accuracy(net, x + noise, y)


def test_wrong_predictions_are_left_alone_and_fooled_samples_are_not_asked_again():
    net, (x, y) = BlackBox(trained()).eval(), right(8, seed=1)
    wrong = y.clone()
    wrong[:4] = (y[:4] + 1) % 4
    asked = []
    net.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    torch.manual_seed(0)
    x_adv = Square(net, eps=1.0, queries=500)(x, wrong)
    assert torch.equal(x_adv[:4], x[:4])
    assert (net(x_adv[4:]).argmax(1) != y[4:]).all()
    assert asked[:2] == [8, 4]
    assert asked[1:-1] == sorted(asked[1:-1], reverse=True)
    assert len(asked) - 1 < 500


def test_a_randomised_model_is_asked_to_the_end():
    net, (x, y) = trained(), right(8, seed=1)
    box = BlackBox(Defended(net, randomisation(), draws=1)).eval()
    torch.manual_seed(0)
    Square(box, eps=1.0, queries=50)(x, y)
    assert box.queries == 50


def test_knowing_a_randomisation_does_not_make_it_weaker():
    net, wear, (x, y) = trained(), randomisation(), right(24, seed=1)
    attack = Adversary("square", 0.5, "true", Square, eot=1, queries=400)

    def right_of(x_adv):
        torch.manual_seed(1)
        return sum(accuracy(net, wear(x_adv), y) for _ in range(20)) / 20

    oblivious, adaptive = (right_of(attack(net, x, y, seed=0, randomise=known)) for known in (None, wear))
    assert adaptive < oblivious - 0.05  # by 0.2; with the lowest margin of any single draw as the mark: higher by 0.1


def test_a_clip_holds():
    net, (x, y) = trained(), right(8, seed=1)
    x_adv = Square(net, eps=1.0, queries=20, clip=(-1.0, 1.0))(x.clamp(-1, 1), y)
    assert x_adv.abs().max() <= 1
