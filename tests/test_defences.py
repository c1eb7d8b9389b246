"""The two stages of defence: halves and weights of Eq. 5, random resizing and padding by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedser.attacks import Adversary
from fedser.config.components import check_node
from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.defences.randomisation import Randomise
from fedser.errors import InputError
from fedser.randomness import generator
from fedser.training.adversarial import AdversarialTraining
from fedser.training.objective import Samples


class Recorder:
    """An attack that adds 1000 and remembers how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, x, y, seed, *, lengths):
        self.calls.append((x, seed, lengths))
        return x + 1000


def samples(n):
    """n samples [n, 1, 1, 1], sample i being i, its label 10 · i and its length 100 · i."""
    return Samples.of(torch.arange(n).float().view(n, 1, 1, 1), 10 * torch.arange(n), 100 * torch.arange(n))


def split(x):
    """(originals, adversarials) by index of the sample they were made from."""
    values = x.flatten().tolist()
    return [v for v in values if v < 1000], [v - 1000 for v in values if v >= 1000]


def test_disjoint_halves_are_a_partition():
    attack = Recorder()
    made = AdversarialTraining(attack).start_round(None, samples(8), round=2, seed=0)
    original, attacked = split(made.x)
    assert len(original) == len(attacked) == 4
    assert sorted(original + attacked) == list(range(8))
    assert made.y.tolist() == [10 * v for v in original + attacked]
    assert made.lengths.tolist() == [100 * v for v in original + attacked]
    assert made.weight.tolist() == [1.0] * 8
    assert len(attack.calls) == 1  # one large call


def test_of_an_odd_number_the_original_half_has_one_more():
    made = AdversarialTraining(Recorder()).start_round(None, samples(7), round=2, seed=0)
    original, attacked = split(made.x)
    assert (len(original), len(attacked)) == (4, 3)


def test_a_single_sample_stays_original():
    made = AdversarialTraining(Recorder()).start_round(None, samples(1), round=2, seed=0)
    assert (made.x.tolist(), made.y.tolist(), made.weight.tolist()) == ([[[[0.0]]]], [0], [1.0])


def test_paired_halves_are_the_same_samples():
    made = AdversarialTraining(Recorder(), pairing="paired").start_round(None, samples(8), round=2, seed=0)
    original, attacked = split(made.x)
    assert len(set(original)) == 4
    assert attacked == original
    assert made.y.tolist() == [10 * v for v in original + attacked]


def test_the_weighted_mean_is_equation_5():
    made = AdversarialTraining(Recorder(), alpha=0.3).start_round(None, samples(8), round=2, seed=0)
    loss = torch.arange(8.0).square()  # any losses
    is_original = made.x.flatten() < 1000
    expected = 0.3 * loss[is_original].mean() + 0.7 * loss[~is_original].mean()
    torch.testing.assert_close((made.weight * loss).mean(), expected)
    torch.testing.assert_close(made.weight, torch.tensor([0.6] * 4 + [1.4] * 4))


def test_before_the_start_round_nothing_is_attacked():
    attack = Recorder()
    given = samples(8)
    made = AdversarialTraining(attack, start_round=3).start_round(None, given, round=2, seed=0)
    assert made is given
    assert made.weight.tolist() == [1.0] * 8
    assert attack.calls == []


def test_halves_are_drawn_anew_each_round_and_again_the_same():
    training = AdversarialTraining(Recorder())
    drawn = [
        tuple(split(training.start_round(None, samples(40), round=r, seed=s).x)[0])
        for r, s in [(2, 0), (3, 0), (2, 1), (2, 0)]
    ]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3
    seeds = [seed for _, seed, _ in training.attack.calls]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3


def test_the_lengths_reach_the_attack():
    attack = Recorder()
    AdversarialTraining(attack).start_round(None, samples(8), round=2, seed=0)
    ((x, _, lengths),) = attack.calls
    assert lengths.tolist() == (100 * x.flatten()).tolist()


FGSM = {
    "_target_": "fedser.attacks.Adversary", "name": "fgsm", "eps": 0.05, "labels": "predicted",
    "method": {"_target_": "fedser.attacks.fgsm.FGSM", "_partial_": True},
}  # fmt: skip


def training_node(**options):
    return {"_target_": "fedser.training.adversarial.AdversarialTraining", **options}


@pytest.mark.parametrize("key, value", [("alpha", 1.5), ("pairing", "both"), ("start_round", 0)])
def test_bad_settings_name_their_key(key, value):
    with pytest.raises(InputError, match=rf"defence\.training\.{key}={value} must"):
        check_node(training_node(attack=FGSM, **{key: value}), "defence.training")


def test_training_against_no_attack():
    check_node(training_node(attack=FGSM), "defence.training")
    with pytest.raises(InputError, match=r"defence\.training\.attack=none is no attack .* attack=fgsm"):
        check_node(training_node(attack={"name": "none", "eps": None, "labels": None}), "defence.training")


# --- randomisation ---


def test_pads_with_the_value_at_the_drawn_offset():
    x = torch.full((1, 1, 2, 2), 3.0)
    randomise = Randomise(frames=(2, 4), mels=(2, 4), size=(4, 5), value=0.5)
    out = randomise(x, draws=torch.tensor([[3, 2, 1, 2]]))
    p = 0.5
    assert out[0, 0].tolist() == [[p, p, p, p, p], [p, p, 3, 3, p], [p, p, 3, 3, p], [p, p, 3, 3, p]]


def test_resizes_bilinearly_from_corner_to_corner():
    x = torch.tensor([[0.0, 4.0], [8.0, 12.0]])[None, None]
    out = Randomise(frames=(2, 4), mels=(2, 4), size=(3, 3))(x, draws=torch.tensor([[3, 3, 0, 0]]))
    assert out[0, 0].tolist() == [[0.0, 2.0, 4.0], [4.0, 6.0, 8.0], [8.0, 10.0, 12.0]]


def test_equals_resizing_sample_by_sample():
    x = torch.randn(6, 1, 373, 64)
    randomise = Randomise()
    draws = randomise.draws(6, generator(1))
    out = randomise(x, draws=draws)
    for sample, result, (frames, mels, top, left) in zip(x, out, draws.tolist(), strict=True):
        resized = F.interpolate(sample[None], (frames, mels), mode="bilinear", align_corners=True)[0]
        assert torch.equal(result[:, top : top + frames, left : left + mels], resized)
        result[:, top : top + frames, left : left + mels] = 0.5
        assert (result == 0.5).all()


def test_draws_cover_the_half_open_ranges_and_every_offset():
    draws = Randomise().draws(4000, generator(0))
    frames, mels, top, left = draws.T
    assert sorted(frames.unique().tolist()) == list(range(373, 380))
    assert sorted(mels.unique().tolist()) == [64, 65]
    for frame in range(373, 380):
        assert sorted(top[frames == frame].unique().tolist()) == list(range(380 - frame + 1))
    for mel in (64, 65):
        assert sorted(left[mels == mel].unique().tolist()) == list(range(66 - mel + 1))


def test_every_sample_has_its_own_draw_whatever_the_batches():
    x = torch.randn(1, 1, 373, 64).expand(9, -1, -1, -1)
    randomise = Randomise().eval()
    whole = randomise(x, generator(3))
    assert len({tuple(sample.flatten().tolist()) for sample in whole}) > 1
    one = generator(3)
    torch.testing.assert_close(torch.cat([randomise(part, one) for part in x.split(2)]), whole, rtol=0, atol=0)
    assert not torch.equal(randomise(x, generator(4)), whole)


def test_gradients_flow_to_every_input_cell():
    x = torch.randn(3, 1, 373, 64, requires_grad=True)
    out = Randomise()(x, generator(0))
    assert out.shape == (3, 1, 380, 66)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert (gradient > 0).all()


def test_the_global_generator_serves_where_none_is_given():
    x = torch.randn(4, 1, 373, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = Randomise()(x)
        torch.manual_seed(5)
        assert torch.equal(Randomise()(x), first)


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"frames": (373, 382)}, "frames"),
        ({"mels": (64, 68)}, "mels"),
        ({"frames": (375, 375)}, "frames"),
    ],
)
def test_ranges_that_do_not_fit(settings, key):
    with pytest.raises(InputError, match=rf"defence\.inference\.{key}"):
        Randomise(**settings)


@pytest.mark.parametrize("shape, key", [((374, 64), "frames"), ((373, 65), "mels")])
def test_ranges_that_would_shrink_the_input(shape, key):
    with pytest.raises(InputError, match=rf"only enlarges, but defence\.inference\.{key}"):
        Randomise()(torch.zeros(1, 1, *shape))


# --- the config group ---


def defence(*overrides):
    return validate(compose(overrides)).defence


@pytest.mark.parametrize(
    "name, training, inference",
    [("none", False, False), ("randomise", False, True), ("adversarial", True, False), ("two_stage", True, True)],
)
def test_every_defence_composes(name, training, inference):
    chosen = defence("attack=pgd", f"defence={name}", "dataset=emodb")
    assert chosen.name == name
    made = [part and part.build() for part in (chosen.training, chosen.inference)]
    assert isinstance(made[0], AdversarialTraining) is training and isinstance(made[1], nn.Module) is inference
    assert [part is None for part in made] == [not training, not inference]


@pytest.mark.parametrize(
    ("overrides", "frames", "mels"),
    [
        ([], (373, 380), (64, 66)),
        (["defence.inference.size=[400,72]"], (373, 400), (64, 72)),
        (["features.frames=128"], (128, 135), (64, 66)),
        (["defence.inference.size=[400,72]", "defence.inference.mels=[64,65]"], (373, 400), (64, 65)),
    ],
)
def test_the_ranges_reach_up_to_the_padded_size(overrides, frames, mels):
    inference = defence("dataset=emodb", "defence=randomise", *overrides).inference.build()
    assert inference.ranges == {"frames": frames, "mels": mels}


def test_training_defaults_to_the_threat_and_can_differ():
    assert defence("attack=pgd", "defence=two_stage").training.build().attack.name == "pgd"
    attack = (
        defence("attack=pgd", "defence=adversarial", "defence.training.attack=${attacks.fgsm}").training.build().attack
    )
    assert isinstance(attack, Adversary)
    assert attack.name == "fgsm"


def test_configured_training_keeps_the_budget():
    training = defence("attack=fgsm", "defence=adversarial").training.build()
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(8, 1, 4, 3), torch.arange(8) % 3
    made = training.start_round(model, Samples.of(x, y), round=2, seed=0)
    out, labels = made.x, made.y
    assert torch.isin(out[:4], x).all()
    partners = [int((x - sample).abs().flatten(1).amax(1).argmin()) for sample in out[4:]]
    assert labels[4:].tolist() == y[partners].tolist()
    torch.testing.assert_close((out[4:] - x[partners]).abs(), torch.full((4, 1, 4, 3), 0.05), atol=1e-5, rtol=0)
