"""DeepFool: closed-form answers on linear models, parity with ART's and torchattacks' results."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn
from toy import randomisation, right, trained

from fedser.attacks import Adversary
from fedser.attacks.deepfool import DeepFool
from fedser.errors import InputError

pytestmark = pytest.mark.rounding

FIXTURE = Path(__file__).parent / "fixtures" / "art_attacks.npz"


def reference_net(data):
    """The net that ART attacked, in eval mode (see the fixture's `model/` arrays)."""
    net = nn.Sequential()
    net.add_module("c1", nn.Conv2d(1, 8, 3, padding=1))
    net.add_module("b1", nn.BatchNorm2d(8))
    net.add_module("r1", nn.ReLU())
    net.add_module("p1", nn.MaxPool2d(2))
    net.add_module("c2", nn.Conv2d(8, 16, 3, padding=1))
    net.add_module("b2", nn.BatchNorm2d(16))
    net.add_module("r2", nn.ReLU())
    net.add_module("p2", nn.AdaptiveAvgPool2d((5, 4)))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(320, 7))
    net.load_state_dict({k.removeprefix("model/"): torch.tensor(data[k]) for k in data if k.startswith("model/")})
    return net.eval()


@pytest.fixture(scope="module")
def art():
    data = dict(np.load(FIXTURE))
    return reference_net(data), torch.tensor(data["x"]), torch.tensor(data["y"]), data


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer.eval()


# Three classes on the plane. At (1, 0) the logits are (3, 0, 1): class 1 is 3/‖(3, -1)‖ = 0.95 away and class 2
# 2/‖(2, 0)‖ = 1, so DeepFool goes to class 1, along -(3, -1), although class 2 scores higher.
PLANE = linear([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0.0, 0.0, 0.0])
TO_CLASS_1 = torch.tensor([[-0.9, 0.3]])  # 3 / ‖(3, -1)‖² · (-3, 1)


def test_closed_form_of_a_linear_model():
    x = torch.tensor([[1.0, 0.0]])
    x_adv = DeepFool(PLANE, overshoot=0.02)(x, None)
    torch.testing.assert_close(x_adv, x + 1.02 * TO_CLASS_1)
    assert PLANE(x_adv).argmax(1).tolist() == [1]


def test_overshoot_per_step_on_a_linear_model():
    x = torch.tensor([[1.0, 0.0]])
    x_adv = DeepFool(PLANE, overshoot=0.1, overshoot_at="step")(x, None)
    torch.testing.assert_close(x_adv, x + 1.1 * TO_CLASS_1)  # one step suffices


def test_the_clip_holds():
    x_adv = DeepFool(PLANE, clip=(0.0, 1.0))(torch.tensor([[1.0, 0.0]]), None)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_wrong_predictions_are_left_alone_under_true_labels_only():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    attack = DeepFool(PLANE)
    x_adv = attack(x, torch.tensor([2, 0]))
    assert torch.equal(x_adv[0], x[0])
    assert not torch.equal(x_adv[1], x[1])
    assert not torch.equal(attack(x, None)[0], x[0])


def test_vanished_gradients_move_nothing():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[2.0, 1.0, 0.0]]))

        def forward(self, x):
            # Gradients vanish where x is negative, for the first sample only.
            return self.weight + torch.relu(x) @ torch.tensor([[0.0, 1.0, 3.0]])

    x = torch.tensor([[-1.0], [0.2]])
    x_adv = DeepFool(Flat())(x, None)
    assert torch.equal(x_adv[0], x[0])
    # Logits of the second: (2, 1.2, 0.6). Class 2 is 1.4/3 away, class 1 0.8/1.
    torch.testing.assert_close(x_adv[1], x[1] + 1.02 * 1.4 / 3)


def test_parameters_keep_their_gradients(art):
    net, x, _, _ = art
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    DeepFool(net)(x[:2], None)
    assert all((parameter.grad == 7).all() for parameter in net.parameters())
    net.zero_grad()


def test_a_sample_does_not_depend_on_its_batch(art):
    net, x, _, _ = art
    together = DeepFool(net, steps=50)(x, None)
    alone = torch.cat([DeepFool(net, steps=50)(sample[None], None) for sample in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [5, 50])
def test_parity_with_art(art, steps):
    net, x, _, data = art
    x_adv = DeepFool(net, steps=steps)(x, None)
    expected = torch.tensor(data[f"adv/deepfool_{steps}"])
    assert (expected - x).abs().amax(dim=(1, 2, 3)).min() > 1e-3  # every sample moved, so the next line can fail
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)
    assert (net(x_adv).argmax(1) != net(x).argmax(1)).all()


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_parity_with_torchattacks(art, steps):
    net, x, y, _ = art
    inside = (0.1 * x + 0.5).clamp(0, 1)  # mid-range, so that the clamps of both hardly act
    settings = {"steps": steps, "overshoot": 0.02}
    expected = torchattacks.DeepFool(net, **settings)(inside, y)
    net.zero_grad()  # torchattacks leaves gradients on the parameters
    x_adv = DeepFool(net, **settings, overshoot_at="step", clip=(0.0, 1.0))(inside, y)
    assert (expected - inside).abs().max() > 1e-2
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_behind_a_randomisation_it_goes_on_until_fresh_draws_are_fooled():
    net, wear, (x, y) = trained(), randomisation(), right(24, seed=1)
    attack = Adversary("deepfool", None, "predicted", DeepFool, "L2", steps=5, overshoot=0.02)
    x_adv = attack(net, x, y, seed=0, randomise=wear)
    torch.manual_seed(1)
    with torch.no_grad():
        fooled = torch.stack([net(wear(x_adv)).argmax(1) != y for _ in range(40)]).float().mean(0)
    assert fooled.mean() > 0.8  # 0.9; 0.66 at the boundary of the mean logits
    assert (fooled > 0.7).float().mean() > 0.9


def test_unknown_overshoot():
    with pytest.raises(InputError, match="'end' or 'step'"):
        DeepFool(PLANE, overshoot_at="never")
