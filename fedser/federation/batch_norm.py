"""Batch norm in a federation: `batch_norm=auto | aggregate | local | recompute`.

In training a client's layers normalise by its own batches; what the global model normalises by in evaluation is a
choice. *aggregate*: by the mean of the clients' running statistics. *local*: each client keeps its batch-norm layers,
weights and statistics, and is evaluated with them (FedBN, Li et al. 2021); the global model has their mean, for whoever
has none of her own. *recompute*: by the global model's statistics over all training utterances, which the clients are
asked for before each evaluation. *auto*: local where the network has batch norm and there is a federation, else
aggregate.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedser.config.settings import Settings
from fedser.errors import InputError
from fedser.models.lengths import logits
from fedser.models.weights import BUFFERS, PARAMETERS, layout

LOCAL = "local"  # of weights: the clients' batch-norm layers [clients, N]; of a message: those of its client [N]
STATISTICS, SUMS = "statistics", "sums"  # the query's action, and its reply's record
Weights = dict[str, np.ndarray]
Norm = nn.modules.batchnorm._BatchNorm


def norms(model: nn.Module) -> list[Norm]:
    """The model's batch-norm layers with running statistics, in the order of its modules."""
    return [layer for layer in model.modules() if isinstance(layer, Norm) and layer.running_mean is not None]


def chosen(settings: Settings, model: nn.Module, pooled: bool) -> str:
    """What the setting comes to for a model, where one client trains for all if `pooled`.

    Raises InputError where there is no batch norm to keep at the clients or to ask for, or no clients to keep it.
    """
    choice = settings.batch_norm
    if choice == "auto":
        return "local" if norms(model) and not pooled else "aggregate"
    if choice != "aggregate" and not norms(model):
        raise InputError(
            f"batch_norm={choice}: model={settings.model.name} has no batch-norm layers with running statistics. Set "
            "batch_norm=aggregate, or model.norm=batch where the model has that choice."
        )
    if choice == "local" and pooled:
        raise InputError(f"batch_norm=local: strategy={settings.strategy.name} has one client, who trains for all.")
    return choice


class Local:
    """Which entries of a model's flat vectors belong to its batch-norm layers."""

    def __init__(self, model: nn.Module):
        mine = {id(tensor) for layer in norms(model) for tensor in (*layer.parameters(), *layer.buffers())}
        self.places = {
            key: np.flatnonzero(np.concatenate([np.full(t.numel(), id(t) in mine) for t in tensors] or [[]]))
            for key, tensors in layout(model).items()
        }

    def of(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """The layers' entries [N], a copy."""
        return np.concatenate([weights[key][places] for key, places in self.places.items()])

    def put(self, weights: Mapping[str, np.ndarray], own: np.ndarray) -> Weights:
        """The weights with these entries [N] in their places."""
        parts = np.split(own, [len(self.places[PARAMETERS])])
        changed = {key: weights[key].copy() for key in self.places}
        for (key, places), part in zip(self.places.items(), parts, strict=True):
            changed[key][places] = part
        return dict(weights) | changed

    def begin(self, weights: Weights, clients: int) -> Weights:
        """The initial weights with every client's own layers, which are still the same."""
        return weights | {LOCAL: np.tile(self.of(weights), (clients, 1))}

    def averaged(self, weights: Weights, rows: np.ndarray, sizes: list[int], trained: list[bool]) -> Weights:
        """Weights after a round: the global layers are the mean of the clients' own `rows` [clients, N].

        By their `sizes`, over those that have `trained` so far; the others have the mean until they do. A server
        optimiser's step on these layers is undone: they did not start from the global ones.
        """
        shares = np.where(trained, sizes, 0) / sum(size for size, took in zip(sizes, trained, strict=True) if took)
        mean = (shares @ rows.astype(np.float64)).astype(np.float32)
        return self.put(weights, mean) | {LOCAL: np.where(np.array(trained)[:, None], rows, mean)}


class Statistics(nn.Module):
    """Stands in for a batch-norm layer in eval mode and sums up what it sees, per channel: float64 [2 · C + 1].

    A module of its own and no hook: networks fold their layers into the convolutions in eval mode, past any hook.
    """

    def __init__(self, layer: Norm):
        super().__init__()
        self.layer, self.sums = layer, torch.zeros(2 * layer.num_features + 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, …] → normalised by the running statistics, same shape."""
        others = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = (part.double() for part in torch.var_mean(x, others, correction=0))
        count = x.numel() / x.shape[1]
        seen = torch.cat([mean.new_tensor([1.0]), mean, variance + mean.square()])
        self.sums = self.sums.to(x.device) + count * seen
        layer = self.layer
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)


@torch.no_grad()
def statistics(model: nn.Module, x: Tensor, lengths: Tensor, batch_size: int) -> np.ndarray:
    """The sums of all batch-norm layers' inputs, one after the other, float64 [M], over x [n, 1, T, F] in eval mode.

    The model is as it was afterwards.
    """
    watching = {id(layer): Statistics(layer) for layer in norms(model)}
    there = [place for place in _children(model) if id(place[2]) in watching]
    training = model.training
    model.eval()
    try:
        for parent, name, layer in there:
            setattr(parent, name, watching[id(layer)])
        for part in zip(x.split(batch_size), lengths.split(batch_size), strict=True):
            logits(model, *part)
    finally:
        for parent, name, layer in there:
            setattr(parent, name, layer)
        model.train(training)
    return torch.cat([found.sums.cpu() for found in watching.values()]).numpy()


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, the child's name, child) of all modules below this one."""
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]


class Recomputed:
    """Running statistics from sums over all clients; layers in the order of `norms(model)`."""

    def __init__(self, model: nn.Module):
        self.channels = [layer.num_features for layer in norms(model)]
        offsets, at = {}, 0
        for tensor in layout(model)[BUFFERS]:
            offsets[id(tensor)] = at
            at += tensor.numel()
        self.places = [(offsets[id(layer.running_mean)], offsets[id(layer.running_var)]) for layer in norms(model)]

    def __call__(self, weights: Weights, ask: Callable[[Weights], np.ndarray]) -> Weights:
        """The weights with exact statistics; `ask` gives all clients' sums for a model.

        Asked once per layer: what a layer sees depends on the statistics of all before it.
        """
        for _ in self.channels:
            weights = self.put(weights, ask(weights))
        return weights

    def put(self, weights: Weights, sums: np.ndarray) -> Weights:
        """The weights with mean and (unbiased, as torch keeps it) variance by these sums [M] as running statistics."""
        buffers, at = weights[BUFFERS].copy(), 0
        for width, (mean_at, variance_at) in zip(self.channels, self.places, strict=True):
            count, total, squares = np.split(sums[at : at + 2 * width + 1], [1, 1 + width])
            mean = total / count
            variance = np.maximum(squares / count - mean**2, 0.0) * count / np.maximum(count - 1, 1)
            buffers[mean_at : mean_at + width], buffers[variance_at : variance_at + width] = mean, variance
            at += 2 * width + 1
        return weights | {BUFFERS: buffers}
