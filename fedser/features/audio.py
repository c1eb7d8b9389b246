"""Audio files: one clip in, one clean mono waveform out, or an error that says what is wrong with the file."""

import wave
from pathlib import Path

import numpy as np

from fedser.errors import InputError
from fedser.runs.files import replacing

PCM = 1 << 15  # int16 stands for −1 to 1


class BadAudio(InputError):
    """A file that can't be used as speech; the message names it and says why."""


def read(path: str | Path, sample_rate: int, min_samples: int = 1) -> np.ndarray:
    """The clip at `path` as a float32 waveform [samples] at `sample_rate` Hz, full scale ±1, channels averaged.

    Raises BadAudio if the file can't be decoded to its end, and as `clean` does.
    """
    return clean(*_decode(path), sample_rate, min_samples, path)


def clean(waveform: np.ndarray, rate: int, sample_rate: int, min_samples: int = 1, path="the waveform") -> np.ndarray:
    """A waveform [samples] or [samples, channels] at `rate` Hz as one at `sample_rate`, float32, channels averaged.

    Raises BadAudio, with `path` for its name, if it holds no floats, NaN or infinity, is empty or constant (silent), or
    has fewer than `min_samples` samples at `sample_rate`.
    """
    if waveform.dtype.kind != "f" or waveform.ndim not in (1, 2) or rate < 1:
        raise BadAudio(
            f"{path}: {waveform.dtype} {list(waveform.shape)} at {rate} Hz, where [samples] or [samples, channels] in "
            "floats of full scale ±1 are needed"
        )
    waveform = waveform.astype(np.float32, copy=False)
    if len(waveform) == 0:
        raise BadAudio(f"{path}: empty, there are no samples in it")
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    low, high = waveform.min(), waveform.max()  # NaN and infinity show in them
    if not np.isfinite(low) or not np.isfinite(high):
        raise BadAudio(f"{path}: has samples that are not finite numbers (NaN or infinity)")
    if low == high:
        raise BadAudio(f"{path}: silent, all samples are {low:g}")
    if rate != sample_rate:
        waveform = _resample(waveform, rate, sample_rate)
    if len(waveform) < min_samples:
        raise BadAudio(f"{path}: too short, {len(waveform)} samples at {sample_rate} Hz where {min_samples} are needed")
    return waveform


def to_pcm(waveform: np.ndarray) -> np.ndarray:
    """Floats of full scale ±1 as int16, rounded, kept within full scale."""
    return clipped(np.rint(waveform * PCM))


def clipped(samples: np.ndarray) -> np.ndarray:
    """Numbers in units of int16 as such, kept within its range."""
    return samples.clip(-PCM, PCM - 1).astype(np.int16)


def from_pcm(samples: np.ndarray) -> np.ndarray:
    """Integers as float32 of full scale ±1, as `read` gives them."""
    return (samples / PCM).astype(np.float32)


def write(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """A WAV file of int16 [samples], mono. Raises OSError."""
    with replacing(path) as scratch, wave.open(str(scratch), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


def _decode(path: str | Path) -> tuple[np.ndarray, int]:
    """(samples [n] or [n, channels], rate)"""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            announced = file.frames
            waveform = file.read(dtype="float32")
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise BadAudio(f"{path}: can't be read as audio: {_reason(path, error)}") from error
    if len(waveform) < announced:
        raise BadAudio(f"{path}: breaks off after {len(waveform)} of {announced} samples")
    return waveform, rate


def _reason(path: str | Path, error: Exception) -> str:
    # libsndfile reports every file that it can't open as a "System error".
    if not Path(path).is_file():
        return "there is no such file"
    if Path(path).stat().st_size == 0:
        return "the file is empty"
    return str(getattr(error, "error_string", error)).rstrip(".")


def _resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    import torch
    from torchaudio.functional import resample

    with torch.inference_mode():
        return resample(torch.from_numpy(waveform), rate, sample_rate).numpy()
