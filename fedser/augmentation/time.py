"""Which part of a clip is seen: a random crop, a random shift. Behind the real frames they are repeated."""

from dataclasses import replace

import torch
from torch import Tensor

from fedser.augmentation.draws import Draws
from fedser.config.schema import Fraction, Share
from fedser.training.objective import Samples


class Crop:
    """A random stretch of each clip's real frames, of at least this share of them."""

    def __init__(self, least: Fraction):
        self.least = least

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        share, place = draws.uniform(2).T
        lengths = (samples.lengths * (self.least + (1 - self.least) * share)).long().clamp(min=1)
        start = (place * (samples.lengths - lengths + 1)).long()
        return replace(samples, x=_frames(samples.x, start, lengths), lengths=lengths)


class Shift:
    """Each clip begins elsewhere, by up to this share of its real frames either way; what is pushed out at one end
    comes in at the other."""

    def __init__(self, most: Share):
        self.most = most

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        share = self.most * (2 * draws.uniform(1)[:, 0] - 1)
        by = (share * samples.lengths).long()
        order = (torch.arange(samples.x.shape[2], device=by.device) + by[:, None]) % samples.lengths[:, None]
        return replace(samples, x=_taken(samples.x, order))


def _frames(x: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
    """x [n, 1, T, F] → so many frames from there on, repeated up to T."""
    return _taken(x, start[:, None] + torch.arange(x.shape[2], device=x.device) % lengths[:, None])


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """The frames of x [n, 1, T, F] in this order [n, T]."""
    return x.gather(2, order[:, None, :, None].expand(-1, 1, -1, x.shape[3]))
