"""What is changed on the waveform itself, before any front end: noise at a signal-to-noise ratio, speed.

Samples are x [n, 1, samples, 1] with zeros behind the first `lengths` of each. With log-Mel features these go first,
whatever their place in `augment`, and log-Mels are made anew in each round. One clip at a time, without what it is
padded with: half the numbers, and they stay in the processor's cache.
"""

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedser.augmentation.draws import Draws
from fedser.config.schema import Positive
from fedser.errors import InputError
from fedser.randomness import generator
from fedser.training.objective import Samples

WHOLE = 1000  # samples of a clip at its own speed
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
        x = samples.x.clone()
        minute = _noise().to(x.device)
        snrs = self.low + (self.high - self.low) * draws.uniform()
        begins = (draws.uniform() * NOISE).long().tolist()
        for clip, end, snr, begin in zip(x[:, 0, :, 0], samples.lengths.tolist(), snrs, begins, strict=True):
            real = clip[:end]
            noise = minute[begin : begin + end]
            if end > len(noise):  # it begins again
                noise = torch.cat([noise] + [minute] * (1 + end // NOISE))[:end]
            ratio = real.dot(real) / noise.dot(noise).clamp(min=1e-12)
            real += noise * (ratio / 10 ** (snr / 10)).sqrt()
        return replace(samples, x=x)


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
        choice = (draws.uniform() * 3).long().clamp(max=2) - 1
        made = []
        for clip, end, way in zip(samples.x[:, 0, :, 0], samples.lengths.tolist(), choice.tolist(), strict=True):
            rate = round(WHOLE * (1 + way * self.percent / 100))
            made.append(clip[:end] if rate == WHOLE else _resampler(rate).to(clip.device)(clip[:end]))
        x = pad_sequence(made, batch_first=True)[:, None, :, None]
        return replace(samples, x=x, lengths=samples.lengths.new_tensor([len(clip) for clip in made]))


@functools.cache
def _resampler(rate: int) -> nn.Module:
    """From so many samples to WHOLE."""
    from torchaudio.transforms import Resample

    return Resample(rate, WHOLE)


@functools.cache
def _noise() -> Tensor:
    """White noise of deviation 1 [NOISE], always the same."""
    return torch.randn(NOISE, generator=generator(0, "waveform noise"))
