"""Square attack on spectrograms: a random search that asks for logits and never for a gradient.

>>> Square(model, eps=0.05, queries=5000)(x, y)
"""

import bisect
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchattacks.attack import Attack

from fedser.attacks.adversary import among, clipped, draws_anew, margin
from fedser.config.schema import Fraction, NonNegative

# After so many of 10,000 queries the share of cells that a patch covers is halved (the paper's §5 and its code).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(Attack):
    """Random search with patches of ±eps (Andriushchenko et al., ECCV 2020, Alg. 1 and 2): a black box, L∞.

    Starts from stripes of ±eps, one sign per mel bin, and keeps each patch that lowers the margin of the label's logit.
    The paper's squares would be wider than a spectrogram has mel bins: a patch that does not fit is as wide as it can
    be, and longer, so that it covers the share of cells that the schedule wants.

    A sample that is predicted wrongly from the start is left as it is, and one that has come to be is left at that.
    On a model that draws anew in every pass, one answer is chance: there every sample is searched until `queries`, and
    each patch is asked about together with what it would change, under the same draws, which takes two queries.

    eps: how far a cell moves, in the units of x.
    queries: forward passes per sample, at most.
    p_init: the share of cells that a patch covers at first, 0 < p_init <= 1.
    clip: (low, high) that x is kept in, or None for features without bounds.

    Every sample's draws are taken at once, so that its result does not depend on which others share its batch.
    """

    knowledge = "black-box"

    def __init__(
        self,
        model,
        eps: NonNegative = 8 / 255,
        queries: Annotated[int, Field(ge=2)] = 5000,
        p_init: Fraction = 0.8,
        clip=None,
    ):
        super().__init__("Square", model)
        self.eps = eps
        self.queries = queries
        self.p_init = p_init
        self.clip = clip

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, 1, T, F] and labels [B]; same shape, detached."""
        x = images.detach()
        mels = x.shape[3]
        draws = torch.rand(len(x), mels + 3 * self.queries).to(x)
        stripes, patches = draws[:, :mels], draws[:, mels:].unflatten(1, (self.queries, 3))
        lowest = margin(self.get_logits(x), labels)
        best = x.clone()
        chance = draws_anew(self.model)
        started = (torch.ones_like(lowest) if chance else lowest >= 0).nonzero()[:, 0]
        if len(started) == 0:
            return best
        best[started] = clipped(x[started] + self.eps * _signs(stripes[started])[:, None, None], self.clip)
        with among(self.model, started):
            lowest[started] = margin(self.get_logits(best[started]), labels[started])
        for query in range(2, self.queries, 2 if chance else 1):
            active = started if chance else started[lowest[started] >= 0]
            if len(active) == 0:
                break
            tried = self._patched(x[active], best[active], patches[active, query], self._share(query))
            with among(self.model, active):
                if chance:
                    lowest[active], found = self._under_same_draws(best[active], tried, labels[active])
                else:
                    found = margin(self.get_logits(tried), labels[active])
            lower = found < lowest[active]
            best[active[lower]] = tried[lower]
            lowest[active[lower]] = found[lower]
        return best

    def _under_same_draws(self, one: Tensor, other: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The margins [B] of both, the randomisation's draws (from torch's generator on the CPU) repeated."""
        before = torch.get_rng_state()
        first = margin(self.get_logits(one), labels)
        torch.set_rng_state(before)
        return first, margin(self.get_logits(other), labels)

    def _patched(self, x: Tensor, best: Tensor, draws: Tensor, share: float) -> Tensor:
        """best [B, 1, T, F] with one patch per sample set to x ± eps; draws [B, 3] say where, and which sign."""
        size = patch(share, *x.shape[2:])
        inside = []
        for axis, (length, extent) in enumerate(zip(x.shape[2:], size, strict=True)):
            first = (draws[:, axis] * (length - extent + 1)).long()[:, None]
            cells = torch.arange(length, device=x.device)
            inside.append((cells >= first) & (cells < first + extent))
        inside = (inside[0][:, :, None] & inside[1][:, None])[:, None]
        return torch.where(inside, clipped(x + self.eps * _signs(draws[:, 2])[:, None, None, None], self.clip), best)

    def _share(self, query: int) -> float:
        """The share of cells that the patch of this query covers."""
        return self.p_init / 2 ** bisect.bisect_left(HALVINGS, query * 10_000 // self.queries)


def patch(share: float, frames: int, mels: int) -> tuple[int, int]:
    """Frames and mel bins of a patch that covers this share of the cells: a square, or longer where none fits."""
    cells = share * frames * mels
    width = min(max(round(math.sqrt(cells)), 1), mels)
    length = min(max(round(cells / width), 1), frames)
    return length, min(max(round(cells / length), 1), mels)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform.dtype)
