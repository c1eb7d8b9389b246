"""Attacks on the waveform, at a signal-to-noise ratio that every utterance keeps.

Any method for `Adversary` attacks through the differentiable front end: each utterance is scaled by its own budget, so
that ε = 1 is what its level allows, and padding never moves (Feng et al. 2023, Trust-SER, attack at 45 dB).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedser.attacks.adversary import Adversary, BudgetError, Labels, defended, undisturbed
from fedser.config.schema import Count
from fedser.models.lengths import logits

ROWS = 1 << 20  # utterances that a ticket can tell apart
SLACK = 1e-3  # dB, for rounding
CHUNK = 8  # clips attacked at a time on a CPU: waveforms are long


@dataclass(frozen=True)
class Spoken:
    """The waveforms that a network's inputs are made of: x [n, 1, samples, 1], of which `lengths` [n] are real, and the
    `front` that makes them, (waveforms, lengths) → (inputs [n, 1, T, F], real frames [n])."""

    x: Tensor
    lengths: Tensor
    front: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def inputs(self, x: Tensor, batch_size: int) -> Tensor:
        """What the network is given of other waveforms of the same lengths."""
        parts = zip(x.split(batch_size), self.lengths.split(batch_size), strict=True)
        return torch.cat([self.front(*part)[0] for part in parts])


class Listening(nn.Module):
    """A network behind its front end, from waveforms: x [B, 1, samples, 1] and real samples [B] → logits [B, classes].

    front: waveforms and lengths → the network's inputs [B, 1, T, F] and their real frames, differentiable.
    """

    def __init__(self, network: nn.Module, front: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        super().__init__()
        self.network, self.front = network, front

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return logits(self.network, *self.front(x, lengths))

    def each(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The logits [B, draws, classes] of every draw of a known randomisation, which stands behind the front end."""
        return self.network.each(*self.front(x, lengths))

    def behind(self, randomise: nn.Module | None, draws: int) -> "Listening":
        """The same with a randomisation at inference that the attacker knows."""
        return Listening(defended(self.network, randomise, draws), self.front)


class WaveformAdversary(Adversary):
    """An attack on waveforms [B, 1, samples, 1] that leaves each at least `snr` dB above what is added to it.

    snr: 20 · log10(RMS of the waveform / RMS of the change), both over real samples, in dB. With `norm` Linf no sample
        moves by more than the RMS that this allows; with L2 the change as a whole is that long.
    exact: whether the change is scaled to exactly that level, as a single step is in Trust-SER.
    right_only: whether utterances that are misclassified already are left alone, as there.

    The result stays within full scale, ±1, or what a clip itself reaches beyond it. Everything else is `Adversary`'s.
    """

    of_waveforms = True

    def __init__(
        self,
        name: str,
        snr: float,
        labels: Labels,
        method: Callable,
        norm: Literal["Linf", "L2"] = "Linf",
        exact: bool = False,
        right_only: bool = False,
        eot: Count = 10,
        in_order: bool = True,
        **settings: Any,
    ):
        super().__init__(name, 1.0, labels, method, norm, eot=eot, in_order=in_order, **settings)
        self.snr, self.exact, self.right_only = snr, exact, right_only

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        *,
        predictions: Tensor | None = None,
        batch_size: int | None = None,
        randomise: nn.Module | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """As `Adversary`; a `randomise` that is known stands behind the front end of a `Listening` model.

        Raises BudgetError where an utterance's signal-to-noise ratio is below `snr`.
        """
        x = x.detach()
        if len(x) == 0:
            return x.clone()
        lengths = torch.full((len(x),), x.shape[2], device=x.device) if lengths is None else lengths
        real = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, :, None]
        scale = self._scale(x * real, lengths)
        batch_size = batch_size or (CHUNK if x.device.type == "cpu" else len(x))
        if randomise is not None:
            model, batch_size = model.behind(randomise, self.eot), max(1, batch_size // self.eot)
        scaled = _Scaled(model, scale)
        tickets = lengths.long() * ROWS + torch.arange(len(x), device=x.device)
        known = None if randomise is not None else predictions
        made = super().__call__(scaled, x / scale, y, seed, predictions=known, batch_size=batch_size, lengths=tickets)
        change = (made - x / scale) * real
        if self.right_only and y is not None:
            right = _predicted(model, x, lengths, batch_size, seed) == y if known is None else known == y
            change = change * right.view(-1, 1, 1, 1)
        return self._within(x, self._levelled(change, lengths) * scale, lengths)

    def _attack(self, attack, inner, rows, x, y, predictions):
        """Clips that are attacked together are as long as the longest of them, and the rest as it was."""
        longest = int(inner.length.max()) // ROWS
        made = super()._attack(attack, inner, rows, x[:, :, :longest], y, predictions)
        return torch.cat([made, x[rows, :, longest:]], 2)

    def _scale(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What ε = 1 stands for, per utterance [B, 1, 1, 1]: an RMS over real samples, or the length of a change."""
        rms = (x.flatten(1).double().square().sum(1) / lengths).sqrt() / 10 ** (self.snr / 20)
        allowed = rms * lengths.sqrt() if self.norm == "L2" else rms
        return allowed.clamp(min=torch.finfo(torch.float32).tiny).to(x.dtype).view(-1, 1, 1, 1)

    def _levelled(self, change: Tensor, lengths: Tensor) -> Tensor:
        """The change in units of ε, no louder than it may be, and as loud where it is to be exactly."""
        size = change.flatten(1).norm(dim=1)
        loudness = size if self.norm == "L2" else size / lengths.sqrt()
        factor = 1 / loudness if self.exact else 1 / loudness.clamp(min=1)
        return change * torch.where(loudness > 0, factor, 1.0).view(-1, 1, 1, 1)

    def _within(self, x: Tensor, change: Tensor, lengths: Tensor) -> Tensor:
        """x + change within full scale; raises BudgetError where rounding has made it louder than it may be."""
        made = torch.where(change == 0, x, (x + change).clamp(x.clamp(max=-1), x.clamp(min=1)))
        lowest = snr(x, made, lengths).min()
        if lowest < self.snr - SLACK:
            raise BudgetError(f"Attack {self.name} broke its budget: {lowest:.4f} dB where snr={self.snr:g}.")
        return made

    def __str__(self):
        """The threat model in one line."""
        return super().__str__().replace("at most 1 per ", f"at {self.snr:g} dB or more, measured per ")


class _Scaled(nn.Module):
    """A model of waveforms in units of each one's budget. `lengths` are tickets: how many samples are real, and which
    utterance it is, whose scale is looked up, whichever of them a method passes."""

    def __init__(self, model: nn.Module, scale: Tensor):
        super().__init__()
        self.model, self.scale = model, scale
        self.tickets: Tensor | None = None  # of the clips that passed last, and what these are multiplied by

    def _heard(self, v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        real = lengths // ROWS
        if self.tickets is None or not torch.equal(self.tickets, lengths):
            keep = torch.arange(v.shape[2], device=v.device) < real[:, None]
            self.tickets, self.gain = lengths.clone(), self.scale[lengths % ROWS] * keep[:, None, :, None]
        return v * self.gain, real

    def forward(self, v: Tensor, lengths: Tensor) -> Tensor:
        return logits(self.model, *self._heard(v, lengths))

    def each(self, v: Tensor, lengths: Tensor) -> Tensor:
        """The logits of every draw."""
        return self.model.each(*self._heard(v, lengths))


def snr(x: Tensor, made: Tensor, lengths: Tensor) -> Tensor:
    """20 · log10(RMS / RMS of the change) over real samples in dB [B], float64; infinite where nothing moved."""
    real = (torch.arange(x.shape[2], device=x.device) < lengths[:, None]).double()
    before, change = (part[:, 0, :, 0].double() * real for part in (x, made - x))
    return 10 * torch.log10(before.square().sum(1) / change.square().sum(1))


def _predicted(model: nn.Module, x: Tensor, lengths: Tensor, batch_size: int, seed: int) -> Tensor:
    """Classes [B] in eval mode; the model may be in training."""
    with undisturbed(model, x.device, seed), torch.no_grad():
        parts = zip(x.split(batch_size), lengths.split(batch_size), strict=True)
        return torch.cat([logits(model, *part).argmax(1) for part in parts])
