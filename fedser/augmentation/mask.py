"""SpecAugment (Park et al. 2019): bands of mel bins and stretches of frames that the network has to do without."""

from dataclasses import replace

import torch
from torch import Tensor

from fedser.augmentation.draws import Draws
from fedser.config.schema import Count, Share
from fedser.training.objective import Samples


class Mask:
    """Sets bands of mel bins and stretches of frames to the clip's mean.

    mels, frames: the widest, as a share of all mel bins or of the clip's real frames; widths are drawn evenly from 0.
    times: so many bands, and so many stretches, which may overlap.
    """

    def __init__(self, mels: Share, frames: Share, times: Count = 2):
        self.mels, self.frames, self.times = mels, frames, times

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        x, lengths = samples.x, samples.lengths
        bins = torch.full_like(lengths, x.shape[3])
        at_bin = torch.arange(x.shape[3], device=x.device).expand(len(x), -1)
        at_frame = torch.arange(x.shape[2], device=x.device) % lengths[:, None]
        hidden = torch.zeros_like(x, dtype=torch.bool)
        for _ in range(self.times):
            hidden |= _stretch(at_bin, bins, self.mels, draws)[:, None, None, :]
            hidden |= _stretch(at_frame, lengths, self.frames, draws)[:, None, :, None]
        return replace(samples, x=torch.where(hidden, x.mean((1, 2, 3), keepdim=True), x))


def _stretch(places: Tensor, count: Tensor, most: float, draws: Draws) -> Tensor:
    """Which of the places [n, P] lie in a random stretch of each clip's `count` [n] places."""
    share, start = draws.uniform(2).T
    width = (most * share * count).long()
    first = (start * (count - width + 1)).long()
    return (places >= first[:, None]) & (places < (first + width)[:, None])
