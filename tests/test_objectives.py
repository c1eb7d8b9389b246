"""Methods of adversarial training: each formula by hand, inner attacks and what they leave alone, real speech."""

import copy
from functools import partial
from math import exp, log, sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchattacks
import toy
from conftest import SMALL
from torch import nn

from fedser import compose, run
from fedser.attacks import Adversary
from fedser.attacks.fgsm_random import RandomFGSM
from fedser.attacks.pgd_kl import DivergencePGD
from fedser.config.compose import compose as composed
from fedser.config.validation import validate
from fedser.errors import InputError
from fedser.federation.client_app import ClientState
from fedser.federation.sfat import SFAT
from fedser.training.adversarial import AdversarialTraining
from fedser.training.adversarial_ren import Vanilla
from fedser.training.alp import LogitPairing
from fedser.training.awp import perturbed
from fedser.training.calfat import CalFAT
from fedser.training.fast import Fast
from fedser.training.local import train
from fedser.training.madry import Madry
from fedser.training.mart import Mart
from fedser.training.objective import CrossEntropy, Samples, Step, cross_entropy, scores
from fedser.training.robust import divergence
from fedser.training.similarity import Similarity
from fedser.training.trades import Trades

STEP = Step(round=1, epoch=0, number=0, seed=5)
LN2, LN3 = log(2), log(3)


class Same(nn.Module):
    """Logits that are the input's own numbers, x [n, 1, 1, K] → [n, K]."""

    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(classes, classes, bias=False)
        nn.init.eye_(self.fc.weight)

    def embed(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.fc(self.embed(x))


def rows(*values):
    return torch.tensor(values)[:, None, None, :]


def loss_of(objective, x, x_adv, y, weight=None, **more):
    """The objective's loss of a batch, given the adversarial examples."""
    batch = Samples.of(rows(*x), torch.tensor(y))
    weight = batch.weight if weight is None else torch.tensor(weight)
    batch = Samples(batch.x, batch.y, weight, batch.lengths, **more)
    objective.attack = lambda model, x, y, seed, *, lengths: rows(*x_adv)
    objective.start_round(model := Same(len(x[0])), batch, round=1, seed=0)
    return objective(model, batch, STEP).item()


# Two samples, of weights 1 and 3. Cross-entropies of logits a apart: log(1 + e^-a).
X, X_ADV, Y, WEIGHT = [(1.0, 0.0), (0.0, 2.0)], [(0.0, 0.0), (0.0, 1.0)], [0, 1], [1.0, 3.0]
CLEAN = (log(1 + exp(-1)) + 3 * log(1 + exp(-2))) / 2
ADVERSARIAL = (LN2 + 3 * log(1 + exp(-1))) / 2
APART = (1 * 0.5 + 3 * 0.5) / 2  # both pairs differ by 1 in one of two numbers


def kl(p, q):
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def softmax(*z):
    return [exp(a) / sum(map(exp, z)) for a in z]


DIVERGENCE = (kl(softmax(1, 0), softmax(0, 0)) + 3 * kl(softmax(0, 2), softmax(0, 1))) / 2


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Madry(attack=None), ADVERSARIAL),
        (Vanilla(attack=None, alpha=0.25), 0.25 * CLEAN + 0.75 * ADVERSARIAL),
        (Similarity(attack=None), 0.4 * CLEAN + 0.4 * ADVERSARIAL + 0.2 * APART),
        (Trades(attack=None, beta=6.0), CLEAN + 6 * DIVERGENCE),
        (LogitPairing(attack=None, lam=0.5), (CLEAN + ADVERSARIAL) / 2 + 0.5 * APART),
        (Fast(attack=None, check_every=0), ADVERSARIAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_formula_by_hand(objective, expected):
    assert loss_of(objective, X, X_ADV, Y, WEIGHT) == pytest.approx(expected, rel=1e-5)


def test_mart_by_hand():
    """p(x) = (1/2, 1/4, 1/4), p(x′) = (1, 2, 3) / 6, label 0: the rival is the last class."""
    boosted = -log(1 / 6) - log(1 - 3 / 6)
    expected = boosted + 5 * (1 - 1 / 2) * kl((1 / 2, 1 / 4, 1 / 4), (1 / 6, 2 / 6, 3 / 6))
    assert loss_of(Mart(attack=None), [(LN2, 0.0, 0.0)], [(0.0, LN2, LN3)], [0]) == pytest.approx(expected, rel=1e-5)
    far = loss_of(Mart(attack=None), [(0.0, 0.0, 0.0)], [(0.0, 200.0, 0.0)], [0])
    assert far == pytest.approx(200 + 200 + 5 * 2 / 3 * (400 / 3 - LN3) - LN2, rel=1e-4)  # finite where p rounds to 1


def test_calfat_by_hand():
    """Three samples of class 0, one of class 1, none of class 2, which counts as one: shares 3/5, 1/5, 1/5."""
    adversarial = [(0.0, LN2, LN3)] * 4
    expected = (3 * -log(3 / 8) - log(2 / 8)) / 4  # e^z · π is to each other as 3, 2, 3
    assert loss_of(CalFAT(attack=None), adversarial, adversarial, [0, 0, 0, 1]) == pytest.approx(expected, rel=1e-5)


def test_calfats_inner_attack_sees_the_calibrated_logits():
    seen = []
    objective = CalFAT(attack=lambda model, x, y, seed, *, lengths: seen.append(model(x)) or x)
    samples = Samples.of(rows((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), torch.tensor([0, 0, 0, 1]))
    objective.start_round(Same(2), samples, round=1, seed=0)
    objective(Same(2), samples, STEP)
    torch.testing.assert_close(seen[0].softmax(1)[0], torch.tensor([0.75, 0.25]))


def test_soft_targets_are_trained_towards():
    targets = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    soft = (0.75 * log(1 + exp(-1)) + 0.25 * log(1 + exp(1)) + log(1 + exp(-2))) / 2
    assert loss_of(Vanilla(attack=None, alpha=1.0), X, X_ADV, Y, targets=targets) == pytest.approx(soft, rel=1e-5)


def test_the_divergence_has_its_gradient_through_both():
    here, there = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    p, q = here.softmax(1), there.softmax(1)
    torch.testing.assert_close(divergence(here, there), (p * (p / q).log()).sum(1))
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(divergence(here, there).sum(), (here, there)))


# --- when, and on whom -----------------------------------------------------------------------------------------------


class Recorder:
    """An attack that adds 1000 and remembers how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, x, y, seed, *, lengths):
        self.calls.append((len(x), seed, lengths))
        return x + 1000


class Pairs(Madry):
    """Checks that each adversarial example is its sample's."""

    def loss(self, model, batch):
        assert torch.equal(batch.adversarial, batch.x + 1000)
        return super().loss(model, batch)


class Lengthy(nn.Module):
    """A network that takes lengths."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x, lengths):
        return self.fc(x.flatten(1) / lengths[:, None])


def trained(objective, model, round=1, seed=0):
    samples = Samples.of(torch.arange(10.0).view(5, 1, 1, 2), torch.tensor([0, 1, 0, 1, 0]), torch.arange(1, 6))
    samples = objective.start_round(model, samples, round=round, seed=seed)
    options = {"epochs": 2, "batch_size": 3, "precision": "fp32", "mu": 0.0, "seed": seed}
    return train(model, torch.optim.SGD(model.parameters(), 1e-6), samples, objective, round=round, **options)


@pytest.mark.parametrize(("per", "sizes"), [("batch", [3, 2, 3, 2]), ("round", [5])])
def test_the_inner_attack_is_made_per_batch_or_once_a_round(per, sizes):
    attack = Recorder()
    trained(Pairs(attack=attack, per=per), Same(2))
    assert [size for size, _, _ in attack.calls] == sizes
    seeds = [seed for _, seed, _ in attack.calls]
    assert len(set(seeds)) == len(seeds)
    trained(Pairs(attack=(again := Recorder()), per=per), Same(2))
    assert [seed for _, seed, _ in again.calls] == seeds
    assert all(lengths is None for _, _, lengths in attack.calls)  # this network does without


@pytest.mark.parametrize("per", ["batch", "round"])
def test_lengths_travel_to_networks_that_take_them(per):
    attack = Recorder()
    trained(Pairs(attack=attack, per=per), Lengthy())
    assert sorted(attack.calls[0][2].tolist() + (attack.calls[1][2].tolist() if per == "batch" else [])) == [
        1,
        2,
        3,
        4,
        5,
    ]


@pytest.mark.parametrize("per", ["batch", "round"])
def test_before_the_start_round_it_is_the_cross_entropy(per):
    attack = Recorder()
    late = trained(Madry(attack=attack, per=per, start_round=3), Same(2), round=2)
    assert late == trained(CrossEntropy(), Same(2), round=2) and attack.calls == []
    assert trained(Madry(attack=attack, per=per, start_round=3), Same(2), round=3) != late


def test_which_clients_train_by_it_is_drawn_with_the_seed():
    def chosen(seed, share):
        objective = Madry(attack=None, client_fraction=share)
        state = SimpleNamespace(
            objective=objective, experiment={"trainers": list(range(10))}, settings=SimpleNamespace(seed=seed)
        )
        return [client for client in range(10) if ClientState.objective_of(state, client) is objective]

    assert len(chosen(0, 0.5)) == 5 and len(chosen(0, 0.01)) == 1 and len(chosen(0, 1.0)) == 10
    assert chosen(0, 0.5) == chosen(0, 0.5) != chosen(1, 0.5)
    assert set(chosen(0, 0.3)) < set(chosen(0, 0.5))
    state = SimpleNamespace(objective=(plain := CrossEntropy()))
    assert ClientState.objective_of(state, 0) is plain


# --- inner attacks ---------------------------------------------------------------------------------------------------


def adversary(method, labels="true", **settings):
    return Adversary("inner", 0.1, labels, method, **settings)


INNER = {
    "fgsm_random": adversary(RandomFGSM),
    "pgd_kl": adversary(DivergencePGD, "predicted", steps=3, alpha=None),
    "pgd": adversary(partial(torchattacks.PGD, random_start=True), steps=3, alpha=None),
}


@pytest.mark.parametrize("name", INNER)
def test_the_attack_keeps_its_budget_and_leaves_no_trace(name):
    model = nn.Sequential(toy.trained(), nn.Dropout(0.5)).train()
    model[0].norm.eval()  # a mode of its own, too
    x, y = toy.waves(6, 0)
    model(x).sum().backward()
    before = copy.deepcopy(model)
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    batch = Madry(attack=INNER[name]).attacked(model, Samples.of(x, y), STEP)
    change = (batch.adversarial - x).abs()
    assert 0.05 < change.max() <= 0.1 + 1e-5 and torch.equal(batch.x, x)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    for ours, theirs in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    again = Madry(attack=INNER[name]).attacked(model, Samples.of(x, y), STEP)
    assert torch.equal(batch.adversarial, again.adversarial)


def test_one_step_from_a_random_start_by_hand():
    """From a start in ±ε, 1.25 ε along the gradient's sign: between 0.25 ε and ε that way, drawn anew for each seed."""
    x, y = torch.zeros(200, 1, 1, 2), torch.zeros(200, dtype=torch.long)
    moved = INNER["fgsm_random"](Same(2), x, y, seed=0).flatten(1) * torch.tensor([-1.0, 1.0])  # label 0's logit falls
    assert moved.min() >= 0.025 - 1e-6 and moved.max() <= 0.1 + 1e-6
    assert (moved > 0.099).float().mean() > 0.5 and (moved < 0.09).float().mean() > 0.2
    assert not torch.equal(moved, INNER["fgsm_random"](Same(2), x, y, seed=1).flatten(1))


def test_away_from_the_answer_is_further_than_noise_and_needs_no_labels():
    model, (x, _) = toy.trained(), toy.waves(20, 1)
    made = INNER["pgd_kl"](model, x, None, seed=0)
    noise = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        attacked, beside = (divergence(model(x), model(each)).mean() for each in (made, noise))
    assert attacked > 5 * beside


# --- adversarial weight perturbation ---------------------------------------------------------------------------------


def small_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 6, 4))


def plain_loss(model, batch):
    return batch.mean(cross_entropy(scores(model, batch.x, batch), batch))


def test_its_gradient_is_that_of_weights_moved_by_hand():
    model, batch = small_net(), Samples.of(*toy.waves(8, 2))
    by_hand = copy.deepcopy(model)
    probe = copy.deepcopy(model)
    plain_loss(probe, batch).backward()
    with torch.no_grad():
        for place in (0, 4):  # not the biases, nor batch norm's weights
            weight, gradient = by_hand[place].weight, probe[place].weight.grad
            weight += 0.05 * sqrt(weight.square().sum()) * gradient / sqrt(gradient.square().sum())
    before = copy.deepcopy(model.state_dict())
    there, here = plain_loss(by_hand, batch), perturbed(plain_loss, model, batch, 0.05)
    there.backward()
    here.backward()
    torch.testing.assert_close(here, there)
    assert here > plain_loss(probe, batch)  # uphill
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name])
    for ours, theirs in zip(model.buffers(), by_hand.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    "kind", [AdversarialTraining, Vanilla, Similarity, Madry, Trades, Mart, LogitPairing, Fast, CalFAT]
)
def test_every_method_takes_it(kind):
    class Net(nn.Sequential):
        def embed(self, x):
            for layer in list(self)[:-1]:
                x = layer(x)
            return x

        def forward(self, x):
            return self[-1](self.embed(x))

    losses = []
    for radius in (None, 0.05):
        model, batch = Net(*small_net()), Samples.of(*toy.waves(8, 2))
        losses.append(kind(attack=INNER["pgd"], awp=radius)(model, batch, Step(2, 0, 0, 1)))
        losses[-1].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[1] > losses[0] and "embed" not in vars(model)


# --- catastrophic overfitting ----------------------------------------------------------------------------------------


def test_a_model_that_only_the_single_step_leaves_right_is_noticed():
    model, (x, y) = toy.trained(), toy.right(16, 3)
    fast = Fast(attack=Adversary("inner", 0.8, "true", RandomFGSM), check_every=2)
    assert fast.overfits(model, Samples(x, y, torch.ones(16), torch.full((16,), 20), adversarial=x), STEP)
    weak = Fast(attack=Adversary("inner", 0.001, "true", RandomFGSM))
    assert not weak.overfits(model, Samples(x, y, torch.ones(16), torch.full((16,), 20), adversarial=x), STEP)
    looked = []
    fast.overfits = lambda model, batch, step: looked.append(step.round) or True
    for step in (Step(1, 0, 0, 0), Step(2, 0, 0, 0), Step(2, 0, 1, 0), Step(2, 1, 0, 0)):
        fast.attacked(model, Samples.of(x, y), step)
    assert looked == [2] and len(fast.remarks) == 1


def test_the_user_is_told_once(small, caplog, monkeypatch):
    monkeypatch.setattr(Fast, "overfits", lambda *_: True)
    small(*QUICK, "defence/training=fast", "defence.training.check_every=1")
    assert caplog.text.count("catastrophic overfitting") == 1 and "round 1, client" in caplog.text


# --- bad input: one clear line before anything is trained ------------------------------------------------------------

QUICK = ["attack=fgsm", "client.epochs=1", "evaluation.every=null"]
TEMPLATE = Path(__file__).parent.parent / "docs" / "template"


L2 = ["attack=pgd_strong", "attack.norm=L2", "attack.eps=2", "attack.method._target_=torchattacks.PGDL2"]
TAKEN = r".*defence\.training\.attack\.eps .* in Linf: set defence\.training\.attack\.eps .*=0\.05\."


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["defence/training=trades", "attack=none"], r"defence\.training\.attack\.eps=null: .*eps=0\.05"),
        (["defence/training=madry", "attack=deepfool"], r"defence\.training\.attack\.eps=null"),
        (["defence/training=madry", "attack=cw"], r"defence\.training\.attack\.eps=null: .*attack\.eps.*set its own"),
        (
            ["defence/training=madry", "attack=none", "attack.eps=0.05"],
            r"attack=none has no ε.*set defence\.training\.attack\.eps=0\.05",
        ),
        (["defence/training=mart", *L2], rf"attack\.eps=2 is of attack=pgd_strong, .* L2, {TAKEN}"),
        (["defence/training=noise", *L2], rf"attack\.eps=2 is of attack=pgd_strong, .* L2, {TAKEN}"),
        (["defence/training=trades", "attack=deepfool", "attack.eps=0.5"], rf"attack\.eps=0\.5 is .* L2, {TAKEN}"),
        (["defence/training=alp", "defence.training.attack=${attack}", "attack=none"], "attack=none is no attack"),
        (["defence/training=mart", "defence.training.attack=null"], "attack=null is no attack to train against"),
        (["defence/training=similarity", "defence.training.beta=0.7"], r"beta=0\.7 and gamma=0\.4 .* at most 1"),
        (["defence/training=madry", "defence.training.per=epoch"], "per=epoch must be one of batch, round"),
        (["defence/training=madry", "defence.training.awp=0"], r"awp=0 must be greater than 0"),
        (["defence=adversarial", "defence.training.client_fraction=0"], "client_fraction=0 must be greater than 0"),
        (["defence/training=trades", "defence.training.lam=6"], r"defence\.training.*lam"),
        (["strategy=sfat", "strategy.alpha=1"], r"strategy\.alpha=1 must"),
    ],
)
def test_bad_settings(overrides, words):
    with pytest.raises(InputError, match=words) as refused:
        validate(composed(overrides))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "eps"),
    [
        (["defence/training=madry", *L2, "defence.training.attack.eps=0.05"], 0.05),
        (["defence/training=madry", *L2, "defence.training.attack.eps=2"], 2),  # as large, but meant
        (["defence/training=madry", *L2, "defence.training.attack=${attacks.pgd}"], 0.05),
        (["defence=adversarial", *L2], 2),  # the tested attack itself
        (["defence/training=madry", "attack=fgsm", "attack.eps=0.02"], 0.02),
    ],
)
def test_a_radius_that_is_of_one_norm_trains(overrides, eps):
    settings = validate(composed(overrides))
    assert settings.defence.training.get("attack")["eps"] == eps
    assert validate(settings.plain).plain == settings.plain  # as when a finished run is evaluated


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=meannet", "defence/training=similarity"], "MeanNet has no method `embed`"),
        (["strategy=centralised", "defence/training=madry", "defence.training.client_fraction=0.5"], "one client"),
    ],
)
def test_refused_before_training(tmp_path, overrides, words):
    common = [word for word in SMALL if "model=meannet" not in overrides or not word.startswith("model.")]
    with pytest.raises(InputError, match=words) as refused:
        run(compose([*common, *QUICK, *overrides], config_dir=TEMPLATE), tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_a_forward_that_does_without_its_embed_is_refused():
    class Odd(Same):
        def forward(self, x):
            return self.fc(x.flatten(1))

    with pytest.raises(InputError, match="must call its `embed` once"):
        Similarity(attack=None).check_model(Odd(2), torch.zeros(2, 1, 1, 2), torch.ones(2))
    Similarity(attack=None).check_model(Same(2), torch.zeros(2, 1, 1, 2), torch.ones(2))


# --- real speech -----------------------------------------------------------------------------------------------------

FEW_STEPS = {name: ["defence.training.attack.steps=1"] for name in ("madry", "trades", "mart", "alp", "calfat")}


@pytest.mark.parametrize(
    "name",
    ["adversarial", "adversarial_ren", "similarity", "madry", "trades", "mart", "alp", "fast", "calfat", "noise"],
)
def test_two_rounds_on_real_speech(small, name):
    result = small(*QUICK, f"defence/training={name}", *FEW_STEPS.get(name, []))
    losses = [row["train/loss"] for row in result.history]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert result.metrics["status"] == "finished" and name in result.metrics["name"]


def test_serial_equals_itself_with_all_there_is(small, tmp_path):
    """Dropout, lengths, a random start, weight perturbation, a share of the clients and slack aggregation."""
    words = ["model=statcnn", "strategy=sfat", "strategy.fraction_train=1.0", "defence/training=trades", *FEW_STEPS["trades"],
             "defence.training.awp=0.01", "defence.training.client_fraction=0.5"]  # fmt: skip
    one = small(*QUICK, *words)
    other = small(*QUICK, *words, "reuse=false", folder=tmp_path / "again")
    assert one.history == other.history
    assert (one.folder / "model.safetensors").read_bytes() == (other.folder / "model.safetensors").read_bytes()


def test_slack_by_hand():
    """α = 1/3: (4/3) / (2/3) = 2 for the smallest loss of three; of ten clients, two."""
    assert SFAT(alpha=1 / 3).weights([0.5, 0.2, 0.9], [10, 20, 30]) == pytest.approx([10, 40, 30])
    assert SFAT(alpha=1 / 3).weights(list(range(10)), [1] * 10) == pytest.approx([2, 2] + [1] * 8)
    assert SFAT(alpha=0).weights([0.5, 0.2], [10, 20]) == [10, 20]
