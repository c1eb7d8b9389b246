"""Several clients' local training side by side: copies of one network, their steps launched as one.

A GPU waits for a small network's launches, however little each has to do. So the weights of K copies are stacked, and
the objective is vectorised over them (`torch.func.vmap`: convolutions become grouped ones). Every copy sees the batches
that `fedser.training.local.train` would draw for its client, never a padded one, draws the same dropout, and ends where
that would have ended, up to rounding.
"""

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedser.attacks.waveform import Listening
from fedser.models.layers import plainly
from fedser.models.weights import PARAMETERS, layout, trained
from fedser.randomness import derive, generator, torch_seeded
from fedser.training import local
from fedser.training.awp import Loss
from fedser.training.objective import Samples, Step

DROPOUT = nn.modules.dropout._DropoutNd
FEW = 4  # samples that a network is tried on
ALIKE = 0.01  # of the way that a copy goes: far above rounding, and far below another mask of dropout
LATE = 10**6  # a round in which every objective does all that it ever does

Weights = dict[str, list[Tensor]]


def weights_of(model: nn.Module) -> Weights:
    """A copy of what is trained of a model, and of its float buffers."""
    return {key: [tensor.detach().clone() for tensor in tensors] for key, tensors in layout(model).items()}


class Stack:
    """K copies of a model; `parameters` are those of each, views of what is stacked.

    copies: the weights of each, as from `weights_of`. The model itself is left as it is but for its mode.
    """

    def __init__(self, model: nn.Module, copies: Sequence[Weights]):
        names = {id(tensor): f"model.{name}" for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self.model = model
        self.tensors = {
            key: {
                names[id(tensor)]: torch.stack([weights[key][place] for weights in copies])
                for place, tensor in enumerate(tensors)
            }
            for key, tensors in layout(model).items()
        }
        rows = zip(*(tensor.unbind() for tensor in self.tensors[PARAMETERS].values()), strict=True)
        self.parameters = [[nn.Parameter(part) for part in row] for row in rows]

    def __len__(self) -> int:
        return len(self.parameters)

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Each copy's weights as they travel, {"parameters": [P], "buffers": [B]}, on the CPU."""
        empty = torch.zeros(len(self), 0)
        whole = {
            key: torch.cat([tensor.reshape(len(self), -1) for tensor in tensors.values()], 1) if tensors else empty
            for key, tensors in self.tensors.items()
        }
        whole = {key: matrix.cpu().numpy() for key, matrix in whole.items()}
        return [{key: matrix[number] for key, matrix in whole.items()} for number in range(len(self))]


def train(
    stack: Stack,
    optimizers: Sequence[torch.optim.Optimizer],
    samples: Sequence[Samples],
    objective,
    *,
    round: int,
    epochs: int,
    batch_size: int,
    precision: str,
    mu: Sequence[float],
    seeds: Sequence[int],
    clip_norm: float | None = None,
) -> list[float]:
    """What `local.train` does, for every copy of the stack, in place: `optimizers`, `samples`, `mu` and `seeds` are the
    clients'. Returns their losses.

    Clients whose batches are of one size, and neighbours, take a step together: the larger clients should come first.
    Raises RunError when a loss is not finite.
    """
    pool, offsets = Samples.joined(samples), np.cumsum([0, *map(len, samples[:-1])]).tolist()
    steps = _Steps(stack, objective, precision, mu, seeds, pool.x.device)
    joined, seen = _joined(optimizers), [([], [], []) for _ in samples]
    stack.model.train()
    for epoch in range(epochs):
        orders = [torch.randperm(len(own), generator=generator(seed, "shuffle", epoch)) + offset
                  for own, seed, offset in zip(samples, seeds, offsets, strict=True)]  # fmt: skip
        batches = [order.to(pool.x.device).split(batch_size) for order in orders]
        for number in range(max(map(len, batches))):
            for optimizer in joined:
                optimizer.zero_grad(set_to_none=True)
            for places in _of_one_size(batches, number):
                batch = pool[torch.stack([batches[place][number] for place in places])]
                found = steps.gradients(batch, places, Step(round, epoch, number, seed=0))
                for place, loss, total in zip(places, *found, strict=True):
                    if clip_norm:
                        nn.utils.clip_grad_norm_(stack.parameters[place], clip_norm)
                    for kept, value in zip(seen[place], (loss, total.isfinite(), batch.y.shape[1]), strict=True):
                        kept.append(value)
            for optimizer in joined:
                optimizer.step()
    return [local.mean_loss(*own) for own in seen]


def _of_one_size(batches: Sequence[Sequence[Tensor]], number: int) -> Iterator[list[int]]:
    """Neighbours whose batches of this number are of one size; who has none is left out."""
    sizes = [len(own[number]) if number < len(own) else 0 for own in batches]
    for size, places in itertools.groupby(range(len(sizes)), sizes.__getitem__):
        if size:
            yield list(places)


def _joined(optimizers: Sequence[torch.optim.Optimizer]) -> Sequence[torch.optim.Optimizer]:
    """One optimizer for all parameters, which shares the moments of these, where its kind looks at each parameter by
    itself, as torch's own do; else these."""
    first = optimizers[0]
    kind = type(first)
    own = kind is getattr(torch.optim, kind.__name__, None) and kind is not torch.optim.LBFGS
    if not own or len(first.param_groups) > 1:
        return optimizers
    states = {p: each.state[p] for each in optimizers for p in each.param_groups[0]["params"]}
    whole = kind([first.param_groups[0] | {"params": list(states)}])
    whole.state.update(states)
    return [whole]


class _Steps:
    """The gradients of one step of some of a stack's copies."""

    def __init__(self, stack: Stack, objective, precision: str, mu, seeds: Sequence[int], device: torch.device):
        self.stack, self.objective, self.precision = stack, objective, precision
        self.mu = torch.tensor(mu, dtype=torch.float32, device=device) if any(mu) else None
        parameters = stack.tensors[PARAMETERS]
        self.start = {name: tensor.clone() for name, tensor in parameters.items()} if any(mu) else {}
        self.dropout = _Dropout(stack.model, seeds, device)

    def gradients(self, batch: Samples, places: list[int], step: Step) -> tuple[list[Tensor], list[Tensor]]:
        """Sets the gradients of these copies, neighbours, from their batches, tensors [K, n, …]; returns each one's
        loss, and its loss with FedProx's term."""
        frames, losses, totals = _frames(self.stack.model, batch), [], []
        for count, own in itertools.groupby(range(len(places)), frames.__getitem__):
            first, *more = own
            rows = slice(first, first + 1 + len(more))
            where = slice(places[rows][0], places[rows][-1] + 1)
            found = self._together(batch[rows], count, where, step)
            losses += found[0].unbind()
            totals += found[1].unbind()
        return losses, totals

    def _together(self, batch: Samples, frames: int, where: slice, step: Step) -> tuple[Tensor, Tensor]:
        loss = Loss(functools.partial(self._loss, step), self.stack.model)
        weights = {
            key: {name: tensor[where] for name, tensor in tensors.items()}
            for key, tensors in self.stack.tensors.items()
        }
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.pop(PARAMETERS).items()}
        (buffers,) = weights.values()
        tensors = {key: part for key, part in vars(batch).items() if isinstance(part, Tensor)}

        def one(leaves: dict[str, Tensor], buffers: dict[str, Tensor], tensors: dict[str, Tensor]) -> Tensor:
            return functional_call(loss, leaves | buffers, (replace(batch, **tensors).cut(frames),))

        with local.autocast(self.precision, batch.x.device), plainly(), self.dropout.of(where):
            losses = vmap(one)(leaves, buffers, tensors)
        totals = losses if self.mu is None else losses + self._proximal(leaves, where)
        gradients = torch.autograd.grad(totals.sum(), list(leaves.values()), allow_unused=True)
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                for parameters, part in zip(self.stack.parameters[where], gradient.unbind(), strict=True):
                    parameters[place].grad = part
        return losses.detach(), totals.detach()

    def _loss(self, step: Step, model: nn.Module, batch: Samples) -> Tensor:
        return self.objective(model, batch, step)

    def _proximal(self, leaves: dict[str, Tensor], where: slice) -> Tensor:
        """`local.proximal` of each copy [K]."""
        apart = [(leaf - self.start[name][where]).square() for name, leaf in leaves.items()]
        return self.mu[where] / 2 * sum(each.reshape(len(each), -1).sum(1) for each in apart)


def _frames(model: nn.Module, batch: Samples) -> list[int]:
    """How many frames of its batch each client's network would look at, batches being tensors [K, n, …]."""
    frames = batch.lengths.amax(1).tolist() if batch.ragged else [batch.x.shape[3]] * len(batch)
    if hasattr(model, "cut"):
        parts = zip(frames, batch.x, batch.lengths, strict=True)
        return [model.cut(x[:, :, :count], lengths).shape[2] for count, x, lengths in parts]
    return frames


class _Dropout:
    """The masks that each client's network would draw by itself, from the generator that `local.train` seeds for it."""

    def __init__(self, model: nn.Module, seeds: Sequence[int], device: torch.device):
        self.layers = [layer for layer in model.modules() if type(layer) is nn.Dropout and layer.p]
        self.generator = torch.default_generator
        if device.type == "cuda":
            self.generator = torch.cuda.default_generators[device.index]
        self.states = []  # of the generator, one a client
        for seed in seeds if self.layers else ():
            with torch_seeded(derive(seed, "torch"), device):
                self.states.append(self.generator.get_state())

    @contextlib.contextmanager
    def of(self, where: slice) -> Iterator[None]:
        """A block in which the network, vectorised, drops what these clients' would."""
        for layer in self.layers:
            layer.forward = functools.partial(_Masked.apply, functools.partial(self._masks, layer, where))
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _masks(self, layer: nn.Dropout, where: slice, like: Tensor) -> Tensor:
        """What a layer's inputs [K, …] are multiplied by."""
        before, ones, masks = self.generator.get_state(), torch.ones_like(like[0]), []
        for place in range(where.start, where.stop):
            self.generator.set_state(self.states[place])
            masks.append(nn.functional.dropout(ones, layer.p, layer.training))
            self.states[place] = self.generator.get_state()
        self.generator.set_state(before)
        return torch.stack(masks)


class _Masked(torch.autograd.Function):
    """Inputs times masks that belong to each of the vectorised calls."""

    @staticmethod
    def forward(masks, x):
        raise NotImplementedError("only under torch.func.vmap")

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, masks, x):
        """x has what is vectorised as one axis more; autograd sees what is done here."""
        x = x.movedim(in_dims[1], 0)
        return x * masks(x.detach()), 0


def why_not(model: nn.Module, objective, samples: Samples, precision: str, batch_size: int) -> str | None:
    """Why copies of a network can't be trained so by an objective, in words; None where they can.

    Looks at what they are, and then at what becomes of two copies in two steps, here and one after the other: a mask
    that is drawn elsewhere, or a batch that is looked at otherwise, shows there. In double precision: a network with
    maxima, or small batches to normalise by, magnifies rounding in a few steps.
    """
    name = type(objective).__name__
    if not vars(type(objective)).get("stackable") or getattr(objective, "awp", None):
        return f"{name} does more in a step than take a loss"
    if isinstance(model, Listening):
        return "the network stands behind its front end"
    if precision == "bf16" and any(isinstance(layer, DROPOUT) and layer.p for layer in model.modules()):
        return "masks of dropout depend on the number format, which client.precision=bf16 leaves open"
    few = samples[torch.arange(min(len(samples), FEW, batch_size), device=samples.x.device)]
    few = replace(few, **{key: part.double() for key, part in vars(few).items() if _real(part)})
    try:
        if _missed(copy.deepcopy(model).double(), objective, few) <= ALIKE:
            return None
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"{type(model).__name__} can't be vectorised ({' '.join(str(error).split())[:200]})"
    return f"{type(model).__name__} comes out otherwise"


def _missed(model: nn.Module, objective, samples: Samples) -> float:
    """How far two copies end from where they end one after the other, as a share of the way."""
    options = {"round": LATE, "epochs": 2, "batch_size": len(samples), "precision": "fp32"}
    start, apart = weights_of(model), [copy.deepcopy(model) for _ in range(2)]
    for seed, each in enumerate(apart):
        local.train(each, _sgd(trained(each)), samples, objective, **options, mu=0.0, seed=seed)
    stack = Stack(model, [start, start])
    optimizers = list(map(_sgd, stack.parameters))
    train(stack, optimizers, [samples, samples], objective, **options, mu=[0.0, 0.0], seeds=[0, 1])
    shares = [0.0]
    for number, each in enumerate(apart):
        for key, tensors in layout(each).items():
            stacked = [tensor[number] for tensor in stack.tensors[key].values()]
            moved, missed = (_apart(tensors, others) for others in (start[key], stacked))
            shares.append(missed / moved if moved else missed)
    return max(shares, key=lambda share: (math.isnan(share), share))


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01)


def _real(part) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def _apart(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The Euclidean distance of two sets of tensors."""
    return sum((one - other).double().square().sum().item() for one, other in zip(ones, others, strict=True)) ** 0.5
