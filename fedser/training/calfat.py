"""CalFAT (Chen et al., NeurIPS 2022): federated adversarial training calibrated for clients with few of some classes.

L = CE(f(x′) + log π, y), π_k being the share of class k among the client's own training samples: a class that is
frequent here need not have large logits, so that clients with other shares do not pull the global model to and fro.
The inner attack sees the calibrated logits too. A class that the client lacks counts as one sample, as in the released
code.
"""

import torch
from torch import Tensor, nn

from fedser.models.lengths import logits
from fedser.training.objective import Samples, cross_entropy, scores
from fedser.training.robust import Paired


class CalFAT(Paired):
    """The weighted mean of CE(f(x′) + log π, y)."""

    def __init__(self, **options):
        super().__init__(**options)
        self.counts = torch.zeros(0)  # of the client who is training: how many samples of each class

    def start_round(self, model: nn.Module, samples: Samples, *, round: int, seed: int) -> Samples:
        """Counts the client's samples of each class first."""
        self.counts = torch.bincount(samples.y)
        return super().start_round(model, samples, round=round, seed=seed)

    def target(self, model: nn.Module) -> nn.Module:
        """The network with calibrated logits."""
        return Calibrated(model, self.counts)

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        found = scores(model, batch.adversarial, batch)
        return batch.mean(cross_entropy(found + log_shares(self.counts, found.shape[1]), batch))


class Calibrated(nn.Module):
    """A network whose logits have the logarithms of class shares added, by counts [at most K]."""

    def __init__(self, model: nn.Module, counts: Tensor):
        super().__init__()
        self.model, self.counts = model, counts

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [n, 1, T, F] and real frames [n] → logits [n, K]."""
        found = logits(self.model, x, lengths)
        return found + log_shares(self.counts, found.shape[1])


def log_shares(counts: Tensor, classes: int) -> Tensor:
    """log π [K] of the counts of the first classes [at most K]; a class without samples counts as one."""
    whole = torch.zeros(classes, device=counts.device)
    whole[: len(counts)] = counts.float()
    return (whole.clamp(min=1) / whole.clamp(min=1).sum()).log()
