"""The margin through every draw: by hand on a linear model, and stronger than the cross-entropy of mean logits."""

import pytest
import torch
from test_attacks import X, adversary, linear
from toy import randomisation, trained, waves

from fedser.attacks import Defended
from fedser.attacks.eot_margin import EOTMargin

pytestmark = pytest.mark.rounding


def test_steps_on_a_linear_model_by_hand():
    # One direction throughout: half of eps, then half a cosine later a quarter of it.
    x_adv = adversary("eot_margin", "attack.steps=2")(linear(), X[:1], torch.tensor([0]), 0)
    torch.testing.assert_close(x_adv[0, 0], 0.0375 * torch.tensor([[-1.0, 1.0], [0.0, -1.0]]), atol=1e-6, rtol=0)


def test_a_draw_far_beyond_its_boundary_has_no_say():
    """Two draws pull a cell either way; one of them is fooled by far, whose pull tanh lets go of."""

    class TwoDraws(Defended):
        def __init__(self):
            super().__init__(torch.nn.Linear(1, 1), torch.nn.Identity(), 2)

        def each(self, x, lengths=None):
            near, far = x[:, 0, 0, 0], -2 * x[:, 0, 0, 0] - 20  # true logit less the other one
            return torch.stack([torch.stack([near, 0 * near], 1), torch.stack([far, 0 * far], 1)], 1)

    x_adv = EOTMargin(TwoDraws(), eps=0.1, steps=3)(torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    torch.testing.assert_close(
        x_adv, torch.full_like(x_adv, -0.1)
    )  # 0.05 + 0.0375 + 0.0125 towards the near one's boundary
    mean = adversary("eot_pgd", "attack.method.random_start=false")
    assert mean(TwoDraws(), torch.zeros(1, 1, 1, 1), torch.tensor([0]), 0).item() > 0


def left(attack, x, y, draws=40):
    """The share of fresh draws that are still right."""
    x_adv = attack(trained(), x, y, 0, randomise=randomisation())
    with torch.no_grad():
        torch.manual_seed(1)
        return (Defended(trained(), randomisation(), draws).each(x_adv).argmax(2) == y[:, None]).float().mean().item()


def test_it_leaves_less_than_the_cross_entropy_of_mean_logits():
    x, y = waves(60, 11)
    budget = "attack.eps=0.3"
    mean = left(adversary("eot_pgd", budget, "attack.steps=30"), x, y)
    by_margin = left(adversary("eot_margin", budget), x, y)
    assert by_margin < mean - 0.01, (by_margin, mean)  # by 0.028; on other clips by 0.021 and 0.014
