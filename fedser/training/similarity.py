"""Similarity-based adversarial training of Ren et al. 2020 (Interspeech): what is heard of a pair shall be alike.

L = β · CE(f(x), y) + γ · CE(f(x′), y) + (1 − β − γ) · d(v, v′), v [D] being the input of the network's last layer and d
the mean of the squared differences over its D numbers, as in the released code; there β = γ = 0.4.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedser.config.schema import Share
from fedser.errors import InputError
from fedser.training.objective import Samples, cross_entropy, scores
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
        embed, name = getattr(model, "embed", None), type(model).__name__
        if not callable(embed) or isinstance(embed, nn.Module):
            raise InputError(f"{name} has no method `embed` whose results could be compared: choose another model.")
        with torch.no_grad(), embeddings(model) as kept:
            scores(model, x, Samples.of(x, torch.zeros_like(lengths), lengths))
        if len(kept) != 1 or kept[0].shape[:1] != x.shape[:1]:
            raise InputError(f"the forward of {name} must call its `embed` once, which gives a vector for each input.")

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch with its adversarial examples."""
        with embeddings(model) as kept:
            clean, adversarial = (cross_entropy(each, batch) for each in self.both(model, batch))
        apart = (kept[0] - kept[1]).float().square().flatten(1).mean(1)
        rest = 1 - self.beta - self.gamma
        return batch.mean(self.beta * clean + self.gamma * adversarial + rest * apart)


@contextlib.contextmanager
def embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """A block in which what the model's `embed` gives to its `forward` is kept, one tensor a pass.

    Logits and embedding then come from one pass, with one dropout and one look of batch norm at the batch.
    """
    embed, kept = model.embed, []

    def keeping(*arguments, **more) -> Tensor:
        kept.append(embed(*arguments, **more))
        return kept[-1]

    model.embed = keeping
    try:
        yield kept
    finally:
        del model.embed
