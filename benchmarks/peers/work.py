"""The work of a round that benchmarks/round.py has every side do: which data, weights, batches and optimizer."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract
from fedser.features.normalisation import Sums, zscore
from fedser.models.cnn4 import CNN4
from fedser.randomness import derive, generator


def check(settings):
    """The other sides know no other settings than these."""
    client, defence, attack = settings.client, settings.defence.training, settings.attack
    assert client.optimizer.target == "torch.optim.Adam" and client.optimizer_state == "reset"
    assert client.schedule.name == "constant" and client.schedule.get("warm_up") == 0
    assert client.weight_decay == 0 and client.label_smoothing == 0 and client.class_weights == "none"
    assert client.precision == "fp32" and client.attack_precision == "fp32" and client.threads == 1
    assert client.clip_norm is None and not settings.augment and settings.batch_norm == "aggregate"
    assert settings.features.normalisation.name == "zscore_global" and settings.strategy.name == "fedavg"
    assert settings.strategy.fraction_train == 1
    assert settings.model.component.options.get("norm", "batch") == "batch"
    if defence is not None:
        assert defence.get("attack") == attack.node and defence.get("pairing") == "disjoint"
        assert defence.get("alpha") == 0.5 and defence.get("start_round") == 2
        assert attack.name == "fgsm" and attack.get("labels") == "predicted" and attack.get("box") is None


def clients(settings):
    """[(name, x [n, 1, frames, mels] normalised, y [n])] of every client's training set, as fedser has it."""
    corpus = corpora.load(settings.dataset)
    store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
    splits = partition(store.table, settings.partition, settings.seed)
    sums = [Sums.of(store.frames[split.train]) for split in splits]
    normalise = zscore(sum(sums[1:], sums[0]))
    labels = store.table["label"].to_numpy().astype(np.int64)
    data = []
    for split in splits:
        x = torch.from_numpy(normalise(store.frames[split.train])).unsqueeze(1)
        data.append((split.name, x, torch.from_numpy(labels[split.train])))
    return data


def network(settings, step):
    """CNN-4 with the weights that fedser's run starts from: fedser's own ("fedser"), or eager PyTorch's ("eager")."""
    torch.manual_seed(derive(settings.seed, "initial weights"))
    options = {key: value for key, value in settings.model.component.options.items() if key != "name"}
    own = CNN4(len(settings.dataset.classes), **options)
    if step == "fedser":
        return own
    eager = EagerCNN4(
        len(settings.dataset.classes), options["width"], options.get("bn_momentum", 0.1), options.get("bn_eps", 1e-5)
    )
    eager.load_state_dict(own.state_dict())
    return eager


def optimizer_options(settings):
    """The options of each client's own Adam."""
    return {key: value for key, value in settings.client.optimizer.options.items() if key != "name"}


def batches(settings, round, name, epoch, count):
    """The rows of each batch of a client's epoch, as fedser draws them."""
    shuffle = derive(settings.seed, "train", round, name)
    order = torch.randperm(count, generator=generator(shuffle, "shuffle", epoch))
    return order.split(settings.client.batch_size)


class EagerBlock(nn.Module):
    """Convolution, batch norm, 2×2 max-pooling, ReLU: what eager PyTorch has for them, and nothing else.

    In eval mode batch norm is folded into the convolution, as in fedser, so that an attack costs both sides the same.
    """

    def __init__(self, inputs, outputs, momentum, eps):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps, momentum)

    def forward(self, x):
        conv, norm = self.conv, self.norm
        if norm.training:
            x = norm(conv(x))
        else:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = conv.weight * scale.view(-1, 1, 1, 1)
            x = F.conv2d(x, weight, norm.bias - norm.running_mean * scale, padding=2)
        return F.relu(F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3]))))


class EagerCNN4(nn.Module):
    """fedser's CNN-4 in plain eager PyTorch, channels last, with the same names of weights."""

    def __init__(self, classes, width, momentum, eps):
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 8 * width]
        pairs = itertools.pairwise(channels)
        self.blocks = nn.Sequential(*(EagerBlock(inputs, outputs, momentum, eps) for inputs, outputs in pairs))
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x):
        return self.fc(self.blocks(x.to(memory_format=torch.channels_last)).amax(dim=(2, 3)))
