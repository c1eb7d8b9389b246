"""One process of pfl, started by torchrun: as pfl's users would have it on a CPU, at its best.

pfl's FederatedAveraging, PyTorchModel and SimulatedBackend; every client's data in memory, normalised. pfl deals the
clients among the processes longest first, weights their updates by their clips, and sums them by gloo. Nothing is
evaluated, printed or kept. The batches are drawn as fedser draws them, where pfl would take them in the data's order.

pfl averages parameters alone, and leaves batch norm's running statistics as they are. Nature's training does not look
at them, so that the losses agree up to rounding; whoever evaluates such a model has to.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers.work import batches, network, optimizer_options
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn


class Task(nn.Module):
    """What pfl asks of a module: the `loss` of a batch, and `metrics`, which nobody calls here."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.losses = []

    def loss(self, x, y):
        loss = F.cross_entropy(self.network(x), y)
        self.losses.append((loss.detach(), len(y)))
        return loss

    def metrics(self, x, y):
        return {}


class Model(PyTorchModel):
    """Is not evaluated: pfl would, on every client in its first round, before and after training."""

    def evaluate(self, *args, **kwargs):
        return Metrics()


class Client(Dataset):
    """A client's data in one round; its batches are drawn anew each epoch."""

    def __init__(self, data, draw, name):
        super().__init__(data, user_id=name)
        self.draw, self.epoch = draw, 0

    def iter(self, batch_size):
        x, y = self.raw_data
        for rows in self.draw(self.user_id, self.epoch, len(y)):
            yield [x[rows], y[rows]]
        self.epoch += 1


class Clock(TrainingProcessCallback):
    """Seconds of each round, and its sum of losses over clips."""

    def __init__(self, task):
        self.task, self.round, self.seconds, self.losses = task, 1, [], []

    def on_train_begin(self, *, model):
        self.began = time.perf_counter()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.seconds.append(time.perf_counter() - self.began)
        self.losses.append(sum(loss.item() * size for loss, size in self.task.losses))
        self.task.losses.clear()
        self.round += 1
        self.began = time.perf_counter()
        return False, Metrics()


def train(settings, data, rounds):
    """(seconds per round, this process's share of the loss per round)."""
    np.random.seed(settings.seed)  # the same in all processes, as pfl asks
    client, options = settings.client, optimizer_options(settings)
    tensors = {name: (x, y) for name, x, y in data}
    sizes = {name: len(x) for name, x, _ in data}
    task = Task(network(settings, "eager"))
    clock = Clock(task)
    users = FederatedDataset(
        lambda name: Client(tensors[name], functools.partial(batches, settings, clock.round), name),
        get_user_sampler("minimize_reuse", list(sizes)),
        user_id_to_weight=sizes,
    )
    adam = functools.partial(torch.optim.Adam, **{key: value for key, value in options.items() if key != "lr"})
    model = Model(task, adam, torch.optim.SGD(task.parameters(), lr=1.0))  # SGD adds the average of the updates
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, evaluation_frequency=rounds, train_cohort_size=len(data), val_cohort_size=None),
        SimulatedBackend(users, None, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(client.batch_size, client.epochs, options["lr"]),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    return clock.seconds, [total / (client.epochs * sum(sizes.values())) for total in clock.losses]


def main():
    scratch, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    settings, data, rounds, threads = torch.load(scratch / "work.pt", weights_only=False)
    torch.set_num_threads(threads[rank])
    seconds, losses = train(settings, data, rounds)
    (scratch / f"{rank}.json").write_text(json.dumps({"seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()
