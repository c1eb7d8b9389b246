"""Adversarial training on the clients (Chang et al. 2022, §5.2)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from fedser.config.schema import Count, Share, shown
from fedser.errors import InputError
from fedser.randomness import derive, generator
from fedser.training.objective import CrossEntropy, Samples


class AdversarialTraining(CrossEntropy):
    """Trains on original and adversarial samples, half and half (Eq. 5).

    attack: the attack to train against, see `fedser.config.interfaces.Attack`.
    alpha: the share of the loss that falls on original samples; the rest falls on adversarial ones.
    pairing: "disjoint" attacks the half of the samples that is not kept original (the paper); "paired" attacks the
        half that is, and leaves the others out of this round (the paper's code).
    start_round: the first round with adversarial samples. Before it the model has little to attack.
    """

    def __init__(
        self,
        attack: Callable,
        alpha: Share = 0.5,
        pairing: Literal["disjoint", "paired"] = "disjoint",
        start_round: Count = 2,
    ):
        self.attack = attack
        self.alpha = alpha
        self.pairing = pairing
        self.first_round = start_round

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError where there is no attack to train against."""
        attack = node.get("attack")
        if not (isinstance(attack, dict) and "_target_" in attack):
            given = attack.get("name") if isinstance(attack, dict) else shown(attack)
            raise InputError(
                f"{key}.attack={given} is no attack to train against: choose one, e.g. attack=fgsm or "
                f"{key}.attack='${{attacks.fgsm}}', or train without it (defence=none or defence=randomise)."
            )

    def start_round(self, model: nn.Module, samples: Samples, *, round: int, seed: int) -> Samples:
        """Original samples, then adversarial ones; halves and attack are drawn anew in each round.

        With an odd number the original half has one sample more. The weights make the weighted mean of the losses equal
        to alpha * (mean loss of the original half) + (1 - alpha) * (mean loss of the adversarial half) for halves of
        equal size. Before the first round of adversarial training the samples are returned as they came.
        """
        if round < self.first_round:
            return samples
        order = torch.randperm(len(samples), generator=generator(seed, "halves", round)).to(samples.x.device)
        half = (len(samples) + 1) // 2
        original = samples[order[:half]]
        attacked = samples[order[half:]] if self.pairing == "disjoint" else original
        x_adv = self.attack(model, attacked.x, attacked.y, derive(seed, "attack", round), lengths=attacked.lengths)
        halves = [original.weighed(2 * self.alpha), replace(attacked, x=x_adv).weighed(2 * (1 - self.alpha))]
        return Samples.joined(halves)
