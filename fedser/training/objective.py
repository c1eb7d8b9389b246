"""Objectives: what a client minimises in its local epochs. `defence.training` chooses one; null is the cross-entropy.

The local loop knows no loss: it calls `start_round` once with all of the client's training samples, then the objective
itself with each batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedser.models.lengths import logits


@dataclass(frozen=True)
class Samples:
    """Training samples.

    x: inputs [n, 1, frames, mels].
    y: labels [n].
    weight: of each in the loss [n].
    lengths: how many frames are real [n].
    targets: the probabilities [n, K] that are trained towards, where they are not just the labels (label smoothing,
        mixup); else None.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    lengths: Tensor
    targets: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor, lengths: Tensor | None = None) -> "Samples":
        """Samples of weight 1; all frames are real where nothing is said of lengths."""
        lengths = torch.full_like(y, x.shape[2]) if lengths is None else lengths
        return cls(x, y, torch.ones(len(x), device=x.device), lengths)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Samples":
        return Samples(**{key: part if part is None else part[rows] for key, part in vars(self).items()})

    @property
    def aims(self) -> Tensor:
        """What the cross-entropy is taken with: the targets [n, K] if there are any, else the labels [n]."""
        return self.y if self.targets is None else self.targets


@dataclass(frozen=True)
class Step:
    """Which step of the training it is: the round, the local epoch and the batch in it (from 0), and a seed of its own
    for whatever is drawn in it."""

    round: int
    epoch: int
    number: int
    seed: int


class CrossEntropy:
    """The weighted mean of the cross-entropies; the base of objectives that change what is trained on, or the loss."""

    def start_round(self, model: nn.Module, samples: Samples, *, round: int, seed: int) -> Samples:
        """What the client trains on in this round: here, what it has. `model` has the weights just received."""
        return samples

    def __call__(self, model: nn.Module, batch: Samples, step: Step) -> Tensor:
        """The loss of a batch; `model` is in train mode."""
        scores = logits(model, batch.x, batch.lengths).float()
        each = functional.cross_entropy(scores, batch.aims, reduction="none")
        return (each * batch.weight).mean()
