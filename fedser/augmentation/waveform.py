"""What is changed on the waveform itself, before any front end: noise at a signal-to-noise ratio, speed.

Samples are x [n, 1, samples, 1] with zeros behind the first `lengths` of each. With log-Mel features these go first,
whatever their place in `augment`, and log-Mels are made anew in each round.
"""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from fedser.augmentation.draws import Draws
from fedser.config.schema import Positive
from fedser.errors import InputError
from fedser.randomness import generator
from fedser.training.objective import Samples

NOISE = 1 << 20  # samples, a minute: to draw where a clip's noise begins in it is far cheaper than to draw the noise


class Noise:
    """Adds white Gaussian noise (Ren et al. 2020 train on noisy speech for comparison).

    snr: (lowest, highest) in dB, drawn evenly for each clip; powers are means over its real samples.
    """

    of_waveforms = True

    def __init__(self, snr: tuple[float, float]):
        self.low, self.high = snr
        if self.low > self.high:
            raise InputError(f"augment.waveform_noise.snr=[{self.low:g},{self.high:g}] must ascend.")

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        x, count = samples.x[:, 0, :, 0], samples.lengths
        real = torch.arange(x.shape[1], device=x.device) < count[:, None]
        snr = self.low + (self.high - self.low) * draws.uniform()
        minute = _noise().to(x.device)
        minute = torch.cat([minute] * (2 + x.shape[1] // NOISE))  # a clip may begin at its very end
        begins = (draws.uniform() * NOISE).long().tolist()
        noise = torch.stack([minute[begin : begin + x.shape[1]] for begin in begins]) * real
        power, of_noise = (part.square().sum(1) / count for part in (x, noise))
        noisy = x + noise * (power / of_noise.clamp(min=1e-12) / 10 ** (snr / 10)).sqrt()[:, None]
        return replace(samples, x=noisy[:, None, :, None])


class Speed:
    """Plays clips faster or slower, tempo and pitch together (Ko et al. 2015).

    percent: by how much at most; each clip is slowed by it, left or quickened by it, as is drawn.
    """

    of_waveforms = True

    def __init__(self, percent: Positive):
        self.percent = percent
        if not percent < 50:
            raise InputError(f"augment.speed.percent={percent:g} must be less than 50.")

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        from torchaudio.functional import resample

        x, count = samples.x[:, 0, :, 0], samples.lengths
        choice, whole = (draws.uniform() * 3).long().clamp(max=2), 1000
        made = {}
        for number in choice.unique().tolist():
            rows, rate = choice == number, round(whole * (1 + (number - 1) * self.percent / 100))
            changed = x[rows] if rate == whole else resample(x[rows], rate, whole)
            made[number] = rows, changed, -(-count[rows] * whole // rate)
        longest = max(changed.shape[1] for _, changed, _ in made.values())
        quick, lengths = x.new_zeros(len(x), longest), count.clone()
        for rows, changed, real in made.values():
            lengths[rows] = real.clamp(max=changed.shape[1])
            quick[rows, : changed.shape[1]] = changed
        behind = torch.arange(longest, device=x.device) >= lengths[:, None]
        return replace(samples, x=quick.masked_fill(behind, 0)[:, None, :, None], lengths=lengths)


@functools.cache
def _noise() -> Tensor:
    """White noise of deviation 1 [NOISE], always the same."""
    return torch.randn(NOISE, generator=generator(0, "waveform noise"))
