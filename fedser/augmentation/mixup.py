"""Mixup (Zhang et al. 2018): a clip with a little of another of the same client in it, labelled as both."""

from dataclasses import replace

from fedser.augmentation.draws import Draws
from fedser.config.schema import Half
from fedser.training.objective import Samples


class Mixup:
    """x ← (1 − λ)·x + λ·x′ and the same of the labels' probabilities, λ drawn evenly from [0, most].

    x′ is a random clip of the same client. Label and real frames that stay are those of the larger part; the samples
    have `targets`.
    """

    def __init__(self, most: Half = 0.5):
        self.most = most

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        share, other = self.most * draws.uniform(1), draws.order()
        targets = samples.targets.lerp(samples.targets[other], share)
        x = samples.x.lerp(samples.x[other], share[..., None, None])
        return replace(samples, x=x, targets=targets)
