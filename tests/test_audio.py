"""Reading audio: formats, channels, rates, and every way a file can be bad."""

import numpy as np
import pytest
import soundfile

from fedser.features import audio

RATE = 16000


def tone(seconds=0.5, rate=RATE, hertz=440.0, level=0.25):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("float32")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".FLAC"])
def test_reads_what_was_written(tmp_path, suffix):
    wave = tone()
    soundfile.write(tmp_path / f"clip{suffix}", wave, RATE, subtype="PCM_16")
    read = audio.read(tmp_path / f"clip{suffix}", RATE)
    assert read.dtype == np.float32 and read.shape == wave.shape
    assert np.abs(read - wave).max() <= 1 / 32768


def test_averages_channels(tmp_path):
    left, right = tone(level=0.5), tone(hertz=1000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "stereo.wav", RATE), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resamples(tmp_path, rate):
    soundfile.write(tmp_path / "clip.wav", tone(rate=rate), rate, subtype="FLOAT")
    read = audio.read(tmp_path / "clip.wav", RATE)
    assert len(read) == RATE // 2
    inner = slice(1000, -1000)  # away from the resampling filter's edges
    assert np.abs(read[inner] - tone()[inner]).max() < 2e-3


def no_file(path):
    pass


def no_bytes(path):
    path.touch()


def no_audio(path):
    path.write_text("this is not audio")


def no_samples(path):
    soundfile.write(path, np.zeros(0, "float32"), RATE)


def digital_silence(path):
    soundfile.write(path, np.zeros(RATE, "float32"), RATE)


def constant(path):
    soundfile.write(path, np.full(RATE, 0.5, "float32"), RATE)


def cancelling_channels(path):
    soundfile.write(path, np.stack([tone(), -tone()], axis=1), RATE, subtype="FLOAT")


def with_nan(path):
    soundfile.write(path, np.append(tone(), np.float32("nan")), RATE, subtype="FLOAT")


def with_infinity(path):
    soundfile.write(path, np.append(tone(), np.float32("-inf")), RATE, subtype="FLOAT")


def too_short(path):
    soundfile.write(path, tone()[:511], RATE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_file, "no such file"),
        (no_bytes, "the file is empty"),
        (no_audio, "can't be read as audio: .*ormat not recognised"),
        (no_samples, "no samples"),
        (digital_silence, "silent, all samples are 0"),
        (constant, r"silent, all samples are 0\.5"),
        (cancelling_channels, "silent, all samples are 0"),
        (with_nan, "NaN or infinity"),
        (with_infinity, "NaN or infinity"),
        (too_short, "too short, 511 samples at 16000 Hz where 512 are needed"),
    ],
)
def test_says_what_is_wrong(tmp_path, make, message):
    path = tmp_path / "clip.wav"
    make(path)
    with pytest.raises(audio.BadAudio, match=message) as caught:
        audio.read(path, RATE, min_samples=512)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


def test_a_file_that_breaks_off_is_bad(tmp_path):
    path = tmp_path / "clip.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 10 * RATE), RATE)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(audio.BadAudio, match=r"clip\.flac: (breaks off|can't be read)"):
        audio.read(path, RATE)


def test_a_folder_is_no_audio(tmp_path):
    with pytest.raises(audio.BadAudio):
        audio.read(tmp_path, RATE)
