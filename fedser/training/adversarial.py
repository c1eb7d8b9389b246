"""Adversarial training on the clients (Chang et al. 2022, §5.2)."""

import torch
from torch import Tensor, nn

from fedser.errors import InputError
from fedser.randomness import derive, generator


class AdversarialTraining:
    """Trains on original and adversarial samples, half and half (Eq. 5).

    attack: the `fedser.attacks.Adversary` to train against.
    alpha: the share of the loss that falls on original samples; the rest falls on adversarial ones.
    pairing: "disjoint" attacks the half of the samples that is not kept original (the paper); "paired" attacks the
        half that is, and leaves the others out of this round (the paper's code).
    start_round: the first round with adversarial samples. Before it the model has little to attack.
    """

    def __init__(self, attack, alpha: float = 0.5, pairing: str = "disjoint", start_round: int = 2):
        if not callable(attack):
            raise InputError(
                "Adversarial training needs an attack to train against: choose one, e.g. attack=fgsm or "
                "'defence.training.attack=${attacks.fgsm}', or train without it (defence=none or defence=randomise)."
            )
        if not 0 <= alpha <= 1:
            raise InputError(f"defence.training.alpha is a share between 0 and 1, not {alpha}.")
        if pairing not in ("disjoint", "paired"):
            raise InputError(f"defence.training.pairing is 'disjoint' or 'paired', not {pairing!r}.")
        self.attack = attack
        self.alpha = alpha
        self.pairing = pairing
        self.start_round = start_round

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, *, round: int, seed: int, batch_size: int | None = None):
        """What a client trains on in this round: (x, y, weight), original samples first.

        x [n, 1, T, F] and y [n] are all the training samples of the client, `model` is what it has just received.
        Halves and attack are drawn anew in each round. With an odd n the original half has one sample more. All
        samples are attacked in one call, `batch_size` at a time where memory is short.

        weight [m] makes the weighted mean of the losses, sum(weight * loss) / m, equal to
        alpha * (mean loss of the original half) + (1 - alpha) * (mean loss of the adversarial half) for halves of
        equal size. Before `start_round` it is 1 and x, y are returned as they came.
        """
        if round < self.start_round:
            return x, y, x.new_ones(len(x))
        order = torch.randperm(len(x), generator=generator(seed, "halves", round)).to(x.device)
        half = (len(x) + 1) // 2
        original = order[:half]
        attacked = order[half:] if self.pairing == "disjoint" else original
        x_adv = self.attack(model, x[attacked], y[attacked], derive(seed, "attack", round), batch_size=batch_size)
        weight = x.new_full((half + len(attacked),), 2 * (1 - self.alpha))
        weight[:half] = 2 * self.alpha
        return torch.cat([x[original], x_adv]), torch.cat([y[original], y[attacked]]), weight
