"""Ensembles: who wins per sample, what members share, and AutoAttack against what it should beat."""

import pytest
import torch
from test_attacks import adversary, composed, quick
from torch import nn
from torchattacks.attack import Attack
from toy import accuracy, randomisation, right, trained

from fedser.attacks import Adversary
from fedser.attacks.ensemble import Ensemble
from fedser.errors import InputError
from fedser.randomness import derive

pytestmark = pytest.mark.rounding

GIVEN = []  # (whether it pushed up, how many samples) of each attack


class Push(Attack):
    """Moves every cell by a share of eps."""

    def __init__(self, model, eps, by):
        super().__init__("Push", model)
        self.step = eps * by

    def forward(self, images, labels):
        GIVEN.append((self.step > 0, len(images)))
        return images + self.step


def push(by, **more):
    method = {"_target_": "test_ensemble.Push", "_partial_": True}
    return {"_target_": "fedser.attacks.Adversary", "method": method, "by": by} | more


@pytest.fixture
def given():
    GIVEN.clear()
    return GIVEN


def sign():
    """Class 0 where x is positive, class 1 elsewhere; the further from 0, the surer."""
    layer = nn.Linear(1, 2)
    layer.load_state_dict({"weight": torch.tensor([[1.0], [0.0]]), "bias": torch.zeros(2)})
    return nn.Sequential(nn.Flatten(), layer)


def pushes(labels="true", **members):
    return Ensemble("pushes", 1.0, labels, members)


X = torch.tensor([0.3, 0.8, 5.0, -2.0]).view(4, 1, 1, 1)
Y = torch.zeros(4, dtype=torch.long)


def test_the_first_that_fools_else_the_highest_loss(given):
    x_adv = pushes(up=push(0.5), half=push(-0.5), full=push(-1.0), back=push(-0.9))(sign(), X, Y, 0)
    # 0.3 is fooled by half and 0.8 by full; 5 by none, and lowest at 4; -2 is wrong already.
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([-0.2, -0.2, 4.0, -2.0]))
    assert [count for _, count in given] == [3, 3, 2, 1]  # each attacks what those before it left right


def test_predicted_labels_are_asked_for_or_given(given):
    ensemble, net = pushes("predicted", half=push(-0.5), full=push(-1.0)), sign()
    expected = torch.tensor([-0.2, -0.2, 4.0, -2.0])  # -2 is class 1 now, and pushed up it would be surest
    torch.testing.assert_close(ensemble(net, X, None, 0).flatten(), expected)
    assert torch.equal(ensemble(net, X, None, 0, predictions=net(X).argmax(1)), ensemble(net, X, None, 0))
    assert {attack.labels for attack in ensemble.members.values()} == {"predicted"}


def test_other_members_where_a_randomisation_is_known(given):
    class Silent(nn.Module):
        def forward(self, x, generator=None):
            return x

    ensemble = Ensemble("two", 1.0, "true", {"down": push(-1.0)}, {"up": push(1.0, eot=3)})
    assert ensemble.eot == 3
    ensemble(sign(), X, Y, 0)
    assert {up for up, _ in given} == {False}
    given.clear()
    ensemble(sign(), X, Y, 0, randomise=Silent())
    assert {up for up, _ in given} == {True}


class Shift(nn.Module):
    """A randomisation that adds -1, 0 or 1 in turn."""

    def forward(self, x, generator=None):
        return x + (torch.arange(len(x)) % 3 - 1).float().view(-1, 1, 1, 1)


def test_where_a_randomisation_is_known_the_share_of_draws_decides(given):
    x, y = torch.tensor([0.5, 1.2, 1.7]).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.long)
    ensemble = Ensemble(
        "two", 1.0, "true", {"half": push(-0.6, eot=3), "full": push(-1.0, eot=3), "up": push(0.5, eot=3)}
    )
    x_adv = ensemble(sign(), x, y, 0, randomise=Shift())
    torch.testing.assert_close(x_adv.flatten(), x.flatten() - 1)
    # At 0.5 - 0.6 the mean of the draws is fooled, but one of the three is right still: that sample is attacked on.
    assert [count for _, count in given] == [3, 3, 3]


def test_members_share_the_budget_the_labels_and_the_box():
    ensemble = Ensemble("e", 0.2, True, {"a": push(1.0, eps=0.9, labels="predicted"), "b": None}, box=[-10, 10])
    (attack,) = ensemble.members.values()
    assert (attack.name, attack.eps, attack.labels, attack.box) == ("a", 0.2, "true", (-10, 10))
    assert ensemble.rand is ensemble.members


@pytest.mark.parametrize(
    "members, message",
    [
        ({"cw": {"_target_": "fedser.attacks.Adversary", "method": {"_target_": "fedser.attacks.cw.CW", "_partial_": True}}},
         "attack.members of e: cw has no eps"),
        ({"l2": push(1.0, norm="L2")}, "attack.members of e: l2 is measured in L2, not Linf"),
        ({"none": None}, "attack.members of e has no attack"),
        ({"typo": push(1.0, stesp=3)}, "attack.stesp of typo: this attack has no such setting"),
    ],
)  # fmt: skip
def test_bad_members_are_named(members, message):
    with pytest.raises(InputError, match=message):
        Ensemble("e", 0.1, "true", members)


@pytest.mark.parametrize("key, value", [("labels", "maybe"), ("eps", -1), ("box", [1, 0])])
def test_bad_settings_name_their_key(key, value):
    settings = {"eps": 0.1, "labels": "true", key: value}
    with pytest.raises(InputError, match=f"attack.{key} of a"):
        Ensemble("e", members={"a": push(1.0)}, **settings)


@pytest.mark.parametrize("first", ["fgsm", "pgd_strong"])
def test_it_is_at_least_as_strong_as_each_member(first):
    net, (x, y) = trained(), right(80, seed=1)
    ensemble = adversary("ensemble", "attack.eps=0.25")
    members = ensemble.members
    ensemble.members = {first: members[first]} | members
    fooled = net(ensemble(net, x, y, 0)).argmax(1) != y
    assert 10 < fooled.sum() < 70
    for name, member in members.items():
        alone = net(member(net, x, y, derive(0, name))).argmax(1) != y
        # Random starts depend on which samples are left: on all where it comes first.
        assert (fooled | ~alone).all() or name == "pgd_strong" != first, name


def test_it_knows_a_randomisation():
    net, (x, y) = trained(), right(30, seed=1)
    ensemble, wear = quick("ensemble", "attack.eps=0.35"), randomisation()
    draws = torch.Generator().manual_seed(0)
    knowing = ensemble(net, x, y, 0, randomise=wear)
    oblivious = ensemble(net, x, y, 0)
    knowing, oblivious = (
        sum(accuracy(net, wear(x_adv, draws), y) for _ in range(20)) for x_adv in (knowing, oblivious)
    )
    assert knowing < oblivious - 1  # by 3 of 20


def autoattack(eps):
    return adversary(
        "autoattack",
        f"attack.eps={eps}",
        *(f"attack.members.{name}.steps=20" for name in ("apgd_ce", "apgd_t", "fab_t")),
        "attack.members.square.queries=100",
    )


def test_autoattack_is_at_least_as_strong_as_pgd():
    net, (x, y) = trained(), right(40, seed=1)
    attack = autoattack(0.25)
    x_adv = attack(net, x, y, 0)
    assert (x_adv - x).abs().max() <= 0.25 + 1e-5
    pgd = adversary("pgd_strong", "attack.eps=0.25", "attack.steps=20")(net, x, y, 0)
    luck = 2 / 40  # of a random start, which depends on what is left to attack
    assert 0.1 < accuracy(net, x_adv, y) <= accuracy(net, pgd, y) + luck
    for name, member in attack.members.items():
        assert accuracy(net, x_adv, y) <= accuracy(net, member(net, x, y, derive(0, name)), y) + luck


def test_autoattack_averages_over_draws_where_a_randomisation_is_known():
    attack = autoattack(0.3)
    assert list(attack.members) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert list(attack.rand) == ["apgd_ce", "apgd_dlr"]
    assert {member.eot for member in attack.rand.values()} == {20}
    assert {member.settings["steps"] for member in attack.rand.values()} == {100}


def test_the_threat_model_in_a_line():
    ensemble = adversary("ensemble")
    expected = "ensemble: white-box, Linf, at most 0.05 per cell, features without bounds, true labels, per sample the worst of "
    assert str(ensemble) == expected + "fgsm, pgd, pgd_strong, mifgsm"
    assert "or of apgd_ce, apgd_dlr where a randomisation is known (mean of 20 draws)" in str(autoattack(0.1))
    black = Ensemble("e", 0.1, "true", {name: composed(name).attack for name in ("square", "noise")})
    assert str(black).startswith("e: black-box, ")


def test_one_member_is_that_attack():
    net, (x, y) = trained(), right(20, seed=1)
    ensemble = Ensemble("e", 0.3, "true", {"pgd": composed("pgd").attack})
    alone = Adversary("pgd", 0.3, "true", ensemble.members["pgd"].method, alpha=0.1, steps=5)
    torch.testing.assert_close(ensemble(net, x, y, 0), alone(net, x, y, 0))
