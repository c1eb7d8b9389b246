"""The front end: a waveform becomes what the network is fed with, log-Mel frames or itself, differentiably."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedser.config.settings import Features
from fedser.errors import InputError

TINY = 1e-30  # a line without energy has no direction


class LogMel(nn.Module):
    """Waveform [..., samples] → natural-log Mel spectrogram [..., frames, mels], differentiable.

    frames = 1 + (samples − window) // hop: no padding, so samples ≥ window. `fmin` and `fmax` in Hz. Magnitudes
    (not power) are divided by sqrt(Σ window²); Mel bands are Slaney's, each of unit area; `floor` is added before the
    logarithm. The front end of Chang et al. 2022 as in their code. Raises InputError for settings that contradict each
    other.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        window: int = 512,
        hop: int = 256,
        mels: int = 64,
        fmin: float = 20.0,
        fmax: float = 8000.0,
        floor: float = 1e-8,
    ):
        super().__init__()
        positive = {"sample_rate": sample_rate, "window": window, "hop": hop, "mels": mels, "floor": floor}
        for key, value in positive.items():
            if value <= 0:
                raise InputError(f"features.{key}={value} must be greater than 0")
        if not 0 <= fmin < fmax <= sample_rate / 2:
            half = f"half the sample rate, {sample_rate / 2:g} Hz"
            raise InputError(f"features.fmin={fmin} and features.fmax={fmax} must ascend, and not beyond {half}")
        self.hop, self.floor = hop, floor
        # Symmetric: with the periodic one, values are off by up to 0.09.
        taper = torch.hamming_window(window, periodic=False, dtype=torch.float64)
        taper = taper / taper.square().sum().sqrt()
        self.register_buffer("window", taper.float(), persistent=False)
        self.register_buffer("bank", _mel_bank(window // 2 + 1, fmin, fmax, mels, sample_rate), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        pieces = waveform.unfold(-1, len(self.window), self.hop) * self.window  # [..., frames, window]
        return (torch.fft.rfft(pieces).abs() @ self.bank + self.floor).log()


class _Fitted(torch.autograd.Function):
    """`fitted` for attacks on a CPU: clip by clip, as what is small stays in the processor's cache, without padding.

    Its backward pass takes a third of autograd's: one real inverse transform where that has a complex one, frames added
    up as slices, and magnitudes without hypot's care for overflow.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, waveforms: Tensor, log_mel: LogMel, count: int, real: list[int]) -> Tensor:
        window, hop, bank = log_mel.window, log_mel.hop, log_mel.bank
        made, ctx.kept = waveforms.new_empty(len(waveforms), count, bank.shape[1]), []
        for clip, to, frames in zip(waveforms, made, real, strict=True):
            seen = clip[: len(window) + (frames - 1) * hop]
            spectrum = torch.fft.rfft(seen.unfold(-1, len(window), hop) * window)
            size = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag).sqrt_()
            mels = (size @ bank).add_(log_mel.floor)
            to.copy_(fit(mels.log(), count))
            ctx.kept.append((spectrum, size, mels))
        ctx.log_mel, ctx.shape = log_mel, waveforms.shape
        return made

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient to log-Mels [B, count, mels] → to waveforms [B, samples]; not differentiable again."""
        window, hop, bank = ctx.log_mel.window, ctx.log_mel.hop, ctx.log_mel.bank
        # An inverse transform without its 1/n, which counts every line twice but the first and that at half the rate.
        once = torch.full_like(bank[:, :1], 0.5)
        once[0] = 1
        if len(window) % 2 == 0:
            once[-1] = 1
        back, found = (bank * once).T.contiguous(), gradient.new_zeros(ctx.shape)
        for to, by, (spectrum, size, mels) in zip(found, gradient, ctx.kept, strict=True):
            own = torch.zeros_like(mels)
            for part in by.split(len(mels)):  # the clip and its repetitions
                own[: len(part)] += part
            along = (own.div_(mels) @ back).div_(size.clamp(min=TINY))
            pieces = torch.fft.irfft(spectrum * along, len(window), norm="forward").mul_(window)
            overlapped(pieces, hop, to)
        return found, None, None, None


def overlapped(pieces: Tensor, hop: int, to: Tensor) -> None:
    """The adjoint of `unfold`: adds up pieces [frames, window], each of which begins a hop later, in to [samples]."""
    for place, part in enumerate(pieces.split(hop, -1)):
        width = part.shape[-1]
        rows = to[place * hop :].unfold(0, width, hop)[: len(part)]
        rows += part


def _mel_bank(bins: int, fmin: float, fmax: float, mels: int, sample_rate: int) -> Tensor:
    """[bins, mels], triangles of unit area on Slaney's scale."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty bands: said better below
        bank = melscale_fbanks(bins, fmin, fmax, mels, sample_rate, norm="slaney", mel_scale="slaney")
    empty = int((bank.amax(0) == 0).sum())
    if empty:
        raise InputError(
            f"features.mels={mels}: {empty} bands are narrower than the spectrum's {bins} lines and would stay empty; "
            "take fewer, or a longer features.window"
        )
    return bank


def fit(frames: Tensor, count: int) -> Tensor:
    """[..., n, mels] → [..., count, mels]: shorter clips are repeated in frames, longer ones cropped."""
    return torch.cat([frames] * -(-count // frames.shape[-2]), -2)[..., :count, :]


def fitted(log_mel: LogMel, count: int, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-Mels [B, count, mels] of waveforms [B, samples], of which the first `lengths` [B] samples are real (at least
    a window), and how many frames are real [B]; behind them they are repeated."""
    window = len(log_mel.window)
    real = (1 + (lengths - window) // log_mel.hop).clamp(max=count)
    if waveforms.device.type == "cpu" and waveforms.requires_grad and torch.is_grad_enabled():
        return _Fitted.apply(waveforms, log_mel, count, real.tolist()), real
    with torch.autocast(waveforms.device.type, enabled=False):
        if waveforms.device.type == "cpu":
            seen = (window + (real - 1) * log_mel.hop).tolist()  # what comes later is cropped
            made = [log_mel(clip[:end]) for clip, end in zip(waveforms, seen, strict=True)]
            return torch.stack([fit(clip, count) for clip in made]), real
        found = log_mel(waveforms[..., : window + (count - 1) * log_mel.hop])
    order = torch.arange(count, device=real.device) % real[:, None]
    return found.gather(1, order[..., None].expand(-1, -1, found.shape[2])), real


def log_mel(features: Features) -> LogMel:
    """The front end of these settings."""
    return LogMel(**{key: value for key, value in features.front_end.items() if key != "frames"})


def on_waveforms(component) -> bool:
    """Whether an augmentation or an attack changes waveforms, as it says itself, and not the network's inputs."""
    return getattr(component, "of_waveforms", False)


def front_end(features: Features) -> Callable[[Tensor], tuple[Tensor, int]]:
    """A function of a waveform [samples] → its frames [frames, …], and how many of them are real."""
    if features.ragged:
        return lambda waveform: (waveform[: features.limit, None], len(waveform[: features.limit]))
    made = log_mel(features)
    seen = features.window + (features.frames - 1) * features.hop  # samples that show in the frames that are kept

    def frames(waveform: Tensor) -> tuple[Tensor, int]:
        """[frames, mels], of a short clip repeated."""
        found = made(waveform[:seen])
        return fit(found, features.frames), min(len(found), features.frames)

    return frames
