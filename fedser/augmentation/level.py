"""How loud: gain, and noise at a signal-to-noise ratio, both on the spectrogram as the network sees it."""

from dataclasses import replace

from fedser.augmentation.draws import Draws
from fedser.config.schema import NonNegative
from fedser.training.objective import Samples


class Gain:
    """Adds one number to all of a clip's cells, normally distributed: on log-Mels a gain of the recording.

    deviation: in the features' units (σ of a mel bin where they are z-scored).
    """

    def __init__(self, deviation: NonNegative):
        self.deviation = deviation

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        return replace(samples, x=samples.x + self.deviation * draws.normal(1, 1, 1))


class Noise:
    """Adds Gaussian noise to every cell (Ren et al. 2020 train on such spectrograms for comparison).

    snr: a clip's power over the noise's, in dB, both on the spectrogram as the network sees it.
    """

    def __init__(self, snr: float):
        self.snr = snr

    def __call__(self, samples: Samples, draws: Draws) -> Samples:
        power = samples.x.square().mean((1, 2, 3), keepdim=True) / 10 ** (self.snr / 10)
        return replace(samples, x=samples.x + power.sqrt() * draws.normal(*samples.x.shape[1:]))
