"""A speech-like corpus shaped like DEMoS, made on the spot, so that `fedser` runs where no corpus is at hand.

    table = read(scale=0.1, seed=0)      # 68 speakers, about 940 clips, generated into the cache once

Every clip is a nonsense utterance by source-filter synthesis: a pulsed glottal source and noise, a random syllable
sequence that moves four formants, a voice (pitch level, vocal tract length, voice quality) that belongs to the
speaker, and an emotion that exists only as prosody: the table `PROSODY`. It tells whether a federation learns, can
be attacked and can be defended; it says nothing about human emotion. Waveforms differ between clips in gain,
background noise and microphone colour, so that absolute level gives nothing away.
"""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import rich.console
import rich.progress
import scipy.fft
import soundfile

from fedser.data.corpora import demos
from fedser.errors import InputError, RunError
from fedser.randomness import derive
from fedser.runs import cache

VERSION = 1  # raise it whenever the same options give other samples: it is part of the cache entry's name
RATE = 16_000  # Hz
HOP = 128  # samples between two frames of the control tracks: 8 ms
WINDOW = 512  # samples of the short-time filtering: 32 ms, short enough for formants to move
MAX_SCALE = 50.0
OPTIONS = "synthetic.json"  # beside DEMOS/: what the folder was made from
CODES = {  # DEMoS's three-letter emotion codes, in the order of its counts
    "anger": "rab",
    "disgust": "dis",
    "fear": "pau",
    "guilt": "col",
    "happiness": "gio",
    "sadness": "tri",
    "surprise": "sor",
}


@dataclasses.dataclass(frozen=True)
class Prosody:
    """How an emotion departs from a speaker's neutral voice. Fields are the columns of `PROSODY`."""

    pitch: float  # mean F0, semitones
    span: float  # standard deviation of the pitch accents, semitones
    slope: float  # F0 declination (−) or rise (+) across the clip, semitones
    glide: float  # F0 movement inside each vowel, semitones
    rate: float  # syllables per second
    pause: float  # probability that a syllable is silent
    accent: float  # level difference among syllables, dB
    tilt: float  # spectral slope of the voice above 500 Hz, dB per octave, on top of the glottal pulse's own
    breath: float  # aspiration noise against the voiced source, dB
    jitter: float  # cycle-to-cycle variation of the period, %
    tremor: float  # depth of a 5–9 Hz modulation of F0 and level, semitones and half as many dB
    vowels: float  # size of the vowel space against neutral, ratio
    mouth: float  # formant frequencies against neutral (spread lips raise them, a lowered larynx lowers them), ratio


# Directions follow the literature on acoustic correlates of vocal emotion where it agrees (Banse & Scherer 1996;
# Juslin & Laukka 2003; for smiling Tartter 1980): arousal raises pitch, rate and high-frequency energy, sadness lowers
# them, fear trembles, smiling raises the formants. That disgust creaks, surprise rises to the end and guilt is a
# hesitant, breathy relative of sadness is this corpus's own choice. Sizes are larger and scatter is smaller than in
# people: they are tuned so that the default run learns most of it in a minute, and FGSM undoes most of that.
PROSODY = {
    #                    pitch span slope glide rate pause accent tilt breath jitter tremor vowels mouth
    "anger": Prosody(3.0, 2.5, -2.0, -2.0, 6.0, 0.00, 5.0, 6.0, -34.0, 1.6, 0.0, 1.15, 1.00),
    "disgust": Prosody(-4.0, 1.6, -3.0, -3.0, 3.4, 0.06, 3.0, 1.0, -26.0, 6.0, 0.0, 0.90, 0.90),
    "fear": Prosody(8.0, 1.0, 0.0, 0.5, 7.0, 0.06, 2.0, 0.5, -16.0, 2.5, 2.0, 0.80, 1.04),
    "guilt": Prosody(-1.0, 0.8, -1.0, -0.5, 4.2, 0.24, 2.0, -2.0, -3.0, 1.5, 0.2, 0.80, 0.97),
    "happiness": Prosody(4.0, 4.0, 1.0, 6.0, 5.0, 0.02, 3.5, 2.0, -34.0, 0.8, 0.2, 1.15, 1.11),
    "sadness": Prosody(-3.0, 0.6, -2.0, -1.0, 2.5, 0.06, 2.0, -6.0, -24.0, 1.0, 0.5, 0.75, 0.96),
    "surprise": Prosody(5.0, 1.5, 14.0, 9.0, 3.0, 0.04, 3.0, 0.0, -20.0, 0.8, 0.0, 1.05, 1.02),
}
NEUTRAL = Prosody(0.0, 1.8, -1.5, 0.0, 4.6, 0.06, 3.0, 0.0, -24.0, 1.2, 0.0, 1.0, 1.0)
# Standard deviation within an emotion, from clip to clip: what makes neighbours overlap.
SCATTER = Prosody(0.7, 0.25, 0.7, 0.4, 0.22, 0.01, 0.4, 0.45, 1.2, 0.2, 0.07, 0.03, 0.015)

VOWELS = np.array(  # F1–F4 of /i e a o u/ for a male vocal tract, Hz
    [
        [290, 2250, 2900, 3550],
        [430, 1950, 2600, 3500],
        [740, 1300, 2500, 3450],
        [480, 900, 2450, 3400],
        [320, 750, 2300, 3350],
    ],
    dtype=np.float32,
)
SCHWA = VOWELS.mean(axis=0)  # the centre of the vowel space
BANDWIDTHS = np.array([70.0, 100.0, 150.0, 220.0, 300.0], dtype=np.float32)  # Hz, of F1–F4 and a fixed fifth formant
FREQUENCIES = np.fft.rfftfreq(WINDOW, 1 / RATE).astype(np.float32)  # [257] Hz
# [257] octaves from 1 kHz, flat below 500 Hz: a slope hinged there keeps the level roughly where it was.
OCTAVES = np.log2(np.maximum(FREQUENCIES, 500.0) / 1000.0)
HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker's constants in every clip: offsets to the prosody, the vocal tract, and how much emotion shows."""

    f0: float  # Hz
    tract: float  # formant frequencies against an average male's, ratio
    tilt: float  # dB per octave
    breath: float  # dB
    rate: float  # ratio
    open_quotient: float  # share of the glottal cycle that is open
    expression: float  # 1: as in the table, 0: neutral


def voice(seed: int, speaker: str, sex: str) -> Voice:
    """The voice of a speaker: women about 10 semitones higher and with shorter vocal tracts than men."""
    rng = np.random.default_rng(derive(seed, "voice", speaker))
    f0, tract = (205.0, 1.12) if sex == "f" else (118.0, 1.0)
    return Voice(
        f0=f0 * 2 ** (rng.normal(0, 1.8) / 12),
        tract=tract * rng.normal(1, 0.02),
        tilt=rng.normal(0, 0.4),
        breath=rng.normal(0, 1.0),
        rate=rng.normal(1, 0.05),
        open_quotient=rng.uniform(0.5, 0.75),
        expression=rng.uniform(0.75, 1.2),
    )


def perform(rng: np.random.Generator, emotion: str, expression: float) -> Prosody:
    """One performance of an emotion: the table's, scaled by expression around neutral, plus the clip's scatter."""
    values = {}
    for field in dataclasses.fields(Prosody):
        neutral, target, scatter = (getattr(row, field.name) for row in (NEUTRAL, PROSODY[emotion], SCATTER))
        values[field.name] = neutral + expression * (target - neutral) + rng.normal(0, scatter)
    for name, low in {"span": 0.2, "rate": 2.0, "pause": 0.0, "accent": 0.5, "jitter": 0.1, "tremor": 0.0}.items():
        values[name] = max(values[name], low)
    return Prosody(**values)


@dataclasses.dataclass(frozen=True)
class Tracks:
    """A clip's control tracks, one value per frame of 8 ms."""

    f0: np.ndarray  # [T] Hz
    voiced: np.ndarray  # [T] amplitude of the glottal source
    hiss: np.ndarray  # [T] amplitude of consonant noise
    place: np.ndarray  # [T] centre of the consonant noise, Hz
    formants: np.ndarray  # [T, 4] Hz


def utter(rng: np.random.Generator, speaker: Voice, style: Prosody, seconds: float) -> Tracks:
    """A random 'text' in a given style: consonant–vowel syllables laid out as knots and interpolated to frames."""
    frames = np.arange(int(seconds * RATE / HOP)) * (HOP / RATE)  # s
    lengths = rng.lognormal(0, 0.2, size=32) / (style.rate * speaker.rate)  # s
    starts = np.cumsum(lengths) - lengths - rng.uniform(0, 0.1)
    lengths, starts = lengths[starts < seconds], starts[starts < seconds]
    n = len(starts)
    # Four knots a syllable: onset of the consonant, its release, the middle of the vowel, its end.
    times = (starts[:, None] + lengths[:, None] * np.array([0.05, 0.3, 0.6, 0.95])).ravel()

    def track(*knots: np.ndarray) -> np.ndarray:
        return np.interp(frames, times, np.stack(np.broadcast_arrays(*knots), axis=1).ravel())

    sounding = rng.random(n) >= style.pause
    sounding[0] = True
    stress = rng.normal(0, 1, n)
    loudness = sounding * 10 ** (style.accent * stress / 20)
    kind = rng.choice(3, n, p=[0.35, 0.35, 0.3])  # fricative, plosive, voiced consonant
    hold = np.array([0.0, 0.0, 0.35])[kind] * loudness  # how much voice goes on through the consonant
    burst = np.array([0.25, 0.0, 0.02])[kind] * loudness
    release = np.array([0.12, 0.3, 0.01])[kind] * loudness
    place = rng.uniform(1800, 6500, n)  # Hz

    vowels = VOWELS[rng.integers(len(VOWELS), size=n)]
    vowels = SCHWA + (vowels - SCHWA) * style.vowels * rng.normal(1, 0.05, vowels.shape)
    locus = 0.5 * (vowels + SCHWA)  # consonants pull the formants towards the centre
    formants = np.stack([track(locus[:, i], vowels[:, i], vowels[:, i], locus[:, i]) for i in range(4)], axis=1)

    accents = style.span * (0.7 * stress + 0.7 * rng.normal(0, 1, n))
    half = style.glide / 2
    semitones = style.pitch + style.slope * (frames / seconds - 0.5)
    semitones += track(accents - half, accents - half, accents, accents + half)
    shake = np.sin(2 * np.pi * (rng.uniform(5, 9) * frames + rng.random()))
    return Tracks(
        f0=np.clip(speaker.f0 * 2 ** ((semitones + style.tremor * shake) / 12), 55, 700),
        voiced=track(hold, 0.8 * loudness, loudness, 0.5 * loudness) * 10 ** (0.5 * style.tremor * shake / 20),
        hiss=track(burst, release, 0 * burst, 0 * burst),
        place=track(place, place, place, place),
        formants=formants * (speaker.tract * style.mouth),
    )


def glottal(rng: np.random.Generator, f0: np.ndarray, jitter: float, open_quotient: float) -> np.ndarray:
    """The derivative of glottal flow at 16 kHz: a polynomial pulse while the folds are open, nothing while closed.

    `f0` [T] Hz per frame; `jitter` % of the period; the amplitude shimmers by three times as much. Returns [T·HOP].
    The pulse is Klatt & Klatt's (1990): slope 2u − 3u² in the open phase u.
    """
    positions = np.arange(len(f0) * HOP)
    f0 = np.interp(positions, np.arange(len(f0)) * HOP, f0)
    cycles = np.cumsum(f0) / RATE
    wobble = rng.normal(0, jitter / 100, int(cycles[-1]) + 2)  # one draw per cycle, interpolated so that none is cut
    cycles = cycles + np.interp(cycles, np.arange(len(wobble)), wobble)
    number = np.clip(cycles.astype(int), 0, len(wobble) - 1)
    u = (cycles - number) / open_quotient
    return np.where(u < 1, 2 * u - 3 * u**2, 0.0) * (1 + 3 * wobble[number])


def spectra(signal: np.ndarray) -> np.ndarray:
    """The short-time spectra [T, 257] of a signal [T·HOP], one per frame, centred on it."""
    padded = np.pad(signal.astype(np.float32), (WINDOW // 2, WINDOW // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(signal) // HOP]
    return scipy.fft.rfft(windows * HANN, axis=1)


def overlap_add(frames: np.ndarray) -> np.ndarray:
    """The signal [T·HOP] of short-time spectra [T, 257]: the inverse of `spectra` up to a constant."""
    windows = scipy.fft.irfft(frames, n=WINDOW, axis=1) * HANN
    steps = WINDOW // HOP
    out = np.zeros((len(windows) + steps - 1, HOP), dtype=np.float32)
    for step in range(steps):
        out[step : step + len(windows)] += windows[:, step * HOP : (step + 1) * HOP]
    return out.ravel()[WINDOW // 2 :][: len(windows) * HOP]


def resonance(formants: np.ndarray, tract: float) -> np.ndarray:
    """The magnitude [T, 257] of a cascade of resonators at F1–F4 [T, 4] Hz and a fixed fifth one."""
    power = np.ones((len(formants), len(FREQUENCIES)), dtype=np.float32)
    squares = FREQUENCIES**2
    fifth = np.full((len(formants), 1), 4300.0 * tract)
    for centre, width in zip(np.hstack([formants, fifth]).astype(np.float32).T, BANDWIDTHS, strict=True):
        centre = centre[:, None] ** 2
        power *= centre**2 / ((centre - squares) ** 2 + squares * width**2)
    return np.sqrt(power)


def synthesise(rng: np.random.Generator, speaker: Voice, style: Prosody, seconds: float) -> np.ndarray:
    """The clean waveform [n] of one utterance at 16 kHz, with a root mean square of 1."""
    tracks = utter(rng, speaker, style, seconds)
    source = glottal(rng, tracks.f0, style.jitter, speaker.open_quotient)
    source = source / np.sqrt(np.mean(source**2))
    noise = spectra(rng.standard_normal(len(source), dtype=np.float32))
    tilt = style.tilt + speaker.tilt
    slope = 10 ** (tilt * OCTAVES / 20)
    aspiration = 10 ** ((style.breath + speaker.breath) / 20)
    excitation = spectra(source) * slope + noise * aspiration * np.minimum(FREQUENCIES / 1000.0, 2.0)
    spoken = excitation * resonance(tracks.formants, speaker.tract) * tracks.voiced[:, None].astype(np.float32)
    band = 1 / (1 + ((FREQUENCIES - tracks.place[:, None].astype(np.float32)) / 900.0) ** 2)
    wave = overlap_add(spoken + noise * band * tracks.hiss[:, None].astype(np.float32))
    return wave / np.sqrt(np.mean(wave**2) + 1e-12)


def record(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """A waveform [n] as a microphone records it: colour, background noise, gain. Peaks stay below full scale."""
    colour = 10 ** (rng.normal(0, 0.4) * OCTAVES / 20)
    hum = 10 ** (rng.uniform(-5, -3) * OCTAVES / 20)
    background = overlap_add(spectra(rng.standard_normal(len(wave), dtype=np.float32)) * hum)
    background *= 10 ** (-rng.uniform(20, 32) / 20) / np.sqrt(np.mean(background**2))
    heard = overlap_add(spectra(wave) * colour)
    heard = heard / np.sqrt(np.mean(heard**2) + 1e-12) + background
    peak = 10 ** (rng.uniform(-16, -2) / 20)
    return (heard * (peak / np.abs(heard).max())).astype(np.float32)


def utterance(seed: int, speaker: str, sex: str, emotion: str, index: int) -> np.ndarray:
    """One clip, float32 [n] in (−1, 1) at 16 kHz, 1.0–2.5 s long. A function of its arguments alone."""
    rng = np.random.default_rng(derive(seed, "clip", speaker, emotion, index))
    owner = voice(seed, speaker, sex)
    style = perform(rng, emotion, owner.expression)
    return record(rng, synthesise(rng, owner, style, seconds=rng.uniform(1.0, 2.5)))


def counts(scale: float) -> pd.DataFrame:
    """How many clips of each emotion each speaker gets: columns speaker, sex, and one per emotion.

    Proportional to DEMoS's own counts, by largest remainders within a speaker, and at least one of every emotion
    that the speaker has in DEMoS (speaker 20 has no happiness). Scale 1 gives DEMoS's 9,365.
    Raises InputError for a scale outside (0, 50].
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= MAX_SCALE:
        raise InputError(f"dataset.scale must be above 0 and at most {MAX_SCALE:g}, not {scale!r}; 1 is DEMoS's size")
    table = pd.read_csv(Path(__file__).with_name("demos_counts.csv"), dtype={"speaker": str})
    emotions = list(CODES)
    exact = table[emotions].to_numpy() * scale
    whole = np.maximum(np.floor(exact), exact > 0).astype(int)
    missing = np.floor(exact.sum(axis=1) + 0.5).astype(int) - whole.sum(axis=1)
    for row, short in enumerate(missing):
        whole[row, np.argsort(whole[row] - exact[row], kind="stable")[: max(short, 0)]] += 1
    table[emotions] = whole
    return table[["speaker", "sex", *emotions]]


def clips(scale: float) -> list[tuple[str, str, str, int]]:
    """Every clip to make, as (speaker, sex, emotion, index)."""
    return [
        (row["speaker"], row["sex"], emotion, index)
        for row in counts(scale).to_dict("records")
        for emotion in CODES
        for index in range(row[emotion])
    ]


def file_name(speaker: str, sex: str, emotion: str, index: int) -> str:
    """A clip's name in DEMoS's scheme, e.g. `PR_f_01_rab01a.flac`. Every clip is prototypical."""
    return f"PR_{sex}_{speaker}_{CODES[emotion]}{index % 99 + 1:02d}{chr(ord('a') + index // 99)}.flac"


def generate(folder: Path, scale: float, seed: int, workers: int | None = None) -> None:
    """Writes the corpus as 16 kHz mono FLAC to `folder`/DEMOS, whole or not at all, with a progress bar on stderr.

    The bytes do not depend on `workers`, the number of threads (numpy, scipy's FFT and the FLAC encoder work outside
    Python's lock). Raises RunError if it cannot be written.
    """
    todo = clips(scale)

    def write(clip: tuple[str, str, str, int]) -> None:
        soundfile.write(scratch / "DEMOS" / file_name(*clip), utterance(seed, *clip), RATE, subtype="PCM_16")

    try:
        with cache.publish(folder) as scratch, ThreadPoolExecutor(workers) as pool:
            (scratch / "DEMOS").mkdir()
            (scratch / OPTIONS).write_text(json.dumps(_options(scale, seed)) + "\n")
            made = pool.map(write, todo)  # which calls off the rest at an error or Ctrl-C
            console = rich.console.Console(stderr=True)
            for _ in rich.progress.track(made, "Making the synthetic corpus", len(todo), console=console):
                pass
    except (OSError, soundfile.SoundFileError) as error:
        raise RunError(f"the synthetic corpus could not be written to {folder}: {error}") from error


def read(root: Path | None = None, *, scale: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """The corpus as `fedser.data.corpora.demos.read` returns it, generated first where it is not there yet.

    `root` None is an entry of the cache, named by the options; a path is generated into if there is nothing.
    Raises InputError for a scale outside (0, 50], and for a path that holds anything but the same corpus, whole.
    """
    expected = len(clips(scale))
    options = _options(scale, seed)
    digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:12]
    root = root or cache.folder("corpora", f"synthetic-{digest}").absolute()
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        generate(root, scale, seed)
    if not (root / OPTIONS).is_file() or json.loads((root / OPTIONS).read_text()) != options:
        raise InputError(
            f"dataset.root: {root} does not hold the synthetic corpus of scale {scale:g}, seed {seed} and this version "
            "of fedser; name a new folder, or none to have it in the cache"
        )
    table = demos.read(root)
    if len(table) != expected:
        raise InputError(f"{root} holds {len(table)} clips instead of {expected}; delete it, and it is made again")
    return table


def _options(scale: float, seed: int) -> dict[str, float | int]:
    return {"version": VERSION, "scale": float(scale), "seed": int(seed)}
