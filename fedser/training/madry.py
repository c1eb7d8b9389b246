"""Adversarial training as Madry et al. 2018 have it (PGD-AT, their Eq. 2.1): the loss of adversarial examples alone.

L = CE(f(x′), y), x′ within ε of x where the inner attack found the loss largest. With noise in the attack's place
(`defence/training=noise`) it is the control: what training on samples changed as much, by someone who knows nothing
of the model, does.
"""

from torch import Tensor, nn

from fedser.training.objective import Samples, cross_entropy, scores
from fedser.training.robust import Paired


class Madry(Paired):
    """The weighted mean of CE(f(x′), y)."""

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        return batch.mean(cross_entropy(scores(model, batch.adversarial, batch), batch))
