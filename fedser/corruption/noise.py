"""Noisy rooms: white noise on all that a client records."""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedser.config.schema import Fraction


class Noise:
    """Adds white Gaussian noise to a client's recordings (FedAudio, Zhang et al. 2023).

    snr: levels in dB, of which each client has one; powers are means over a clip, which has exactly that level.
    clients: how likely one records in noise at all.

    What is louder than full scale is not cut.
    """

    of = "waveforms"

    def __init__(self, snr: Annotated[tuple[float, ...], Field(min_length=1)], clients: Fraction = 1.0):
        self.snr, self.clients = snr, clients

    def __call__(self, waveform: np.ndarray, client: np.random.Generator, random: np.random.Generator) -> np.ndarray:
        """A waveform float32 [samples] → the same, noisy."""
        snr = client.choice(self.snr)
        if client.random() >= self.clients:
            return waveform
        noise = random.standard_normal(len(waveform))
        power = np.square(waveform, dtype=np.float64).mean() / np.square(noise).mean() / 10 ** (snr / 10)
        return (waveform + np.sqrt(power) * noise).astype(np.float32)
