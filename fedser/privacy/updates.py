"""Who a client is, inferred from what it sends: one layer of one of its updates, and of the mean of several.

After Feng et al. 2021 ("Attribute inference attack of speech emotion recognition in federated learning settings"): the
adversary labels updates that it can make or buy, of *shadow* clients, and learns to read others'. Here shadows are the
run's other clients, and the clients of other runs, on other corpora.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fedser.errors import InputError
from fedser.federation.updates import read
from fedser.privacy import probe
from fedser.privacy.embeddings import Subject
from fedser.privacy.findings import Finding, of_classes, of_speakers

DRAWS = 10  # of noise


@dataclass(frozen=True)
class Senders:
    """A run's clients, what they sent, `updates` [clients, times, P], and the `values` [clients] of what is inferred.

    layers: per layer of the network, where its parameters lie in P, and their shapes.
    """

    name: str
    clients: np.ndarray
    values: np.ndarray
    updates: np.ndarray
    layers: dict[str, tuple[slice, tuple]]

    @classmethod
    def of(cls, subject: Subject, column: str) -> "Senders":
        """Raises InputError for a run without updates, or whose clients are not speakers with a known value."""
        found, values = read(subject.folder), subject.values(column)
        if wrong := refusal(subject):
            raise InputError(wrong)
        rows = {split.name: np.concatenate([split.train, split.test]) for split in subject.prepared.splits}
        own = {name: values[rows[name][0]] for name in sorted(found) if values[rows[name][0]]}
        times = min(len(found[name]) for name in own)
        kept = np.stack([np.stack(found[name][:times]) for name in own])
        names = (subject.folder.name, np.array(list(own)), np.array(list(own.values())))
        return cls(*names, kept, layers(subject.prepared.model))

    def seen(self, layer: str, mean: bool) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [n, D] of a layer, and which client each is of [n]: of single updates, or of each client's mean. Each
        of length 1, then standardised over the run, which needs no label."""
        part = self.updates[:, :, self.layers[layer][0]].astype(np.float64)
        part = part.mean(1, keepdims=True) if mean else part
        flat = part.reshape(-1, part.shape[-1])
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        flat = (flat - flat.mean(0)) / np.maximum(flat.std(0), 1e-8)
        return flat, np.repeat(np.arange(len(part)), part.shape[1])


def refusal(subject: Subject) -> str:
    """Why this run's updates tell of no speaker; empty where each client is one."""
    table = subject.prepared.store.table
    for split in subject.prepared.splits:
        if table["speaker"].iloc[np.concatenate([split.train, split.test])].nunique(dropna=False) > 1:
            how = f"partition={subject.settings.partition.name}"
            return f"{subject.folder}: an update of client '{split.name}' tells of no single speaker ({how})."
    return ""


def layers(model: nn.Module) -> dict[str, tuple[slice, tuple]]:
    """Where the parameters of each layer lie in the flat vector [P], and their shapes."""
    found: dict[str, tuple[slice, tuple]] = {}
    at = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer, size = name.rpartition(".")[0] or name, parameter.numel()
            first, shapes = found.get(layer, (slice(at, at), ()))
            found[layer] = slice(first.start, at + size), (*shapes, tuple(parameter.shape))
            at += size
    return found


def findings(subject: Subject, others: Sequence[Subject], column: str = "sex") -> list[Finding]:
    """What is inferred of the column, learnt from the run's other clients and from `others`; and which client sent an
    update, learnt from earlier ones. Raises InputError as `Senders.of` does, and for too few speakers."""
    own = Senders.of(subject, column)
    folds = probe.by_group(own.clients, own.values)
    shadows = [Senders.of(each, column) for each in others]
    found = _of_noise(own, folds, column)
    for layer in own.layers:
        for mean in (False, True):
            found += _of_column(own, folds, shadows, layer, mean, column)
        found += _of_sender(own, layer)
    return found


def _of_noise(own: Senders, folds: np.ndarray, column: str) -> list[Finding]:
    """The control: what the same probe makes of noise in an update's place, the mean over several draws."""
    y = np.unique(own.values, return_inverse=True)[1]
    rng, layer, right = np.random.default_rng(0), next(iter(own.layers)), []
    for _ in range(DRAWS):
        noise = rng.standard_normal(own.updates.shape, np.float32)
        x, who = replace(own, updates=noise).seen(layer, mean=False)
        right.append(probe.cross_validated(x, y[who], folds[who]) == y[who])
    more = {"what": column, "source": f"noise in place of updates of {layer}", "whose": "seen"}
    more["protocol"] = f"the probe of single updates, of Gaussian noise, a mean of {DRAWS} draws"
    return of_classes(np.mean(right, 0), y[who], own.clients[who], np.ones(len(who), bool), **more)[:1]


def _of_column(own: Senders, folds: np.ndarray, shadows: Sequence[Senders], layer: str, mean: bool, column: str):
    names, y = np.unique(own.values, return_inverse=True)
    x, who = own.seen(layer, mean)
    predicted = {"its other clients": probe.cross_validated(x, y[who], folds[who])}
    alike = [each for each in shadows if each.layers.get(layer, (0, 0))[1] == own.layers[layer][1]]
    alike = [each for each in alike if set(each.values) == set(names)]
    if alike:
        learnt = [(*each.seen(layer, mean), np.searchsorted(names, each.values)) for each in alike]
        rows, labels = (np.concatenate(part) for part in zip(*((v, z[w]) for v, w, z in learnt), strict=True))
        others = " and ".join(each.name for each in alike)
        predicted[others] = probe.Logistic(rows, labels, len(names)).probabilities(x).argmax(1)
    updates = f"the mean of {own.updates.shape[1]} updates" if mean else "one update"
    found = []
    for whose, labels in predicted.items():
        more = {"what": column, "source": f"{updates} of {layer}, learnt from {whose}", "whose": "seen"}
        more["protocol"] = "logistic regression on one layer's update, tested on clients of whom it has learnt nothing"
        found += of_classes(labels == y[who], y[who], own.clients[who], np.ones(len(who), bool), **more)[:1]
    return found


def _of_sender(own: Senders, layer: str) -> list[Finding]:
    """Learnt from the first half of each client's updates, tested on the second."""
    times = own.updates.shape[1]
    if times < 2:
        return []
    x, who = own.seen(layer, mean=False)
    late = np.arange(len(who)) % times >= times // 2
    told = probe.Logistic(x[~late], who[~late], len(own.clients)).probabilities(x[late]).argmax(1)
    more = {"what": "speaker", "source": f"one update of {layer}, learnt from earlier ones", "whose": "seen"}
    more["protocol"] = "logistic regression among all clients, first half of their updates, tested on the second"
    everyone = np.ones(len(told), bool)
    return of_speakers(told == who[late], own.clients[who[late]], everyone, len(own.clients), **more)
