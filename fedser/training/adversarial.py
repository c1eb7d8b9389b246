"""Adversarial training on the clients (Chang et al. 2022, §5.2): half of the samples attacked, once a round."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from fedser.config.schema import Count, Share
from fedser.randomness import derive, generator
from fedser.training.objective import Samples, cross_entropy, scores
from fedser.training.robust import Robust


class AdversarialTraining(Robust):
    """Trains on original and adversarial samples, half and half (Eq. 5); options beside these are `Robust`'s.

    alpha: the share of the loss that falls on original samples; the rest falls on adversarial ones.
    pairing: "disjoint" attacks the half of the samples that is not kept original (the paper); "paired" attacks the
        half that is, and leaves the others out of this round (the paper's code).
    """

    stackable = True  # the attack comes once a round, before

    def __init__(
        self,
        attack: Callable,
        alpha: Share = 0.5,
        pairing: Literal["disjoint", "paired"] = "disjoint",
        start_round: Count = 2,
        **options,
    ):
        super().__init__(attack, start_round, **options)
        self.alpha = alpha
        self.pairing = pairing

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

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The weighted mean of the cross-entropies of a batch of both halves."""
        return batch.mean(cross_entropy(scores(model, batch.x, batch), batch))
