"""TRADES (Zhang et al., ICML 2019, Eq. 5): accuracy on the samples, and the same answers around them.

L = CE(f(x), y) + β · KL(p(x) ‖ p(x′)), p = softmax(f), x′ within ε of x where that divergence is largest: the attack
`defence/training/attack=pgd_kl`, which leads away from the network's own answer and not from the label.
"""

from torch import Tensor, nn

from fedser.config.schema import NonNegative
from fedser.training.objective import Samples, cross_entropy
from fedser.training.robust import Paired, divergence


class Trades(Paired):
    """beta: how much the divergence counts (the paper's 1/λ, 6 on CIFAR-10); 0 is training without an attack."""

    def __init__(self, beta: NonNegative = 6.0, **options):
        super().__init__(**options)
        self.beta = beta

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples; the divergence's gradient goes through both."""
        clean, adversarial = self.both(model, batch)
        return batch.mean(cross_entropy(clean, batch) + self.beta * divergence(clean, adversarial))
