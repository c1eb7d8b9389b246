"""Clients that are trained side by side end where they would one after the other."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torchattacks import FGSM

from fedser.attacks import Adversary
from fedser.attacks.waveform import Listening
from fedser.errors import RunError
from fedser.federation import client_app, optimizer_state, server_app
from fedser.federation.transport import PARAMETERS
from fedser.models.cnn4 import CNN4
from fedser.models.layers import PLAIN
from fedser.models.statcnn import StatCNN
from fedser.models.tdnn import TDNN
from fedser.models.vgg16 import VGG16
from fedser.models.weights import BUFFERS, layout, trained
from fedser.simulation import backend
from fedser.training import local, stacked
from fedser.training.adversarial import AdversarialTraining
from fedser.training.madry import Madry
from fedser.training.objective import CrossEntropy, Samples

SIZES = [7, 14, 9, 13, 9]  # in batches of four: clients end with one of 3, 2, 1, 1 and 1, and after 2 to 4 of them
FRAMES = 64
adam = partial(torch.optim.Adam, lr=1e-3, eps=1e-7, fused=True)
momentum = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def samples(count, seed, lengths=(FRAMES // 2, FRAMES), ragged=False):
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, FRAMES, 32, generator=draws).double()
    y = torch.randint(0, 5, (count,), generator=draws)
    real = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=draws)
    return Samples.of(x, y, real, ragged).softened(5, 0.1)


def fgsm():
    return Adversary("fgsm", 0.05, "predicted", FGSM, in_order=True)


def distance(ones, others):
    return sum((one - other).square().sum() for one, other in zip(ones, others, strict=True)).sqrt().item()


def in_double(make, seed):
    """In double precision, where rounding is far below whatever else could differ."""
    torch.manual_seed(seed)
    return make().double()


CASES = {
    "cnn4": (lambda: CNN4(5, 2), adam, CrossEntropy()),
    "statcnn": (lambda: StatCNN(5, 2, bn_momentum=0.3), adam, AdversarialTraining(fgsm(), start_round=1)),
    "tdnn": (lambda: TDNN(5, mels=32, width=4), momentum, CrossEntropy()),
    "vgg16": (lambda: VGG16(5, 2), adam, AdversarialTraining(fgsm(), alpha=0.3, start_round=1)),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_buffers_and_losses_are_those_of_each_by_itself(case):
    make, build, objective = CASES[case]
    options = {"round": 3, "epochs": 2, "batch_size": 4, "precision": "fp32", "clip_norm": 0.5}
    few = (FRAMES - 20, FRAMES)
    models = [in_double(make, seed) for seed in range(len(SIZES))]  # no two clients have the same weights
    given = [
        objective.start_round(model, samples(size, 10 + number, few), round=3, seed=number)
        for number, (size, model) in enumerate(zip(SIZES, models, strict=True))
    ]
    stack = stacked.Stack(copy.deepcopy(models[0]), list(map(stacked.weights_of, models)))
    mu, seeds = [0.0, 0.5, 0.0, 2.0, 0.1], [3, 1, 4, 1, 5]

    def optimizer(parameters, number):
        made = build(parameters)
        vector = optimizer_state.flat(made)
        optimizer_state.fill(made, 1e-3 * (1 + np.random.default_rng(number).random(vector.shape, np.float32)))
        return made

    optimizers = [optimizer(own, number) for number, own in enumerate(stack.parameters)]
    losses = stacked.train(stack, optimizers, given, objective, mu=mu, seeds=seeds, **options)
    for number, model in enumerate(models):
        before, twin = stacked.weights_of(model), copy.deepcopy(model)
        own = {"mu": mu[number], "seed": seeds[number], **options}
        one = optimizer(trained(model), number)
        assert local.train(model, one, given[number], objective, **own) == pytest.approx(losses[number], rel=1e-5)
        np.testing.assert_allclose(optimizer_state.flat(one), optimizer_state.flat(optimizers[number]), 1e-3, 1e-6)
        # Were the last batch filled up, with samples that have been there, it would show.
        filled = given[number][torch.arange(-(-len(given[number]) // 4) * 4) % len(given[number])]
        local.train(twin, optimizer(trained(twin), number), filled, objective, **own)
        for key, tensors in layout(model).items():
            way = distance(before[key], tensors)
            ends = [tensor[number] for tensor in stack.tensors[key].values()]
            assert distance(tensors, ends) < 1e-6 * way, key
            assert distance(tensors, layout(twin)[key]) > 1e-3 * way, key


def test_ragged_batches_end_with_their_own_longest_clip():
    class Mean(nn.Module):
        """Hears padding, as no network of ours does."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 5)

        def forward(self, x):
            return self.fc(x.mean(dim=(1, 2)))

    given = [samples(6, seed, (9, FRAMES), ragged=True) for seed in range(3)]
    model, options = Mean().double(), {"round": 1, "epochs": 1, "batch_size": 3, "precision": "fp32"}
    stack = stacked.Stack(model, [stacked.weights_of(model)] * 3)
    optimizers, more = list(map(momentum, stack.parameters)), {"mu": [0.0] * 3, "seeds": range(3)}
    losses = stacked.train(stack, optimizers, given, CrossEntropy(), **options, **more)
    for seed, own in enumerate(given):
        alone = copy.deepcopy(model)
        loss = local.train(alone, momentum(alone.parameters()), own, CrossEntropy(), mu=0.0, seed=seed, **options)
        assert loss == pytest.approx(losses[seed], rel=1e-6)


def test_a_loss_that_is_no_number_raises():
    model = in_double(lambda: CNN4(5, 1), 0)
    stack = stacked.Stack(model, [stacked.weights_of(model)] * 2)
    stack.parameters[1][0].data.fill_(float("nan"))
    options = {"round": 1, "epochs": 1, "batch_size": 3, "precision": "fp32", "mu": [0.0] * 2, "seeds": [0, 1]}
    with pytest.raises(RunError, match="loss became nan"):
        stacked.train(stack, list(map(adam, stack.parameters)), [samples(3, 0)] * 2, CrossEntropy(), **options)


class Peculiar(nn.Module):
    """Has its own way with dropout, or looks at numbers."""

    def __init__(self, way):
        super().__init__()
        self.way, self.fc = way, nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.way(x.mean(dim=(1, 2))))


@pytest.mark.parametrize(
    ("model", "objective", "reason"),
    [
        (lambda: StatCNN(5, 2), CrossEntropy(), None),
        (lambda: StatCNN(5, 2), AdversarialTraining(fgsm()), None),
        (lambda: StatCNN(5, 2), AdversarialTraining(fgsm(), awp=0.01), "does more in a step"),
        (lambda: StatCNN(5, 2), Madry(attack=fgsm()), "does more in a step"),
        (lambda: StatCNN(5, 2), type("Own", (CrossEntropy,), {})(), "does more in a step"),  # who knows
        (lambda: Listening(StatCNN(5, 2), lambda x, lengths: (x, lengths)), CrossEntropy(), "front end"),
        (lambda: Peculiar(lambda h: nn.functional.dropout(h, 0.3)), CrossEntropy(), "can't be vectorised"),
        (lambda: Peculiar(lambda h: h * float(h.mean())), CrossEntropy(), "can't be vectorised"),
        (lambda: Peculiar(lambda h: h - h.mean() * PLAIN.get()), CrossEntropy(), "comes out otherwise"),
    ],
)
def test_which_networks_and_objectives_can_be_stacked(model, objective, reason):
    found = stacked.why_not(model(), objective, samples(6, 0), "fp32", 4)
    assert (found is None) if reason is None else reason in found


def test_half_precision():
    model, given = CNN4(5, 4, norm="layer"), samples(6, 0)
    assert "number format" in stacked.why_not(StatCNN(5, 2), CrossEntropy(), given, "bf16", 4)
    assert stacked.why_not(model, CrossEntropy(), given, "bf16", 4) is None
    given = [Samples.of(own.x.float(), own.y) for own in map(samples, (6, 9), (0, 1))]
    options = {"round": 1, "epochs": 1, "batch_size": 9, "precision": "bf16"}
    stack = stacked.Stack(model, [stacked.weights_of(model)] * 2)
    optimizers, more = list(map(momentum, stack.parameters)), {"mu": [0.0, 0.0], "seeds": [0, 1]}
    losses = stacked.train(stack, optimizers, given, CrossEntropy(), **options, **more)
    for seed, own in enumerate(given):
        alone = copy.deepcopy(model)
        loss = local.train(alone, momentum(alone.parameters()), own, CrossEntropy(), mu=0.0, seed=seed, **options)
        assert loss == pytest.approx(losses[seed], rel=0.05)


# --- messages -------------------------------------------------------------------------------------------------------


class Together(backend.SerialGrid):
    """Clients in this process that are asked to train all at once."""

    state = None
    jobs = ()

    def pull_messages(self, message_ids):
        asked = [message for message in self._inbox.values() if message.metadata.message_type == "train"]
        if not asked:
            return super().pull_messages(message_ids)
        kind = type(self)
        if kind.state is None:
            experiment = json.loads(asked[0].content["config"]["experiment"])
            kind.state = client_app.ClientState(experiment, client_app.simulated)
        clients = [message.metadata.dst_node_id - 1 for message in asked]
        kind.jobs = [(kind.state.clients.client(int(each)), own) for each, own in zip(clients, asked, strict=True)]
        for message in asked:
            del self._inbox[message.metadata.message_id]
        replies = client_app.train_together(kind.state, kind.jobs)
        return [server_app.Message(reply, reply_to=own) for reply, own in zip(replies, asked, strict=True)]


@pytest.fixture
def together(monkeypatch):
    """A grid whose clients train together, and how many at a time did so."""
    grid, sizes, real = type("Own", (Together,), {}), [], stacked.train

    def counted(stack, *arguments, **options):
        sizes.append(len(stack))
        return real(stack, *arguments, **options)

    monkeypatch.setattr(backend, "SerialGrid", grid)
    monkeypatch.setattr(stacked, "train", counted)
    return grid, sizes


FIVE = ["partition=iid", "partition.clients=5", "client.batch_size=4", "client.clip_norm=1.0", "simulation.device=cpu"]


def weights_of(result, round):
    return load_file(result.folder / f"weights/round-{round:05d}.safetensors")


@pytest.mark.parametrize("state", ["average", "persist"])
def test_a_run_of_stacks_is_that_of_single_clients(small, tmp_path, together, monkeypatch, state):
    words = [*FIVE, "model=statcnn", "defence=adversarial", "strategy=fedprox", f"client.optimizer_state={state}",
             "batch_norm=local"]  # fmt: skip
    made = small(*words, "simulation.stacked=3", folder=tmp_path / "stacked")
    assert together[1] == [2, 3, 2, 3, 2]  # two copies to see whether it can be done, then two rounds of five
    monkeypatch.undo()
    one = small(*words, folder=tmp_path / "one")
    for key in (PARAMETERS, BUFFERS):
        first, last, ours = (weights_of(*each)[key] for each in ((one, 1), (one, 2), (made, 2)))
        assert np.linalg.norm(ours - last) < 0.05 * np.linalg.norm(last - first), key
    losses = [[row["train/loss"] for row in run.history] for run in (one, made)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_who_can_not_be_stacked_trains_one_by_one_to_the_bit(small, tmp_path, together, monkeypatch, caplog):
    words = [*FIVE, "defence/training=madry", "attack=fgsm", "rounds=1"]
    made = small(*words, "simulation.stacked=3", folder=tmp_path / "stacked")
    assert not together[1] and "one after the other, as Madry does more in a step" in caplog.text
    monkeypatch.undo()
    one = small(*words, folder=tmp_path / "one")
    for key in (PARAMETERS, BUFFERS):
        assert np.array_equal(weights_of(one, 1)[key], weights_of(made, 1)[key])


def test_one_client_that_fails_is_no_other_clients_trouble(small, together, monkeypatch):
    small(*FIVE, "rounds=1", "defence=none", "attack=none", "simulation.stacked=5")
    (grid, _), real = together, client_app._to_train

    def to_train(state, data, config, objective):
        if data is grid.jobs[1][0]:
            raise ValueError("no clips")
        return real(state, data, config, objective)

    monkeypatch.setattr(client_app, "_to_train", to_train)
    replies = client_app.train_together(grid.state, grid.jobs)
    assert [type(reply).__name__ for reply in replies] == ["RecordDict", "ValueError", *["RecordDict"] * 3]
    ends = [reply[PARAMETERS].to_numpy_ndarrays()[0] for reply in replies if not isinstance(reply, ValueError)]
    assert not any(np.shares_memory(ends[0], other) or np.array_equal(ends[0], other) for other in ends[1:])


STACKED = [
    "partition=iid",
    "partition.clients=5",
    "reuse=false",
    "features.frames=32",
    "client.optimizer_state=average",
]


@pytest.mark.ray
def test_a_run_with_stacks_is_the_same_on_ray_and_serially_and_nearly_the_one_without(callers_ray, small, tmp_path):
    """Of five clients two, two and one train together, whoever is ready first."""
    alone, serial, on_ray = (
        small(*STACKED, *more, folder=tmp_path / name)
        for name, more in (("alone", []), ("serial", ["simulation.stacked=2"]),
                           ("ray", ["simulation.stacked=2", "simulation=cpu", "simulation.actors=2"]))
    )  # fmt: skip
    for name in ("history.jsonl", "model.safetensors", "evaluation.json", "utterances.csv"):
        assert (serial.folder / name).read_bytes() == (on_ray.folder / name).read_bytes(), name
    losses = [[row["train/loss"] for row in result.history] for result in (alone, serial)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
