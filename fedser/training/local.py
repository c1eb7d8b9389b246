"""Local training on one client: some epochs of an objective and, with μ, FedProx's proximal term."""

import contextlib

import torch
from torch import Tensor, nn

from fedser.errors import RunError
from fedser.models.weights import trained
from fedser.randomness import derive, generator, torch_seeded
from fedser.training.objective import Samples, Step


def train(
    model, optimizer, samples: Samples, objective, *, round, epochs, batch_size, precision, mu, seed, clip_norm=None
) -> float:
    """Trains in place on the samples; returns the mean loss of all steps.

    With `clip_norm` a step's gradient is scaled down to that Euclidean norm where it is longer.
    `mu` adds μ/2·‖w − w₀‖² (Li et al. 2020, Eq. 2), w₀ being the weights on entry. Raises RunError when the loss is not
    finite.
    """
    start = [parameter.detach().clone() for parameter in trained(model)] if mu else []
    model.train()
    losses, sizes, finite = [], [], []
    with torch_seeded(derive(seed, "torch"), samples.x.device):  # dropout draws from torch's own generators
        for epoch in range(epochs):
            order = torch.randperm(len(samples), generator=generator(seed, "shuffle", epoch)).to(samples.x.device)
            for number, rows in enumerate(order.split(batch_size)):
                step = Step(round, epoch, number, derive(seed, "step", epoch, number))
                optimizer.zero_grad(set_to_none=True)
                with autocast(precision, samples.x.device):
                    loss = objective(model, samples.batch(rows), step)
                total = loss + proximal(model, start, mu) if mu else loss
                total.backward()
                if clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                losses.append(loss.detach())
                finite.append(total.detach().isfinite())
                sizes.append(len(rows))
    # Looked at only now: to look at a loss is to wait for the GPU, which would then wait for the next step's launch.
    return mean_loss(losses, finite, sizes)


def mean_loss(losses: list[Tensor], finite: list[Tensor], sizes: list[int]) -> float:
    """The mean of batches' losses by their sizes; raises RunError unless all are `finite`, with what is minimised."""
    values = torch.stack(losses).tolist()
    if not torch.stack(finite).all():
        first = values[torch.stack(finite).tolist().index(False)]
        raise RunError(f"the training loss became {first}; a smaller client.lr may help")
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def proximal(model: nn.Module, start: list[Tensor], mu: float) -> Tensor:
    """μ/2·‖w − w₀‖² over the parameters that are trained."""
    return mu / 2 * sum((w - w0).square().sum() for w, w0 in zip(trained(model), start, strict=True))


def autocast(precision: str, device: torch.device):
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
