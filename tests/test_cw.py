"""Carlini & Wagner's attack: the distance to a linear boundary, the search over c, and DeepFool to compare with."""

import pytest
import torch
from torch import nn
from toy import accuracy, randomisation, right, trained

from fedser.attacks import Adversary, cw
from fedser.attacks.cw import CW
from fedser.attacks.deepfool import DeepFool

pytestmark = pytest.mark.rounding


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer.eval()


# At (1, 0) the logits are (3, 0, 1): class 1 is 3/‖(3, -1)‖ = 0.949 away and class 2 is 2/‖(2, 0)‖ = 1.
PLANE = linear([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0.0, 0.0, 0.0])
NEAREST = torch.tensor([[-0.9, 0.3]])


def test_the_distance_to_a_linear_boundary():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    x_adv = CW(linear([[3.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), steps=400, searches=8, lr=0.01)(x, y)
    torch.testing.assert_close(x_adv - x, NEAREST, atol=0.02, rtol=0)


def test_every_sample_has_a_weight_of_its_own():
    # The boundary is at 0. Fooling pays from c = 2 |x| / slope on: for these 0.02, 2 and 20 at the slope of 1.
    net, x = linear([[1.0], [0.0]], [0.0, 0.0]), torch.tensor([[0.01], [1.0], [10.0]])
    y = torch.tensor([0, 0, 0])
    x_adv = CW(net, c=1.0, steps=300, searches=8, lr=0.1)(x, y)
    assert (net(x_adv).argmax(1) == 1).all()
    torch.testing.assert_close(x_adv, torch.zeros(3, 1), atol=0.06, rtol=0)
    # With one weight only the nearest is fooled, and the others are left as they are.
    assert torch.equal(CW(net, c=1.0, steps=300, searches=1, lr=0.1)(x, y)[1:], x[1:])


def test_kappa_is_a_lead_in_logits():
    net = linear([[3.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    x_adv = CW(net, kappa=1.0, steps=400, searches=8, lr=0.01)(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    logits = net(x_adv)[0].tolist()
    assert logits[1] - logits[0] == pytest.approx(1, abs=0.05)


def test_wrong_predictions_are_left_alone():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    x_adv = CW(PLANE, steps=50, searches=3, lr=0.05)(x, torch.tensor([2, 0]))
    assert torch.equal(x_adv[0], x[0])
    assert not torch.equal(x_adv[1], x[1])


def test_vanished_gradients_move_nothing():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(0 * x)

    net, x = Flat(2, 3), torch.ones(1, 2)
    assert torch.equal(CW(net, steps=5, searches=2)(x, net(x).argmax(1)), x)


@pytest.mark.parametrize("box", [None, [-100.0, 300.0]])
def test_the_box_makes_no_difference(box):
    # c is a squared length, lr a length: both scale with the box that the adapter maps onto [0, 1].
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    attack = Adversary("cw", None, "true", CW, "L2", box, c=1.0, steps=200, searches=5, lr=0.01, kappa=0.0)
    expected = CW(PLANE, steps=200, searches=5, lr=0.01)(x, y)
    torch.testing.assert_close(attack(PLANE, x, y, 0), expected, atol=5e-3, rtol=0)


def test_it_is_nearer_than_deepfool_on_a_net():
    net, (x, y) = trained(), right(30, seed=2)
    cw = CW(net, steps=60, searches=5, lr=0.02)(x, y)
    deepfool = DeepFool(net, steps=50)(x, y)
    assert accuracy(net, cw, y) == accuracy(net, deepfool, y) == 0
    ratio = (cw - x).flatten(1).norm(dim=1) / (deepfool - x).flatten(1).norm(dim=1)
    assert ratio.median() < 1
    assert ratio.max() < 1.2


def test_a_sample_does_not_depend_on_its_batch():
    net, (x, y) = trained(), right(6, seed=2)
    attack = CW(net, steps=20, searches=3, lr=0.05)
    torch.testing.assert_close(
        attack(x, y), torch.cat([attack(x[i : i + 1], y[i : i + 1]) for i in range(6)]), atol=1e-4, rtol=0
    )


def test_behind_a_randomisation_luck_is_no_success():
    net, wear, (x, y) = trained(), randomisation(), right(12, seed=1)
    attack = Adversary("cw", None, "true", CW, "L2", steps=30, searches=3, lr=0.04)
    x_adv = attack(net, x, y, seed=0, randomise=wear)
    torch.manual_seed(1)
    with torch.no_grad():
        fooled = torch.stack([net(wear(x_adv)).argmax(1) != y for _ in range(40)]).float().mean(0)
    moved = (x_adv != x).flatten(1).any(1)
    assert moved.float().mean() > 0.7
    assert fooled[moved].mean() > 0.7  # 0.88; 0.45 where the nearest point whose draws' mean is fooled once is taken


def test_a_sample_that_some_draws_have_right_is_attacked_though_their_mean_is_wrong(monkeypatch):
    offsets = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-4.0, 0.0]])
    monkeypatch.setattr(cw, "each_draw", lambda model, x: torch.stack([model(x + offset) for offset in offsets], dim=1))
    x, y = torch.tensor([[1.0, 0.0], [-5.0, 0.0]]), torch.tensor([0, 0])
    assert cw.each_draw(PLANE, x).mean(1).argmax(1).tolist() == [1, 1]
    moved = (CW(PLANE, steps=50, lr=0.1)(x, y) != x).any(1)
    assert moved.tolist() == [True, False]  # all draws of the second are wrong


def test_parameters_keep_their_gradients():
    net, (x, y) = trained(), right(2, seed=2)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    CW(net, steps=3, searches=2)(x, y)
    assert all((parameter.grad == 7).all() for parameter in net.parameters())
