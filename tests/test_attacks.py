"""The adapter: parity with ART in feature units, the budget, and no trace left behind."""

from functools import partial
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import torchattacks
from omegaconf import OmegaConf
from torch import nn
from torchattacks.attack import Attack
from toy import accuracy, randomisation, right, trained

from fedser.attacks import Adversary, BudgetError, Defended, fgsm, margin
from fedser.config import compose
from fedser.config.components import build, component
from fedser.config.validation import plain
from fedser.defences.randomisation import Randomise
from fedser.errors import InputError, RunError
from fedser.randomness import generator

CONF = str(Path(__file__).parents[1] / "conf")
FIXTURE = Path(__file__).parent / "fixtures" / "art_attacks.npz"
MEMBERS = ["fgsm", "pgd", "pgd_strong", "mifgsm"]  # of the ensemble
# Every attack that works alone, with settings that make it quick.
ATTACKS = {
    "fgsm": [],
    "pgd": [],
    "pgd_strong": [],
    "deepfool": [],
    "eot_pgd": ["attack.eot=2"],
    "apgd": ["attack.steps=5"],
    "apgd_dlr": ["attack.steps=5"],
    "square": ["attack.queries=30"],
    "cw": ["attack.steps=10", "attack.searches=2", "attack.lr=0.05"],
    "mifgsm": [],
    "noise": [],
    "ensemble": [],
    "autoattack": [
        *(f"attack.members.{name}.steps=4" for name in ("apgd_ce", "apgd_t", "fab_t")),
        "attack.members.square.queries=10",
        *(f"attack.rand.{name}.{setting}" for name in ("apgd_ce", "apgd_dlr") for setting in ("steps=4", "eot=2")),
    ],
}
DETERMINED = ["fgsm", "pgd", "deepfool", "mifgsm", "noise"]  # the same on any device: no draws, or those of the CPU


def composed(name, *overrides):
    mounted = [f"+attack@attacks.{member}={member}" for member in MEMBERS]
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return hydra.compose(overrides=[*mounted, f"+attack={name}", *overrides])


def adversary(name, *overrides):
    return hydra.utils.instantiate(composed(name, *overrides).attack)


def quick(name, *overrides):
    return adversary(name, *ATTACKS[name], *overrides)


class ReferenceNet(nn.Module):
    """The net that ART attacked (see the fixture's `model/` arrays)."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool, self.fc = nn.AdaptiveAvgPool2d((5, 4)), nn.Linear(320, 7)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.b1(self.c1(x)).relu(), 2)
        return self.fc(self.pool(self.b2(self.c2(x)).relu()).flatten(1))


@pytest.fixture
def art():
    data = dict(np.load(FIXTURE))
    net = ReferenceNet()
    net.load_state_dict({k.removeprefix("model/"): torch.tensor(data[k]) for k in data if k.startswith("model/")})
    return net.eval(), torch.tensor(data["x"]), torch.tensor(data["y"]), data


WORN = Randomise(frames=(40, 44), mels=(16, 18), size=(43, 17), value=0.5)  # on the fixture's inputs


def linear():
    """Two classes; the loss of class 0 falls along (1, -2, 0, 3). Small weights: a saturated softmax has no slope."""
    layer = nn.Linear(4, 2, bias=False)
    layer.load_state_dict({"weight": torch.tensor([[0.01, -0.02, 0.0, 0.03], [0.0, 0.0, 0.0, 0.0]])})
    return nn.Sequential(nn.Flatten(), layer)


# --- results ---


def test_fgsm_on_a_linear_model_by_hand():
    x = torch.tensor([[10.0, -20.0, 5.0, 1.0]]).view(1, 1, 2, 2)  # far outside [0, 1]
    expected = x + 0.05 * torch.tensor([-1.0, 1.0, 0.0, -1.0]).view(1, 1, 2, 2)
    x_adv = adversary("fgsm")(linear(), x, None, 0)
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)
    assert x_adv[0, 0, 1, 0] == 5.0  # what did not move is exactly what it was


def test_pgd_on_a_linear_model_by_hand():
    x = torch.zeros(1, 1, 2, 2)
    attack = adversary("pgd", "attack.alpha=0.02", "attack.steps=2", "attack.labels=true")
    expected = 0.04 * torch.tensor([-1.0, 1.0, 0.0, -1.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(attack(linear(), x, torch.tensor([0]), 0), expected, atol=1e-6, rtol=0)
    # With the steps of the paper's code, larger than eps, the budget ends the way.
    expected = 0.05 * expected.sign()
    torch.testing.assert_close(adversary("pgd")(linear(), x, None, 0), expected, atol=1e-6, rtol=0)


def test_labels_say_what_to_lead_away_from():
    x = torch.tensor([-1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)  # predicted as 1, truly 0
    wrong, y = linear(), torch.tensor([0])
    toward_0 = adversary("fgsm")(wrong, x, y, 0)
    toward_1 = adversary("fgsm", "attack.labels=true")(wrong, x, y, 0)
    torch.testing.assert_close(toward_0 - x, x - toward_1)
    assert toward_0[0, 0, 0, 0] > -1 > toward_1[0, 0, 0, 0]
    assert torch.equal(adversary("fgsm")(wrong, x, y, 0, predictions=y), toward_1)


@pytest.mark.parametrize("name, passes", [("fgsm", 1), ("deepfool", 3), ("pgd", 6)])
def test_predicted_labels_cost_no_pass_of_their_own(art, name, passes):
    net, x, _, _ = art
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    settings = ["attack.steps=3"] if name == "deepfool" else []
    attack = adversary(name, *settings)
    x_adv = attack(net, x[:8], None, 0)
    assert len(seen) == passes  # torchattacks' PGD wants labels: one pass more than its five steps
    with torch.no_grad():
        predicted = net(x[:8]).argmax(1)
    assert torch.equal(attack(net, x[:8], None, 0, predictions=predicted), x_adv)


def test_fgsm_is_torchattacks(art):
    net, x, y, _ = art
    inside = (0.2 * x + 0.5).clamp(0, 1)
    ours = fgsm.FGSM(net, eps=0.3, clip=(0, 1))(inside, y)
    torch.testing.assert_close(ours, torchattacks.FGSM(net, eps=0.3)(inside, y), atol=1e-6, rtol=0)


def test_noise_is_a_sign_times_eps_and_asks_the_model_nothing():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            raise AssertionError("noise knows nothing of the model")

    x = torch.randn(4, 1, 50, 40, generator=generator(0, "x"))
    noise = adversary("noise", "attack.eps=0.1", "attack.labels=predicted")
    change = noise(Silent(), x, None, 3) - x
    torch.testing.assert_close(change.abs(), torch.full_like(x, 0.1), atol=1e-6, rtol=0)
    assert abs((change > 0).float().mean() - 0.5) < 4 * 0.5 / x.numel() ** 0.5  # four standard deviations
    assert torch.equal(noise(Silent(), x, None, 3) - x, change)
    assert not torch.equal(noise(Silent(), x, None, 4) - x, change)


def test_a_library_method_is_told_the_classes_and_the_seed(art):
    net, x, y, _ = art
    told = {}

    class Asks(Shift):
        def __init__(self, model, eps, by, n_classes=10, seed=0):
            super().__init__(model, eps, by)
            told.update(n_classes=n_classes, seed=seed)

    Adversary("asks", 0.1, "true", partial(Asks, by=0))(net, x, y, 2**40 + 5)
    assert told == {"n_classes": 7, "seed": 5}
    Adversary("asks", 0.1, "true", partial(Asks, by=0), seed=9)(net, x, y, 5)
    assert told == {"n_classes": 7, "seed": 9}


def test_fab_finds_the_boundary_of_a_linear_model():
    # Logits (1, -2, 0, 3)·x and 0: at x = (1, 0, 0, 1) the label leads by 4, and every cell has to move by 4 / (1+2+3).
    layer = nn.Linear(4, 2, bias=False)
    layer.load_state_dict({"weight": torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])})
    net, x = nn.Sequential(nn.Flatten(), layer), torch.tensor([[1.0, 0.0, 0.0, 1.0]]).view(1, 1, 2, 2)
    fab = partial(torchattacks.FAB, multi_targeted=True, steps=20)
    x_adv = Adversary("fab", 0.7, "true", fab)(net, x, torch.tensor([0]), 0)
    moved = (x_adv - x).flatten()
    torch.testing.assert_close(moved, 4 / 6 * torch.tensor([-1.0, 1.0, 0.0, -1.0]), atol=0.04, rtol=0)  # eta is 1.05
    assert net(x_adv).argmax(1) == 1
    assert torch.equal(Adversary("fab", 0.6, "true", fab)(net, x, torch.tensor([0]), 0), x)  # the boundary is too far


@pytest.mark.rounding
@pytest.mark.parametrize(
    "key, name, settings, flipped",
    [
        ("fgsm_predicted", "fgsm", ["eps=0.3"], 0),
        ("fgsm_true", "fgsm", ["eps=0.3", "labels=true"], 0),
        ("pgd_step0.6_predicted", "pgd", ["eps=0.3", "alpha=0.6"], 0),
        # Cells whose gradient is all but zero may take another sign in another order of summation.
        ("pgd_step0.075_true", "pgd", ["eps=0.3", "alpha=0.075", "labels=true"], 1e-3),
        ("deepfool_5", "deepfool", [], 0),
        ("deepfool_50", "deepfool", ["steps=50"], 0),
    ],
)
def test_parity_with_art(art, key, name, settings, flipped):
    net, x, y, data = art
    expected = torch.tensor(data[f"adv/{key}"])
    assert (expected - x).abs().amax(dim=(1, 2, 3)).min() > 1e-3  # every sample moved
    x_adv = adversary(name, *(f"attack.{s}" for s in settings))(net, x, y, 0)
    assert ((x_adv - expected).abs() > 1e-5).float().mean() <= flipped


def test_a_null_step_is_a_quarter_of_eps(art):
    net, x, y, _ = art
    settings = ("attack.eps=0.3", "attack.labels=true")
    null = adversary("pgd", "attack.alpha=null", *settings)(net, x, y, 0)
    assert torch.equal(null, adversary("pgd", "attack.alpha=0.075", *settings)(net, x, y, 0))
    assert not torch.equal(null, adversary("pgd", "attack.alpha=0.1", *settings)(net, x, y, 0))


def test_an_explicit_box_is_where_the_examples_stay(art):
    net, x, y, _ = art
    inside = (0.2 * x + 0.5).clamp(0, 1)
    for name in ATTACKS:
        x_adv = quick(name, "attack.box=[0,1]", "attack.eps=0.3")(net, inside, y, 0)
        assert not torch.equal(x_adv, inside)
        assert x_adv.min() >= -1e-6
        assert x_adv.max() <= 1 + 1e-6
    same = adversary("fgsm", "attack.box=[0,1]", "attack.eps=0.3", "attack.labels=true")(net, inside, y, 0)
    torch.testing.assert_close(same, torchattacks.FGSM(net, eps=0.3)(inside, y), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_chunks_make_no_difference(art, name):
    net, x, y, _ = art
    attack = quick(name, "attack.eps=0.3")
    torch.testing.assert_close(attack(net, x, y, 5, batch_size=7), attack(net, x, y, 5), atol=1e-5, rtol=0)


def test_the_seed_decides_the_random_start(art):
    net, x, y, _ = art
    attack = adversary("pgd_strong")
    assert torch.equal(attack(net, x, y, 1), attack(net, x, y, 1))
    assert not torch.equal(attack(net, x, y, 1), attack(net, x, y, 2))


@pytest.mark.parametrize("name", ATTACKS)
def test_dtype_and_empty_batches(art, name):
    net, x, y, _ = art
    left_out = ["attack.members.fab_t=null"] if name == "autoattack" else []  # torchattacks' FAB is in float32
    x_adv = quick(name, *left_out)(net.double(), x[:2].double(), y[:2], 0)
    assert x_adv.dtype == torch.float64
    assert not x_adv.requires_grad
    assert quick(name)(net, x[:0], y[:0], 0).shape == (0, 1, 40, 16)


def test_under_no_grad_and_inference_mode(art):
    net, x, y, _ = art
    expected = adversary("deepfool")(net, x, y, 0)
    with torch.no_grad():
        assert torch.equal(adversary("deepfool")(net, x, y, 0), expected)
    with torch.inference_mode():
        assert torch.equal(adversary("deepfool")(net, x.clone(), y.clone(), 0), expected)
        adversary("pgd_strong")(net, x.clone(), y.clone(), 0)


# --- the budget ---


class Shift(Attack):
    """Moves every cell by `by`, whatever its budget."""

    def __init__(self, model, eps, by):
        super().__init__("Shift", model)
        self.by = by

    def forward(self, images, labels):
        return images + self.by


def shift(by, eps=0.05, norm="Linf", **settings):
    # x of zeros has the box [-2, 2] or narrower: `by` is a share of its width.
    return Adversary("shift", eps, "predicted", partial(Shift, by=by), norm, **settings)


X = torch.zeros(3, 1, 2, 2)


def test_a_breach_raises_and_says_by_how_much():
    with pytest.raises(BudgetError, match=r"shift .* 3 of 3 samples .* eps = 0.05 \(Linf\), .* 0.5\."):
        shift(0.5, box=[0.0, 1.0])(linear(), X, None, 0)
    assert issubclass(BudgetError, RunError)


def test_an_l2_budget_is_per_sample():
    # Each of four cells moves by 0.04, so a sample by 0.08.
    assert torch.allclose(shift(0.04, eps=0.09, norm="L2", box=[0, 1])(linear(), X, None, 0), X + 0.04)
    with pytest.raises(BudgetError, match=r"eps = 0.07 \(L2\), the furthest by 0.08"):
        shift(0.04, eps=0.07, norm="L2", box=[0, 1])(linear(), X, None, 0)


def test_leaving_the_box_raises():
    with pytest.raises(BudgetError, match=r"left its box: cells in \[-0.04"):
        shift(-0.04, box=[0, 1])(linear(), X, None, 0)


def test_inputs_outside_their_box_are_not_pulled_in_silently(art):
    net, x, y, _ = art  # z-scored, about -4 to 4
    with pytest.raises(BudgetError, match=r"fgsm .* Its box is \[0, 1\], the inputs lie in \[-"):
        adversary("fgsm", "attack.box=[0,1]")(net, x, y, 0)


def test_what_is_not_a_number_raises():
    with pytest.raises(BudgetError, match="NaN"):
        shift(float("nan"))(linear(), X, None, 0)
    with pytest.raises(RunError, match="input of attack shift"):
        shift(0)(linear(), X + torch.inf, None, 0)


def test_eps_means_nothing_to_deepfool(art):
    net, x, y, _ = art
    tiny = adversary("deepfool", "attack.eps=0.000001")
    assert tiny.eps is None
    assert torch.equal(tiny(net, x, y, 0), adversary("deepfool")(net, x, y, 0))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_strong", "mifgsm", "apgd"])
@pytest.mark.parametrize("eps", [0, 0.05, 2.0])
def test_the_library_never_clamps_unbounded_features(name, eps):
    x = 30 * torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    attack = adversary(name, f"attack.eps={eps}", *(["attack.alpha=null"] if name == "pgd" else []))
    x_adv = attack(linear(), x, torch.zeros(4, dtype=torch.long), 0)
    moved = (x_adv - x).abs()
    assert moved.max() <= eps + 1e-4
    # The cell of weight 3 is pushed as far as the budget lets it, also where x is largest.
    torch.testing.assert_close(moved[:, 0, 1, 1], torch.full((4,), float(eps)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["attack.labels=maybe"], "attack.labels=maybe must be predicted or true"),
        (["attack.eps=-1"], "attack.eps=-1 must be greater than 0"),
        (["attack.eps=null"], "attack.eps of pgd must be a number"),
        (["attack.norm=L1"], "attack.norm=L1 must be one of Linf, L2"),
        (["attack.box=[1,0]"], "attack.box of pgd must be [low, high]"),
        (["attack.steps=0"], "attack.steps=0 must be a whole number of at least 1"),
        (["attack.steps=true"], "attack.steps=true must be a whole number of at least 1"),
        (["+attack.stesp=3"], "attack.stesp of pgd: this attack has no such setting"),
        (["+attack.eot=0"], "attack.eot=0 must be a whole number of at least 1"),
        (["+attack.eot=null"], "attack.eot=null must be a whole number of at least 1"),
        (["+attack.adaptive=maybe"], "attack.adaptive=maybe must be true or false"),
    ],
)
def test_bad_settings_name_their_key(overrides, message):
    attack = component("attack", OmegaConf.to_container(composed("pgd", *overrides).attack, resolve=True))
    with pytest.raises(InputError) as raised:
        attack.check()
        attack.build()
    assert message in str(raised.value)


# --- no trace ---


def state(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_same(before, after):
    for a, b in zip(before[2] + before[3], after[2] + after[3], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert before[:2] == after[:2]
    assert torch.equal(before[4], after[4])
    assert before[5] == after[5]


@pytest.fixture
def half_frozen(art):
    """A model in train mode with one module in eval mode, one layer frozen, and gradients on it."""
    net, x, y, _ = art
    net.train()
    net.b1.eval()
    net.c1.requires_grad_(False)
    net.fc.weight.grad = torch.full_like(net.fc.weight, 7.0)
    return net, x, y


LIBRARY = {
    "torchattacks.FAB": Adversary("fab", 0.3, "true", torchattacks.FAB, steps=2),
    "torchattacks.APGDT": Adversary("apgdt", 0.3, "true", torchattacks.APGDT, steps=2),
    "torchattacks.DeepFool": Adversary("deepfool", None, "true", torchattacks.DeepFool, "L2", steps=2),
    "torchattacks.APGD": Adversary("apgd", 0.3, "true", torchattacks.APGD, steps=2),
    "torchattacks.PGDL2": Adversary("pgdl2", 0.3, "true", torchattacks.PGDL2, "L2", alpha=None, steps=2),
}


@pytest.mark.parametrize("randomise", [None, WORN], ids=["plain", "randomised"])
@pytest.mark.parametrize("name", [*ATTACKS, *LIBRARY])
def test_nothing_is_left_behind(half_frozen, name, randomise):
    net, x, y = half_frozen
    attack = LIBRARY[name] if name in LIBRARY else quick(name)
    before = state(net)
    x_adv = attack(net, x, y, 0, randomise=randomise)
    assert_same(before, state(net))
    assert WORN.training
    assert not torch.equal(x_adv, x)
    assert not x_adv.requires_grad
    assert x.grad is None
    assert not x.requires_grad


def test_nothing_is_left_behind_by_an_exception(half_frozen):
    net, x, y = half_frozen
    before = state(net)

    class Fails(Shift):
        def forward(self, images, labels):
            torch.rand(1)
            self.model(images.requires_grad_()).sum().backward()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Adversary("fails", 0.1, "true", partial(Fails, by=0))(net, x, y, 0)
    assert_same(before, state(net))


def test_the_attack_sees_the_model_in_eval_mode(half_frozen):
    net, x, y = half_frozen
    in_train_mode = adversary("fgsm", "attack.eps=0.3")(net, x, y, 0)
    assert torch.equal(adversary("fgsm", "attack.eps=0.3")(net.eval(), x, y, 0), in_train_mode)


def test_a_model_is_not_kept_alive(art):
    import gc
    import weakref

    model = linear()
    adversary("pgd")(model, X, None, 0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ATTACKS)
def test_on_a_gpu(half_frozen, name):
    net, x, y = half_frozen
    attack = quick(name, "attack.eps=0.3")
    on_cpu = attack(net, x, y, 0)
    net, x, y = net.cuda(), x.cuda(), y.cuda()
    before, generator = state(net), torch.cuda.get_rng_state()
    x_adv = attack(net, x, y, 0)
    assert_same(before, state(net))
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    assert x_adv.device == x.device
    assert torch.equal(attack(net, x, y, 0), x_adv)
    if name in DETERMINED:
        assert ((x_adv.cpu() - on_cpu).abs() > 1e-3).float().mean() < 0.01


# --- a randomisation that the attacker knows of ---


def test_the_defended_model_is_the_mean_over_draws():
    net, wear = trained(), randomisation()
    x, _ = right(3, seed=0)
    torch.manual_seed(4)
    logits = Defended(net, wear, draws=5)(x)
    torch.manual_seed(4)
    draws = wear.draws(15)
    by_hand = [net(wear(x, draws=draws[[k, 5 + k, 10 + k]])) for k in range(5)]
    torch.testing.assert_close(logits, sum(by_hand) / 5)


def test_the_gradient_through_the_randomisation_by_finite_differences():
    wear, weight = Randomise((4, 7), (3, 5), (6, 4)), torch.randn(6, 4, dtype=torch.float64, generator=generator(0))
    draws = wear.draws(8, generator(1))
    x = torch.randn(8, 1, 4, 3, dtype=torch.float64, generator=generator(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (wear(x, draws=draws) * weight).square().sum((1, 2, 3)), x)


def under_fresh_draws(net, x, y):
    """Accuracy over twenty fresh draws of the randomisation, the same for every x."""
    wear, draws = randomisation(), generator(0, "fresh")
    return sum(accuracy(net, wear(x, draws), y) for _ in range(20)) / 20


@pytest.mark.rounding
def test_knowing_the_randomisation_makes_the_attack_stronger():
    net, (x, y) = trained(), right(60, seed=1)
    settings = ["attack.eps=0.3", "attack.steps=10"]
    oblivious = adversary("pgd_strong", *settings)(net, x, y, 0)
    adaptive = adversary("eot_pgd", *settings)(net, x, y, 0, randomise=randomisation())
    assert under_fresh_draws(net, x, y) > 0.95
    # On the undefended model it is the other way round: each is best at what it was made for.
    assert accuracy(net, oblivious, y) < accuracy(net, adaptive, y)
    assert under_fresh_draws(net, adaptive, y) < under_fresh_draws(net, oblivious, y) - 0.05  # by 0.14


def test_an_adaptive_attack_without_a_randomisation_is_its_method(art):
    net, x, y, _ = art
    assert torch.equal(adversary("eot_pgd")(net, x, y, 3), adversary("pgd_strong")(net, x, y, 3))
    assert adversary("eot_pgd").adaptive
    assert not adversary("pgd_strong").adaptive


@pytest.mark.parametrize("name", ATTACKS)
def test_the_seed_decides_the_draws_too(art, name):
    net, x, y = art[0], art[1][:6], art[2][:6]
    attack = quick(name, "attack.eps=0.3")
    once = attack(net, x, y, 1, randomise=WORN)
    assert torch.equal(attack(net, x, y, 1, randomise=WORN), once)
    assert not torch.equal(attack(net, x, y, 2, randomise=WORN), once)
    if attack.eps is not None:
        assert (once - x).abs().max() <= 0.3 + 1e-5


def test_predictions_of_the_undefended_model_are_not_used(art):
    net, x, _, _ = art
    attack, wrong = adversary("pgd"), (net(x).argmax(1) + 1) % 7
    expected = attack(net, x, None, 0, randomise=WORN)
    assert torch.equal(attack(net, x, None, 0, predictions=wrong, randomise=WORN), expected)
    assert not torch.equal(attack(net, x, None, 0, predictions=wrong), attack(net, x, None, 0))


@pytest.mark.parametrize("eot, batch_size, at_a_time", [(4, None, 16), (20, None, 20), (4, 9, 8), (1, 9, 9)])
def test_draws_count_for_the_memory(art, eot, batch_size, at_a_time):
    net, x, y, _ = art
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    attack = adversary("fgsm", f"+attack.eot={eot}", "attack.labels=true")
    attack(net, x, y, 0, batch_size=batch_size, randomise=WORN)
    assert max(seen) == at_a_time
    assert sum(seen) == eot * len(x)


def test_the_padding_is_in_feature_units(art):
    net, x, y, _ = art
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    adversary("fgsm", "attack.labels=true")(net, torch.zeros_like(x), y, 0, randomise=WORN)
    inputs = torch.cat(seen)
    assert inputs.shape[2:] == (43, 17)
    assert set(inputs.unique().tolist()) == {0.0, 0.5}


def test_the_margin_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [0.5, -0.5]


# --- the config group ---


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_composes_twice(name):
    node = composed(name, f"+attack@attacks.{name}={name}" if name not in MEMBERS else f"attacks.{name}.eps=0.2")
    node.attacks[name].labels = True
    assert {"name", "eps", "labels"} <= set(node.attack)
    assert node.attack.name == name
    threat, named = hydra.utils.instantiate(node.attack), hydra.utils.instantiate(node.attacks[name])
    assert named.labels == "true"
    for attribute in ("eps", "labels", "norm", "adaptive"):
        assert hasattr(threat, attribute)
    kind = {"square": "black-box", "noise": "no knowledge"}.get(name, "white-box")
    assert str(threat).startswith(f"{name}: {kind}, {threat.norm}, ")


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("mounted", ["attack", "attacks.{}"])
def test_clients_get_it_as_plain_values(art, name, mounted):
    net, x, y, _ = art
    path = mounted.format(name)
    key = f"{path}.eps=0.1"
    overrides = [f"attack={name}" if mounted == "attack" else "attack=none", key]
    values = plain(compose.compose(overrides))
    node = values["attack"] if mounted == "attack" else values["attacks"][name]
    assert not OmegaConf.is_config(node)
    attack = build(node)
    assert attack.eps == (None if name in ("deepfool", "cw") else 0.1)
    for members in ("members", "rand"):
        assert {member.eps for member in getattr(attack, members, {}).values()} <= {0.1}


def test_none_composes():
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        assert hydra.compose(overrides=["+attack=none"]).attack == {"name": "none", "eps": None, "labels": None}


def test_the_threat_model_in_a_line():
    assert str(adversary("pgd", "attack.box=[0,1]")) == (
        "pgd: white-box, Linf, at most 0.05 per cell, inside [0, 1], predicted labels, "
        "random_start=False, alpha=0.1, steps=5, where it knows the randomisation: mean of 10 draws"
    )
    assert str(adversary("eot_pgd")).endswith("steps=10, knows the randomisation: mean of 20 draws")
    assert str(adversary("square")).endswith("where it knows the randomisation: mean of 1 draw")
    assert "randomisation" not in str(adversary("noise"))
