"""MI-FGSM: torchattacks' iterates to the bit, by hand on a linear model, and what a vanished gradient does not end."""

from functools import partial

import pytest
import torch
import torchattacks
from test_attacks import X, adversary, linear
from torch import nn
from toy import randomisation, right, trained, waves

from fedser.attacks import Adversary
from fedser.attacks.mifgsm import MIFGSM
from fedser.models.vgg15 import VGG15

pytestmark = pytest.mark.rounding

SETTINGS = [
    {"eps": 0.05},
    {"eps": 0.5, "decay": 0.7, "steps": 4},
    {"eps": 0.3, "alpha": 0.2},  # a step that the budget cuts short
    {"eps": 0.3, "labels": "predicted"},
]


def both(settings, **more):
    """Our attack and the library's with the same settings."""
    settings = {"labels": "true", "alpha": None, **settings, **more}
    return [Adversary("mifgsm", method=partial(method), **settings) for method in (MIFGSM, torchattacks.MIFGSM)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_torchattacks_to_the_bit(settings):
    ours, theirs = both(settings)
    x, y = waves(40, 7)
    for inputs in (x, 50 * x):  # at fifty times the size many gradients are all but zero
        expected = theirs(trained(), inputs, y, 3)
        assert not torch.equal(expected, inputs)
        assert torch.equal(ours(trained(), inputs, y, 3), expected)
    wear = randomisation()
    assert torch.equal(ours(trained(), x, y, 3, randomise=wear), theirs(trained(), x, y, 3, randomise=wear))
    inside = (0.1 * x + 0.5).clamp(0, 1)
    ours, theirs = both(settings, box=(0, 1))
    assert torch.equal(ours(trained(), inside, y, 3), theirs(trained(), inside, y, 3))


def test_it_is_torchattacks_on_vgg15():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = VGG15(7), torch.randn(3, 1, 373, 64)
    ours, theirs = both({"eps": 0.05, "steps": 2})
    y = torch.tensor([0, 1, 2])
    assert torch.equal(ours(model, x, y, 0), theirs(model, x, y, 0))


def test_momentum_on_a_linear_model_by_hand():
    # Steps of eps / 4 in one direction: after three, three quarters of the budget.
    x_adv = adversary("mifgsm", "attack.steps=3")(linear(), X[:1], torch.tensor([0]), 0)
    torch.testing.assert_close(x_adv[0, 0], 0.0375 * torch.tensor([[-1.0, 1.0], [0.0, -1.0]]), atol=1e-6, rtol=0)


def test_it_stays_where_the_gradient_vanishes():
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x.flatten(1) * torch.tensor([[1.0], [0.0]]))

    x_adv = adversary("mifgsm")(Masked(linear()), X[:2], torch.tensor([0, 0]), 0)
    torch.testing.assert_close(x_adv[0, 0], 0.05 * torch.tensor([[-1.0, 1.0], [0.0, -1.0]]), atol=1e-6, rtol=0)
    assert torch.equal(x_adv[1], X[1])


class Scaled(nn.Module):
    """The trained net with logits times `scales[pass]`, of the last one from then on."""

    def __init__(self, *scales):
        super().__init__()
        self.net, self.scales, self.passes = trained(), scales, 0

    def forward(self, x):
        scale = self.scales[min(self.passes, len(self.scales) - 1)]
        self.passes += 1
        return scale * self.net(x)


def test_saturated_logits_leave_a_clip_where_it_is():
    x, y = right(4, 0)
    attack = MIFGSM(Scaled(1e4), eps=0.1, alpha=0.025)
    assert not attack._direction(x, y).any()  # the cross-entropy is 0, and so is its gradient
    assert torch.equal(attack(x, y), x)


def test_a_gradient_that_vanishes_for_a_step_does_not_end_the_attack():
    x, y = right(4, 0)
    moved = [
        (attack(Scaled(1, 1e4, 1), x, y, 0) - x).abs().amax().item() for attack in both({"eps": 0.1, "alpha": 0.01})
    ]
    assert moved == pytest.approx([0.1, 0.01], abs=1e-5)  # of ten steps all, or the first one
