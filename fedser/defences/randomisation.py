"""The two stages of defence: adversarial training (Chang et al. 2022, §5.2) and randomisation at inference (§5.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedser.errors import InputError


class Randomise(nn.Module):
    """Random resizing, then random padding (Xie et al. 2018; Chang et al. 2022, Eq. 6), in train and eval mode alike.

    frames, mels: half-open ranges [low, high) of the lengths that both axes are resized to, bilinearly.
    size: (frames, mels) of the padded result.
    value: what is padded with, in the units of x.

    Every sample has a draw of its own, and samples of equal size are resized together. Gradients flow through.
    """

    def __init__(self, frames=(373, 380), mels=(64, 66), size=(380, 66), value: float = 0.5):
        super().__init__()
        self.ranges = {"frames": tuple(frames), "mels": tuple(mels)}
        self.size = tuple(size)
        self.value = value
        for (axis, (low, high)), length in zip(self.ranges.items(), self.size, strict=True):
            if not 0 < low < high:
                raise InputError(f"defence.inference.{axis}=[{low},{high}] is no range: it is half-open, low < high.")
            if high - 1 > length:
                raise InputError(
                    f"defence.inference.{axis}=[{low},{high}] can draw {high - 1}, which does not fit inside "
                    f"defence.inference.size={list(self.size)}: lower the one or raise the other."
                )

    def draws(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, 4] of (frames, mels, frames before, mels before), the latter two of padding; on the CPU.

        The draws of n samples are the first n of any larger number from a generator in the same state, so one
        generator serves consecutive batches of any size alike.
        """
        uniform = torch.rand(n, 2, 2, dtype=torch.float64, generator=generator)
        low, high = torch.tensor(list(self.ranges.values())).T
        lengths = low + (uniform[:, 0] * (high - low)).long()
        room = torch.tensor(self.size) - lengths + 1
        return torch.cat([lengths, (uniform[:, 1] * room).long()], dim=1)

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        draws: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [B, 1, T, F] -> [B, 1, *size], with the given `draws` [B, 4] or new ones from `generator`.

        Without either, torch's global generator is used. With `lengths` [B], of each x the frames that are real, also
        how many are in the result: from its beginning, padding included, to the last real one. Raises InputError if a
        range would shrink x.
        """
        for (axis, (low, _)), length in zip(self.ranges.items(), x.shape[2:], strict=True):
            if low < length:
                raise InputError(
                    f"Randomisation only enlarges, but defence.inference.{axis} starts at {low} and the input has "
                    f"{length} {axis}: raise defence.inference.{axis} and defence.inference.size."
                )
        draws = self.draws(len(x), generator) if draws is None else draws
        result = self._randomised(x, draws)
        return result if lengths is None else (result, self._rescaled(lengths, draws, x.shape[2]))

    def _randomised(self, x: Tensor, draws: Tensor) -> Tensor:
        if not len(x):
            return x.new_empty(0, x.shape[1], *self.size)
        lengths, offsets = draws[:, :2], draws[:, 2:]
        padded = [None] * len(x)
        for size in lengths.unique(dim=0).tolist():
            rows = (lengths == torch.tensor(size)).all(1).nonzero()[:, 0].tolist()
            resized = F.interpolate(x[rows], size, mode="bilinear", align_corners=True)
            for row, sample in zip(rows, resized.unbind(), strict=True):
                padded[row] = self._pad(sample, *offsets[row].tolist())
        return torch.stack(padded)

    def _rescaled(self, lengths: Tensor, draws: Tensor, frames: int) -> Tensor:
        """Where the last frame made of real ones alone lies after resizing and padding."""
        resized, before = draws[:, 0].to(lengths), draws[:, 2].to(lengths)
        return before + (lengths - 1) * (resized - 1) // max(frames - 1, 1) + 1

    def _pad(self, sample: Tensor, top: int, left: int) -> Tensor:
        below, right = self.size[0] - sample.shape[1] - top, self.size[1] - sample.shape[2] - left
        return F.pad(sample, (left, right, top, below), value=self.value)

    def extra_repr(self):
        (t0, t1), (f0, f1) = self.ranges.values()
        return f"resized to [{t0}, {t1}) × [{f0}, {f1}), padded to {self.size[0]} × {self.size[1]} with {self.value:g}"
