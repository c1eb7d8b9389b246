"""MART (Wang et al., ICLR 2020, Eq. 11): misclassification-aware adversarial training.

L = BCE(p(x′), y) + λ · KL(p(x) ‖ p(x′)) · (1 − p_y(x)), p = softmax(f): samples that the network gets wrong have to be
steadier. BCE(p, y) = −log p_y − log(1 − max over the other classes k of p_k). x′ is PGD's on the cross-entropy.
"""

import torch
from torch import Tensor, nn

from fedser.config.schema import NonNegative
from fedser.training.objective import Samples, cross_entropy
from fedser.training.robust import Paired, divergence


class Mart(Paired):
    """lam: λ, how much the divergence counts (5 in the paper)."""

    def __init__(self, lam: NonNegative = 5.0, **options):
        super().__init__(**options)
        self.lam = lam

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        clean, adversarial = self.both(model, batch)
        boosted = cross_entropy(adversarial, batch) + rival(adversarial, batch.y)
        wrong = 1 - clean.softmax(1).gather(1, batch.y[:, None])[:, 0]
        return batch.mean(boosted + self.lam * wrong * divergence(clean, adversarial))


def rival(scores: Tensor, labels: Tensor) -> Tensor:
    """−log(1 − p_k) of the likeliest class k but the label, of each sample [n], from logits [n, K].

    1 − p_k is the sum of all other classes' probabilities; taken as such its logarithm is finite where p_k rounds to 1.
    """
    likeliest = scores.detach().scatter(1, labels[:, None], -torch.inf).argmax(1, keepdim=True)
    return -scores.log_softmax(1).scatter(1, likeliest, -torch.inf).logsumexp(1)
