"""What all backbones share: waveforms in, hidden states out, and which of their parts are trained."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tune = Literal["frozen", "last", "all"]


class Backbone(nn.Module):
    """Waveforms [B, samples] at 16 kHz, zero behind the first `lengths` [B] samples → states [B, L, frames, width].

    count, width: L, and the length of a state.
    least, most: so few samples can a clip have, and so many; None where there is no limit.
    unneeded: how names of weights begin that a checkpoint may hold and the states do without, heads and decoders of its
        pretraining.
    """

    count: int
    width: int
    least: int
    most: int | None = None
    unneeded: tuple[str, ...] = ()
    tuned: Tune = "frozen"

    def frames(self, samples: Tensor) -> Tensor:
        """How many states are real of clips of so many samples [B]."""
        raise NotImplementedError

    def last(self) -> list[nn.Module]:
        """The last layer, with what normalises its output: all that is trained where `tune` says so."""
        raise NotImplementedError

    def never(self) -> list[nn.Module]:
        """What is not trained even where all is."""
        return []

    @property
    def body(self) -> nn.Module:
        """The module whose names a checkpoint's weights have."""
        return self

    def tune(self, which: Tune) -> None:
        """Lets nothing, the last layer or all of it be trained: nothing else needs a gradient, or has dropout."""
        self.tuned = which
        self.requires_grad_(which == "all")
        for module in self.last() if which == "last" else ():
            module.requires_grad_(True)
        for module in self.never():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """As for every module, but that what is not trained stays in eval mode."""
        super().train(mode and self.tuned == "all")
        for module in self.last() if self.tuned == "last" else ():
            module.train(mode)
        for module in self.never():
            module.eval()
        return self


def heard(real: Tensor) -> Tensor:
    """A mask for attention [B, 1, 1, frames]: True where a frame is real, of `real` [B, 1, frames], 1 or 0."""
    return real.bool().unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of so many heads, all [B, frames, width] (Vaswani et al. 2017)."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2)


def sinusoids(frames: int, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines [frames, rates] of positions, computed in float64, in float32."""
    angles = torch.arange(frames, dtype=torch.float64, device=rates.device)[:, None] * rates
    return angles.sin().float(), angles.cos().float()
