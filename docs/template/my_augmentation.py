"""An augmentation: some of the clips are played backwards, drawn anew for each clip and round."""

from dataclasses import replace

import torch


class Backwards:
    def __init__(self, share: float = 0.5):
        self.share = share

    def __call__(self, samples, draws):
        turned = draws.uniform(1, 1, 1) < self.share
        return replace(samples, x=torch.where(turned, samples.x.flip(2), samples.x))
