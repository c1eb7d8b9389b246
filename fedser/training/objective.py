"""Objectives: what a client minimises in its local epochs. `defence.training` chooses one; null is the cross-entropy.

The local loop knows no loss: it calls `start_round` once with all of the client's training samples, then the objective
itself with each batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedser.models.lengths import logits


@dataclass(frozen=True)
class Samples:
    """Training samples.

    x: inputs [n, C, frames, F]; log-Mels have one channel C, and F mel bins.
    y: labels [n].
    weight: of each in the loss [n].
    lengths: how many frames are real [n].
    targets: the probabilities [n, K] that are trained towards, where they are not just the labels (label smoothing,
        mixup); else None.
    adversarial: an adversarial example of each [n, 1, frames, mels], where an objective pairs them; else None.
    ragged: whether zeros that no network hears stand behind a sample's length, so that a batch ends with its longest.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    lengths: Tensor
    targets: Tensor | None = None
    adversarial: Tensor | None = None
    ragged: bool = False

    @classmethod
    def of(cls, x: Tensor, y: Tensor, lengths: Tensor | None = None, ragged: bool = False) -> "Samples":
        """Samples of weight 1; all frames are real where nothing is said of lengths."""
        lengths = torch.full_like(y, x.shape[2]) if lengths is None else lengths
        return cls(x, y, torch.ones(len(x), device=x.device), lengths, ragged=ragged)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Samples":
        parts = {key: part for key, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **{key: part[rows] for key, part in parts.items()})

    def batch(self, rows: Tensor) -> "Samples":
        """These samples, of ragged ones no more than the longest of them has."""
        return (self.cut(int(self.lengths[rows].max())) if self.ragged else self)[rows]

    def cut(self, frames: int) -> "Samples":
        """The first so many frames, not copied."""
        adversarial = None if self.adversarial is None else self.adversarial[:, :, :frames]
        return replace(self, x=self.x[:, :, :frames], adversarial=adversarial)

    @classmethod
    def joined(cls, parts: Sequence["Samples"]) -> "Samples":
        """All of these, one after the other; of a single one no copy."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.x.shape[2] for part in parts)
        parts = [part.padded(longest) for part in parts]
        tensors = [key for key, part in vars(parts[0]).items() if isinstance(part, Tensor)]
        return replace(parts[0], **{key: torch.cat([vars(part)[key] for part in parts]) for key in tensors})

    def padded(self, frames: int) -> "Samples":
        """The same, x with zeros behind up to so many frames."""
        more = frames - self.x.shape[2]
        return replace(self, x=functional.pad(self.x, (0, 0, 0, more))) if more else self

    def weighed(self, factor: float) -> "Samples":
        """The same, so many times as heavy in the loss."""
        return replace(self, weight=self.weight * factor)

    def balanced(self) -> "Samples":
        """The same, weighed so that each class that is there has the same part of the loss; the mean weight is 1."""
        _, place, count = self.y.unique(return_inverse=True, return_counts=True)
        return replace(self, weight=self.weight * (len(self) / (len(count) * count))[place])

    def softened(self, classes: int, smoothing: float) -> "Samples":
        """The same with targets: 1 - smoothing on the label, the rest spread over all classes (Szegedy et al. 2016)."""
        targets = functional.one_hot(self.y, classes) * (1 - smoothing) + smoothing / classes
        return replace(self, targets=targets.to(self.x.dtype))

    @property
    def aims(self) -> Tensor:
        """What the cross-entropy is taken with: the targets [n, K] if there are any, else the labels [n]."""
        return self.y if self.targets is None else self.targets

    def mean(self, each: Tensor) -> Tensor:
        """The weighted mean of the samples' losses [n]."""
        return (each * self.weight).mean()


@dataclass(frozen=True)
class Step:
    """Which step of the training it is: the round, the local epoch and the batch in it (from 0), and a seed of its own
    for whatever is drawn in it."""

    round: int
    epoch: int
    number: int
    seed: int


class CrossEntropy:
    """The weighted mean of the cross-entropies; the base of objectives that change what is trained on, or the loss.

    An objective may say more about itself: which share of the clients trains by it, the others by the cross-entropy
    (`client_fraction`), which networks it can't train (`check_model`), and what the user should read (`remarks`: lines
    that go to the server with the next reply, which shows each of them once).

    `stackable`, which a subclass does not inherit, says that its call draws nothing, keeps nothing and knows no client,
    so that it may be vectorised over several clients' batches (`fedser.training.stacked`).
    """

    client_fraction = 1.0
    remarks: Sequence[str] = ()
    stackable = True

    def check_model(self, model: nn.Module, x: Tensor, lengths: Tensor) -> None:
        """Raises InputError for a network that it can't train, seen in eval mode with a few inputs x and lengths."""

    def start_round(self, model: nn.Module, samples: Samples, *, round: int, seed: int) -> Samples:
        """What the client trains on in this round: here, what it has. `model` has the weights just received."""
        return samples

    def __call__(self, model: nn.Module, batch: Samples, step: Step) -> Tensor:
        """The loss of a batch; `model` is in train mode."""
        return batch.mean(cross_entropy(scores(model, batch.x, batch), batch))


def scores(model: nn.Module, x: Tensor, batch: Samples) -> Tensor:
    """The logits [n, K] of inputs x that are as long as the batch's, in float32 also where the network is not."""
    return logits(model, x, batch.lengths).float()


def cross_entropy(scores: Tensor, batch: Samples) -> Tensor:
    """The cross-entropy of logits with what the batch is trained towards, of each sample [n]."""
    return functional.cross_entropy(scores, batch.aims, reduction="none")
