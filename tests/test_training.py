"""The local epoch, by hand, and the optimizer's moments between rounds."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from fedser.errors import RunError
from fedser.federation import optimizer_state
from fedser.federation.optimizer_state import OptimizerState, bytes_per_parameter
from fedser.training.local import proximal, train
from fedser.training.objective import CrossEntropy, Samples


def linear(weight=0.0) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.constant_(model[1].weight, weight)
    return model


def samples(x, y, weight) -> Samples:
    return Samples(x, y, weight, torch.full_like(y, x.shape[2]))


def one_step(weight, mu=0.0, start=0.0, precision="fp32"):
    model = linear(start)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    given = samples(torch.ones(2, 1, 1, 1), torch.tensor([0, 1]), torch.tensor(weight))
    options = {"epochs": 1, "batch_size": 2, "precision": precision, "mu": mu, "seed": 0}
    loss = train(model, sgd, given, CrossEntropy(), round=1, **options)
    return model[1].weight.detach().flatten().tolist(), loss


def test_weights_scale_each_samples_loss():
    # Both logits are 0: the gradient of each sample's cross-entropy is softmax − onehot = ∓0.5, averaged over two.
    assert one_step([1.0, 1.0])[0] == pytest.approx([0.0, 0.0])
    assert one_step([2.0, 0.0])[0] == pytest.approx([0.5, -0.5])
    assert one_step([2.0, 0.0])[1] == pytest.approx(0.693147, abs=1e-5)
    assert one_step([2.0, 0.0], precision="bf16")[0] == pytest.approx([0.5, -0.5], abs=1e-2)


def test_proximal_term_by_hand():
    model = linear(3.0)
    start = [torch.full((2, 1), 1.0)]
    assert proximal(model, start, mu=0.5).item() == pytest.approx(0.5 / 2 * (2**2 + 2**2))


def test_every_sample_is_used_once_an_epoch_in_seeded_order():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            seen.append(x.flatten().tolist())
            return torch.stack([x.flatten() * self.w, -x.flatten() * self.w], dim=1)

    def go(seed):
        seen.clear()
        model = Spy()
        given = samples(torch.arange(7.0).view(7, 1, 1, 1), torch.zeros(7, dtype=torch.long), torch.ones(7))
        options = {"epochs": 2, "batch_size": 3, "precision": "fp32", "mu": 0, "seed": seed}
        train(model, torch.optim.SGD(model.parameters(), 0.1), given, CrossEntropy(), round=1, **options)
        return [list(part) for part in seen]

    first = go(0)
    assert [len(part) for part in first] == [3, 3, 1, 3, 3, 1]
    assert sorted(sum(first[:3], [])) == sorted(sum(first[3:], [])) == list(range(7))
    assert first[:3] != first[3:] and first == go(0) != go(1)


def test_an_objective_is_told_where_in_the_training_it_is():
    steps = []

    class Spy(CrossEntropy):
        def __call__(self, model, batch, step):
            steps.append(step)
            return super().__call__(model, batch, step)

    model, given = linear(), samples(torch.ones(5, 1, 1, 1), torch.zeros(5, dtype=torch.long), torch.ones(5))
    options = {"epochs": 2, "batch_size": 3, "precision": "fp32", "mu": 0, "seed": 0}
    train(model, torch.optim.SGD(model.parameters(), 0.1), given, Spy(), round=4, **options)
    assert [(step.round, step.epoch, step.number) for step in steps] == [(4, 0, 0), (4, 0, 1), (4, 1, 0), (4, 1, 1)]
    assert len({step.seed for step in steps}) == 4


def test_dropout_draws_from_the_seed_and_leaves_the_generator_alone():
    def after(seed):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 2, bias=False))
        nn.init.constant_(model[2].weight, 0.1)
        given = Samples.of(torch.ones(6, 1, 4, 2), torch.arange(6) % 2)
        options = {"epochs": 2, "batch_size": 3, "precision": "fp32", "mu": 0, "seed": seed}
        state = torch.get_rng_state()
        loss = train(model, torch.optim.SGD(model.parameters(), 0.1), given, CrossEntropy(), round=1, **options)
        assert torch.equal(torch.get_rng_state(), state)
        return loss

    assert after(0) == after(0) != after(1)  # whatever others have drawn in this process


def test_nan_loss_raises():
    with pytest.raises(RunError, match="loss became nan"):
        one_step([float("nan"), 1.0])


def test_moments_persist_by_round(tmp_path):
    def adam_after(rounds, restore):
        model = linear()
        state = OptimizerState(tmp_path / ("kept" if restore else "none"))
        for number in range(1, rounds + 1):
            adam = torch.optim.Adam(model.parameters(), lr=0.1)
            if restore:
                state.restore(adam, number - 1)
            (model(torch.ones(1, 1, 1, 1))[0, 0] * number).backward()
            adam.step()
            adam.zero_grad()
            state.save(adam, number, keep={number - 1}) if restore else None
        return model[1].weight.detach()[0].item()

    once = nn.Parameter(torch.zeros(2, 1))
    adam = torch.optim.Adam([once], lr=0.1)
    for number in (1, 2, 3):
        once.grad = torch.tensor([[float(number)], [0.0]])
        adam.step()
    assert adam_after(3, restore=True) == pytest.approx(once[0].item(), abs=1e-7)
    assert adam_after(3, restore=False) != pytest.approx(once[0].item(), abs=1e-4)
    files = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert files == ["round-00002.safetensors", "round-00003.safetensors"]


def test_a_round_done_again_starts_from_the_same_moments(tmp_path):
    parameter = nn.Parameter(torch.zeros(3))

    def step(number, value):
        adam = torch.optim.Adam([parameter], lr=0.1)
        state = OptimizerState(tmp_path)
        state.restore(adam, number - 1)
        parameter.grad = torch.full((3,), value)
        adam.step()
        state.save(adam, number, keep={number - 1})
        return adam.state[parameter]["exp_avg"].clone()

    step(1, 1.0)
    assert (step(2, 2.0) == step(2, 2.0)).all()


def test_a_lost_generation_is_an_error_and_not_a_fresh_start(tmp_path):
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(3))])
    with pytest.raises(RunError, match=r"moments of round 7 can't be read .*client\.state_folder"):
        OptimizerState(tmp_path).restore(adam, 7)


def test_generations_to_keep_stay(tmp_path):
    """With a checkpoint every few rounds: that of the checkpoint, the last one, and the new one."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    adam = torch.optim.Adam([parameter])
    adam.step()
    state = OptimizerState(tmp_path)
    for number in range(1, 9):
        state.save(adam, number, keep={number - 1, 5})
    assert [path.name[6:11] for path in sorted(tmp_path.iterdir())] == ["00005", "00007", "00008"]


@pytest.mark.parametrize(("kind", "size"), [(torch.optim.Adam, 8), (torch.optim.SGD, 0), (torch.optim.Adagrad, 4)])
def test_room_that_moments_take(kind, size):
    assert bytes_per_parameter(kind([nn.Parameter(torch.zeros(5))], lr=0.1)) == size


# --- what is trained towards ----------------------------------------------------------------------------------------


def test_balanced_classes_have_the_same_part_of_the_loss():
    given = Samples.of(torch.zeros(6, 1, 1, 1), torch.tensor([0, 0, 0, 2, 2, 5]))
    weight = given.balanced().weight
    assert weight.tolist() == pytest.approx([2 / 3] * 3 + [1.0] * 2 + [2.0])
    assert weight.sum() == pytest.approx(6)


def test_smoothed_targets():
    given = Samples.of(torch.zeros(2, 1, 1, 1), torch.tensor([0, 3]))
    assert given.targets is None and given.aims is given.y
    targets = given.softened(4, 0.2).targets
    torch.testing.assert_close(targets, torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]]))


def test_hard_targets_train_as_labels_do():
    x, y = torch.randn(6, 1, 1, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    results = []
    for given in (Samples.of(x, y), Samples.of(x, y).softened(2, 0.0)):
        model = linear(0.3)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, sgd, given, CrossEntropy(), round=1, epochs=2, batch_size=2, precision="fp32", mu=0.0, seed=0)
        results.append(model[1].weight.detach())
    torch.testing.assert_close(*results)


def test_a_long_gradient_is_scaled_down():
    # Twice the sample's gradient of ∓0.5 over a batch of two, Euclidean norm 0.5·√2; limited to 0.1.
    model = linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    given = samples(torch.ones(2, 1, 1, 1), torch.tensor([0, 1]), torch.tensor([2.0, 0.0]))
    options = {"epochs": 1, "batch_size": 2, "precision": "fp32", "mu": 0.0, "seed": 0}
    train(model, sgd, given, CrossEntropy(), round=1, clip_norm=0.1, **options)
    assert model[1].weight.detach().flatten().tolist() == pytest.approx([0.1 / 2**0.5, -0.1 / 2**0.5], abs=1e-5)


def test_joined_and_chosen_samples_keep_all_that_is_known_of_them():
    one = Samples.of(torch.zeros(2, 1, 3, 1), torch.tensor([0, 1]), torch.tensor([1, 3])).softened(2, 0.1)
    both = Samples.joined([one, one.weighed(3.0)])
    assert both.weight.tolist() == [1, 1, 3, 3] and both.lengths.tolist() == [1, 3, 1, 3]
    assert torch.equal(both.targets[:2], both.targets[2:])
    assert both[torch.tensor([3])].lengths.tolist() == [3]


@pytest.mark.parametrize("state", ["reset", "persist"])
def test_the_schedule_sets_the_rate_of_each_round(small, state):
    """With SGD and one step a round, the second round's step is half as long when its rate is."""
    words = ["attack=none", "defence=none", "client.optimizer._target_=torch.optim.SGD", "~client.optimizer.eps",
             "client.optimizer.fused=null", "client.epochs=1", "client.batch_size=1000", "client.lr=0.1",
             f"client.optimizer_state={state}", "rounds=3", "client/schedule=step", "client.schedule.every=1"]  # fmt: skip
    steps = []
    for factor in (1.0, 0.5):
        result = small(*words, f"client.schedule.factor={factor}")
        files = sorted((result.folder / "weights").glob("round-*"))
        vectors = [torch.from_numpy(load_file(file)["parameters"]) for file in files]
        steps.append((vectors[1] - vectors[0]).norm())
        shutil.rmtree(result.folder)
    assert steps[1] / steps[0] == pytest.approx(0.5, rel=1e-3)


def test_weight_decay_reaches_the_optimizer_where_it_is_set(settings):
    parameters = [nn.Parameter(torch.ones(1))]
    assert settings().client.build_optimizer(parameters).defaults["weight_decay"] == 0
    assert settings("client.weight_decay=0.01").client.build_optimizer(parameters).defaults["weight_decay"] == 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, centered=True),
    ],
    ids=["adam", "momentum", "sgd", "rmsprop"],
)
def test_moments_as_a_vector_give_the_same_next_step(make):
    def parameters():
        return [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]

    def step(optimizer, mine):
        for number, parameter in enumerate(mine):
            parameter.grad = torch.full_like(parameter, number + 1.0)
        optimizer.step()

    one = parameters()
    whole = make(one)
    assert not optimizer_state.flat(whole).any()
    step(whole, one)
    other = [torch.nn.Parameter(parameter.detach().clone()) for parameter in one]
    after = make(other)
    optimizer_state.fill(after, optimizer_state.flat(whole))
    assert after.param_groups[0]["lr"] == 0.1
    step(whole, one)
    step(after, other)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)


def test_the_mean_of_one_clients_moments_are_its_own(small, tmp_path):
    words = ["attack=none", "defence=none", "strategy=centralised", "rounds=3"]
    own = small(*words, "client.optimizer_state=persist", folder=tmp_path / "own")
    mean = small(*words, "client.optimizer_state=average", folder=tmp_path / "mean")
    none = small(*words, folder=tmp_path / "none")
    assert (own.folder / "model.safetensors").stat().st_size == (mean.folder / "model.safetensors").stat().st_size
    one, other, third = (load_file(run.folder / "weights/round-00003.safetensors") for run in (own, mean, none))
    assert set(other) == {"parameters", "buffers"}  # the moments are the training's
    assert np.array_equal(one["parameters"], other["parameters"])
    assert not np.allclose(third["parameters"], other["parameters"])


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_the_next_round_starts_from_the_mean_of_the_clients_moments(small, monkeypatch, strategy, caplog):
    sent, replied = [], []
    fill, flat = optimizer_state.fill, optimizer_state.flat
    monkeypatch.setattr(
        optimizer_state, "fill", lambda optimizer, vector: (sent.append(vector), fill(optimizer, vector))
    )
    monkeypatch.setattr(optimizer_state, "flat", lambda optimizer: (replied.append(flat(optimizer)), replied[-1])[1])
    result = small(
        "attack=none", "defence=none", f"strategy={strategy}", "client.optimizer_state=average", "reuse=false"
    )
    sizes = list(json.loads((result.folder / "evaluation.json").read_text())["clients"])
    assert len(sizes) == 2 and not sent[0].any() and np.array_equal(sent[2], sent[3])
    one, other = [moments for moments in replied if moments.any()][
        :2
    ]  # the server's, who asks for their size, are zero
    share = np.dot(sent[2] - other, one - other) / np.dot(one - other, one - other)
    assert 0 < share < 1
    np.testing.assert_allclose(sent[2], share * one + (1 - share) * other, rtol=1e-4, atol=1e-6)
    assert ("moments are averaged as they are" in caplog.text) == (strategy == "fedmedian")


def test_room_is_kept_for_replies_with_moments(settings):
    from fedser.preparation import prepare

    plain, averaged = (prepare(settings(f"client.optimizer_state={state}")) for state in ("reset", "average"))
    moments = 4 * (2 * plain.parameters + len(list(plain.model.parameters())))  # Adam's two, and a count of steps each
    assert averaged.reply_bytes == plain.reply_bytes + moments
