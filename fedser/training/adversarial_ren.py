"""Vanilla adversarial training of Ren et al. 2020 (Interspeech): every sample beside its adversarial example.

L = α · CE(f(x), y) + (1 − α) · CE(f(x′), y). There x′ is FGSM's step of ε, clipped to x ± η: at most the smaller of
the two from x, so an `eps` says both.
"""

from torch import Tensor, nn

from fedser.config.schema import Share
from fedser.training.objective import Samples, cross_entropy
from fedser.training.robust import Paired


class Vanilla(Paired):
    """alpha: the share of the loss that falls on the samples themselves."""

    def __init__(self, alpha: Share = 0.5, **options):
        super().__init__(**options)
        self.alpha = alpha

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        clean, adversarial = (cross_entropy(each, batch) for each in self.both(model, batch))
        return batch.mean(self.alpha * clean + (1 - self.alpha) * adversarial)
