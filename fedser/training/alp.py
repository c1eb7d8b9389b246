"""Adversarial logit pairing (Kannan et al. 2018, Eq. 3): a sample and its adversarial example shall have equal logits.

L = ½ · CE(f(x), y) + ½ · CE(f(x′), y) + λ · d(f(x), f(x′)), d being the mean of the squared differences over the K
logits. Both halves go through the network in one batch, as in the released code. x′ is PGD's on the cross-entropy.
"""

import torch
from torch import Tensor, nn

from fedser.config.schema import NonNegative
from fedser.training.objective import Samples, cross_entropy, scores
from fedser.training.robust import Paired


class LogitPairing(Paired):
    """lam: λ, how much the distance between logits counts (0.5 on ImageNet)."""

    def __init__(self, lam: NonNegative = 0.5, **options):
        super().__init__(**options)
        self.lam = lam

    def both(self, model: nn.Module, batch: Samples) -> tuple[Tensor, Tensor]:
        """The logits [n, K] of the samples and of their adversarial examples, from one pass of all of them."""
        whole = Samples.joined([batch, batch])
        return scores(model, torch.cat([batch.x, batch.adversarial]), whole).chunk(2)

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        clean, adversarial = self.both(model, batch)
        mixed = (cross_entropy(clean, batch) + cross_entropy(adversarial, batch)) / 2
        return batch.mean(mixed + self.lam * (clean - adversarial).square().mean(1))
