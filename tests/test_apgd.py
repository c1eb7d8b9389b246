"""Auto-PGD: torchattacks' iterates, the step schedule and the losses by hand, and what it returns."""

import pytest
import torch
import torchattacks
from torch import nn
from toy import accuracy, right, trained

from fedser.attacks import margin
from fedser.attacks.apgd import APGD, _Steps, dlr, targeted_dlr
from fedser.errors import InputError
from fedser.randomness import generator

pytestmark = pytest.mark.rounding


def inside(n, seed):
    """Inputs mid-range, so that no clamp acts, and a net that wants them scaled back."""
    x, y = right(n, seed)
    return x / 20 + 0.5, y


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = trained()

    def forward(self, x):
        return self.net(20 * (x - 0.5))


def iterates(net, attack, x, y, seed):
    """What the model is shown by an attack whose random start comes from `seed`."""
    seen = []
    hook = net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x_adv = attack(x, y).detach()
    hook.remove()
    return torch.stack([s for s in seen if s.shape == x.shape]), x_adv


@pytest.mark.parametrize("steps", [10, 40])
def test_the_iterates_are_torchattacks(steps):
    net, (x, y) = Scaled().eval(), inside(40, seed=3)
    settings = {"eps": 0.012, "steps": steps}
    ours, x_adv = iterates(net, APGD(net, **settings), x, y, seed=5)
    expected, _ = iterates(net, torchattacks.APGD(net, seed=5, **settings), x, y, seed=0)
    assert len(ours) == len(expected) == steps + 2
    # Rounding turns the sign of a gradient that is all but zero here and there.
    assert ((ours - expected).abs() > 1e-5).float().mean() < 2e-3
    fooled = (net(expected.flatten(0, 1)).argmax(1).view(-1, 40) != y).any(0)
    assert 5 < fooled.sum() < 35
    assert torch.equal(net(x_adv).argmax(1) != y, fooled)


def test_the_best_iterate_is_returned_also_where_the_model_holds():
    net, (x, y) = Scaled().eval(), inside(40, seed=3)
    seen, x_adv = iterates(net, APGD(net, eps=0.01, steps=20), x, y, seed=1)
    margins = torch.stack([margin(net(point), y) for point in seen[1:]])  # the first is x itself
    torch.testing.assert_close(margin(net(x_adv), y), margins.amin(0))
    held = net(x_adv).argmax(1) == y
    assert 10 < held.sum() < 35  # 24
    assert ((x_adv - x)[held].abs().amax((1, 2, 3)) > 0).all()


def test_targets_are_all_other_classes():
    # The label leads by 1 towards class 1, by 5 towards the others; class 1 has no gradient, class 3 the steepest.
    layer = nn.Linear(2, 4)
    layer.load_state_dict(
        {
            "weight": torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 10.0]]),
            "bias": torch.tensor([5.0, 4.0, 0.0, 0.0]),
        }
    )
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    x_adv = APGD(layer, eps=1.0, steps=20, loss="targeted")(x, y)
    assert layer(x_adv).argmax(1).tolist() == [3, 3, 3]


def test_steps_are_halved_when_too_few_of_them_raise_the_loss():
    # Of 100 steps: checkpoints after 22, then 19, 16, …, never less than 6.
    schedule = _Steps(1.0, torch.zeros(2), steps=100, rho=0.75)
    lengths, taken = [], 0
    for step in range(1, 101):
        loss = torch.tensor([float(step), 0.0])  # the first sample's loss rises with every step, the other's never
        stuck = schedule.stuck(loss, best=loss)
        taken += 1
        if stuck is not None:
            assert stuck.tolist() == [False, True]
            lengths.append(taken)
            taken = 0
    assert lengths == [22, 19, 16, 13, 10, 7, 6, 6]
    assert schedule.size.tolist() == [1.0, 0.5**8]


def test_losses_by_hand():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.5], [1.0, 4.0, 3.0, 0.5]])
    labels = torch.tensor([0, 0])
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-(4 - 3) / (4 - 1), -(1 - 4) / (4 - 1)]))
    expected = [-(4 - 0.5) / (4 - (1 + 0.5) / 2), -(1 - 0.5) / (4 - (1 + 0.5) / 2)]
    torch.testing.assert_close(targeted_dlr(logits, labels, torch.tensor([3, 3])), torch.tensor(expected))


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_budget_and_strength(loss):
    net, (x, y) = trained(), right(40, seed=4)
    attack = APGD(net, eps=0.35, steps=20, loss=loss)
    x_adv = attack(x, y)
    assert (x_adv - x).abs().max() <= 0.35 + 1e-6
    noise = torch.where(torch.rand(x.shape, generator=generator(0)) < 0.5, -0.35, 0.35)
    assert accuracy(net, x_adv, y) < 0.3 < 0.9 < accuracy(net, x + noise, y)


def test_without_a_gradient_it_stays_finite():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(0 * x)

    x_adv = APGD(Flat(3, 5), eps=0.1, steps=5, loss="dlr")(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert x_adv.isfinite().all()


@pytest.mark.parametrize("loss, classes", [("dlr", 2), ("targeted", 3)])
def test_too_few_classes(loss, classes):
    with pytest.raises(InputError, match=f"loss '{loss}' needs at least {classes + 1} classes, not {classes}"):
        APGD(nn.Linear(3, classes), loss=loss)(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_an_unknown_loss():
    with pytest.raises(InputError, match="'ce', 'dlr' or 'targeted'"):
        APGD(nn.Linear(3, 2), loss="mse")
