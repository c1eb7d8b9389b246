"""The spectra that backbones without a convolutional front start from: differentiable, and of each clip alone.

All take waveforms [B, samples] at 16 kHz, zero behind the first `lengths` [B] samples, and compute in float32 whatever
the precision around them: in bf16 a mel band has two digits.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedser.models.layers import real_frames

RATE, WINDOW, HOP, MELS = 16_000, 400, 160, 80  # 25 ms every 10 ms
HALF = WINDOW // 2
LEAST_KALDI = WINDOW + HOP  # samples: CMVN needs two frames
LEAST_TERA = HALF + 1  # so many are mirrored
LEAST_WHISPER = HOP


def _constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A table made once for each device. No buffer of a module: those are averaged over clients, these never change."""

    @functools.cache
    def made(device: torch.device, *sizes: int) -> Tensor:
        with torch.inference_mode(False):  # else it could never stand in a gradient
            return make(*sizes).to(device)

    return made


@_constant
def _hann() -> Tensor:
    return torch.hann_window(WINDOW)


@_constant
def _hamming() -> Tensor:
    return torch.hamming_window(WINDOW, periodic=False)


@_constant
def _kaldi_bank() -> Tensor:
    from torchaudio.compliance.kaldi import get_mel_banks

    bank, _ = get_mel_banks(MELS, 512, RATE, 20.0, 0.0, 100.0, -500.0, 1.0)
    return F.pad(bank, (0, 1)).T.contiguous()  # the last line of the spectrum is in no band


@_constant
def _htk_bank() -> Tensor:
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(HALF + 1, 0.0, RATE / 2, MELS, RATE)


@_constant
def _slaney_bank(mels: int) -> Tensor:
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(HALF + 1, 0.0, RATE / 2, mels, RATE, norm="slaney", mel_scale="slaney")


def _power(waveforms: Tensor) -> Tensor:
    """Power spectra [B, frames, 201] of waveforms [B, samples], without padding; periodic Hann window."""
    return torch.fft.rfft(waveforms.unfold(-1, WINDOW, HOP) * _hann(waveforms.device)).abs().square()


def standardised(frames: Tensor, count: Tensor) -> Tensor:
    """Each bin at mean 0 and deviation 1 over a clip's real frames, zero behind (CMVN, as s3prl's: n − 1, ε = 1e-10).

    frames [B, T, F], count [B] of real ones, at least 2. Means are taken of differences to the first frame: a bin that
    does not vary, as one below the logarithm's floor, is then 0 and not rounding noise divided by itself.
    """
    real, count = real_frames(count, frames.shape[1]).transpose(1, 2), count[:, None, None]
    frames = (frames - frames[:, :1]) * real
    frames = (frames - frames.sum(1, keepdim=True) / count) * real
    variance = frames.square().sum(1, keepdim=True) / (count - 1)
    return frames / (1e-10 + variance.clamp(min=1e-30).sqrt())  # a root has no gradient at 0


def kaldi_frames(samples: Tensor) -> Tensor:
    """How many frames `kaldi_fbank` makes of so many samples."""
    return (samples - WINDOW) // HOP + 1


def kaldi_fbank(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Kaldi's log-Mel filter bank with CMVN [B, frames, 80].

    Hamming window, no dither, as `torchaudio.compliance.kaldi.fbank(…, window_type="hamming")`, for a batch: frames end
    within the clip, so that none sees what lies behind.
    """
    device = waveforms.device
    with torch.autocast(device.type, enabled=False):
        pieces = waveforms.unfold(-1, WINDOW, HOP)
        pieces = pieces - pieces.mean(-1, keepdim=True)
        pieces = pieces - 0.97 * torch.cat([pieces[..., :1], pieces[..., :-1]], -1)
        lines = torch.fft.rfft(pieces * _hamming(device), 512).abs().square()
        mels = (lines @ _kaldi_bank(device).to(lines)).clamp(min=torch.finfo(torch.float32).eps).log()
        return standardised(mels, kaldi_frames(lengths))


def tera_frames(samples: Tensor) -> Tensor:
    """How many frames `tera_mel` makes of so many samples."""
    return samples // HOP + 1


def tera_mel(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """TERA's log-Mel with CMVN [B, frames, 80].

    Level −25 dB, frames centred with the clip mirrored at both ends, power, HTK bands without norm, ln(x + 1e-10).
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        rms = (waveforms.square().sum(1) / lengths).clamp(min=1e-30).sqrt()
        waveforms = waveforms * (10 ** (-25 / 20) / (rms + 1e-10))[:, None]
        mels = _power(_mirrored(waveforms, lengths)) @ _htk_bank(waveforms.device).to(waveforms)
        return standardised((mels + 1e-10).log(), tera_frames(lengths))


def _mirrored(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Waveforms with half a window more at either end, each mirrored at its own first and last sample."""
    place = torch.arange(-HALF, waveforms.shape[1] + HALF, device=waveforms.device).abs()
    last = lengths[:, None] - 1
    return waveforms.gather(1, (last - (place - last).abs()).clamp(min=0))


def whisper_mel(waveforms: Tensor, mels: int, most: int) -> Tensor:
    """Whisper's log10-Mel [B, mels, samples // 160 + 3], at most `most` frames: the longest clip's and silence.

    As WhisperFeatureExtractor gives them for a clip in 30 s of zeros, cut: the clip is mirrored at its beginning, with
    zeros behind it. (One that ends less than half a window before 30 s is mirrored there, too; here zeros follow.) The
    three frames of silence are what Whisper's convolutions see behind the last real one.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        behind = 2 * HOP + HALF - waveforms.shape[1] % HOP
        waveforms = F.pad(F.pad(waveforms, (0, behind)), (HALF, 0), mode="reflect")
        bands = _power(waveforms)[:, :most] @ _slaney_bank(waveforms.device, mels).to(waveforms)
        bands = bands.clamp(min=1e-10).log10()
        return ((torch.maximum(bands, bands.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0).transpose(1, 2)
