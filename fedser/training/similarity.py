"""Similarity-based adversarial training of Ren et al. 2020 (Interspeech): what is heard of a pair shall be alike.

L = β · CE(f(x), y) + γ · CE(f(x′), y) + (1 − β − γ) · d(v, v′), v [D] being the input of the network's last layer and d
the mean of the squared differences over its D numbers, as in the released code; there β = γ = 0.4.
"""

from torch import Tensor, nn

from fedser.attacks.waveform import Listening
from fedser.config.schema import Share
from fedser.errors import InputError
from fedser.models.embedding import check_embed, embeddings
from fedser.training.objective import Samples, cross_entropy
from fedser.training.robust import Paired, Robust


class Similarity(Paired):
    """Needs a network with a method `embed`, its own `forward` up to the last layer: x[, lengths] → v [n, D].

    beta, gamma: the shares of the loss that fall on the samples themselves and on their adversarial examples; the
        rest falls on how far apart they lie.
    """

    def __init__(self, beta: Share = 0.4, gamma: Share = 0.4, **options):
        super().__init__(**options)
        self.beta, self.gamma = beta, gamma

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError for shares of more than the whole too."""
        Robust.check_options(node, key)
        beta, gamma = node.get("beta", 0.4), node.get("gamma", 0.4)
        if all(isinstance(share, int | float) for share in (beta, gamma)) and beta + gamma > 1 + 1e-9:
            raise InputError(f"{key}: beta={beta:g} and gamma={gamma:g} are shares of one loss: at most 1 together.")

    def check_model(self, model: nn.Module, x: Tensor, lengths: Tensor) -> None:
        """Raises InputError where the network has no `embed`, or does without it."""
        check_embed(model, x, lengths)

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        with embeddings(model.network if isinstance(model, Listening) else model) as kept:
            clean, adversarial = (cross_entropy(each, batch) for each in self.both(model, batch))
        apart = (kept[0] - kept[1]).float().square().flatten(1).mean(1)
        rest = 1 - self.beta - self.gamma
        return batch.mean(self.beta * clean + self.gamma * adversarial + rest * apart)
