"""The synthetic corpus: DEMoS's shape, reproducible to the byte, and emotions that can be measured in the sound."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from fedser.config.schema import parse
from fedser.config.settings import Dataset
from fedser.data import corpora
from fedser.data.corpora import synthetic
from fedser.errors import InputError, RunError

CONF = Path(__file__).parent.parent / "conf" / "dataset" / "synthetic.yaml"
SMALL = 0.01  # one clip of every speaker's every emotion


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "corpus"
    return root, synthetic.read(root, scale=SMALL, seed=0)


@pytest.fixture
def few(monkeypatch):
    """A corpus of 28 clips, for what does not depend on their number."""
    every = synthetic.clips(SMALL)[::17]
    monkeypatch.setattr(synthetic, "clips", lambda scale: every)


def contents(root):
    return {file.name: file.read_bytes() for file in sorted((root / "DEMOS").iterdir())}


# --- shape ----------------------------------------------------------------------------------------------------------


def test_counts_at_full_scale_are_those_of_demos():
    table = synthetic.counts(1.0)
    assert len(table) == 68
    assert dict(table["sex"].value_counts()) == {"m": 45, "f": 23}
    assert table[list(synthetic.CODES)].to_numpy().sum() == 9365
    assert table.iloc[0].tolist() == ["01", "f", 21, 21, 15, 14, 16, 19, 13]


def test_counts_at_the_default_scale():
    table = synthetic.counts(0.1).set_index("speaker")[list(synthetic.CODES)]
    assert table.to_numpy().sum() == 939
    assert table.sum(axis=1).min() >= 10
    # 2.1 2.1 1.5 1.4 1.6 1.9 1.3 make 12: the floors make 9, and the three largest remainders go up.
    assert table.loc["01"].tolist() == [2, 2, 2, 1, 2, 2, 1]
    # Everybody has every emotion, but for the one zero of DEMoS.
    assert (table == 0).to_numpy().sum() == 1
    assert table.loc["20", "happiness"] == 0


@pytest.mark.parametrize("scale", [0, -0.1, 51, float("nan"), float("inf"), "much", None, True])
def test_a_bad_scale_is_refused(scale, tmp_path):
    with pytest.raises(InputError, match=r"dataset\.scale"):
        synthetic.read(tmp_path / "corpus", scale=scale)
    assert not list(tmp_path.iterdir())


def test_names_are_distinct_and_parse_beyond_99_takes():
    names = [synthetic.file_name("01", "f", "anger", index) for index in range(250)]
    assert len(set(names)) == 250
    assert names[0] == "PR_f_01_rab01a.flac"
    assert names[99] == "PR_f_01_rab01b.flac"


def test_the_table_says_what_was_made(corpus):
    root, table = corpus
    made = {(row.speaker, row.sex, row.emotion) for row in table.itertuples()}
    assert made == {clip[:3] for clip in synthetic.clips(SMALL)}
    assert len(table) == 68 * 7 - 1
    assert all(Path(path).is_relative_to(root) for path in table["path"])


def test_the_configuration_reads_it(few, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSER_CACHE", str(tmp_path))
    node = OmegaConf.to_container(OmegaConf.load(CONF)) | {"scale": SMALL}
    corpus = corpora.load(parse(Dataset, Dataset.opened(node)))
    assert len(corpus.table) == 28
    assert set(corpus.table["emotion"]) == set(corpus.classes) == set(node["classes"])
    (entry,) = (tmp_path / "corpora").iterdir()
    assert entry.name.startswith("synthetic-")


def test_importing_it_leaves_torch_alone():
    code = "import sys, fedser.data.corpora.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- sound ----------------------------------------------------------------------------------------------------------


def test_audio_is_valid(corpus):
    lengths, levels = [], []
    for path in corpus[1]["path"]:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        wave, _ = soundfile.read(path)
        lengths.append(len(wave) / 16_000)
        levels.append(20 * np.log10(np.sqrt(np.mean(wave**2))))
        assert 0.05 < np.abs(wave).max() < 0.9
        assert abs(wave.mean()) < 0.01
    assert 0.98 < min(lengths) < 1.2 and 2.3 < max(lengths) < 2.51
    assert min(levels) > -45
    assert np.std(levels) > 3  # the gain is drawn per clip


def measure(wave):
    """Median F0 in Hz by autocorrelation, and the level above 1.5 kHz against that below, in dB."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 1024)[::512] * np.hanning(1024)
    loud = frames[np.mean(frames**2, axis=1) > 0.5 * np.mean(frames**2)]
    power = np.abs(np.fft.rfft(loud, 2048, axis=1)) ** 2
    correlation = np.fft.irfft(power, axis=1)[:, :400]
    lags = 30 + np.argmax(correlation[:, 30:280], axis=1)  # 57–533 Hz
    split = int(1500 / 16_000 * 2048)
    return np.median(16_000 / lags), 10 * np.log10(power[:, split:].sum() / power[:, :split].sum())


def test_emotions_sound_as_intended():
    speakers = [(speaker, sex) for speaker, sex, emotion, _ in synthetic.clips(SMALL) if emotion == "anger"][:24]
    pitch, bright = {}, {}
    for emotion in synthetic.CODES:
        values = [measure(synthetic.utterance(3, *speaker, emotion, 0)) for speaker in speakers]
        pitch[emotion], bright[emotion] = np.median(values, axis=0)
    assert pitch["fear"] > 1.3 * pitch["sadness"]
    assert pitch["anger"] > 1.1 * pitch["sadness"]
    assert pitch["happiness"] > 1.1 * pitch["disgust"]
    assert bright["anger"] > bright["sadness"] + 10
    assert max(bright, key=bright.get) == "anger"
    assert min(bright, key=bright.get) == "sadness"


def test_women_speak_higher_than_men():
    table = synthetic.counts(1.0)
    f0 = {
        sex: [synthetic.voice(0, speaker, sex).f0 for speaker in rows["speaker"]] for sex, rows in table.groupby("sex")
    }
    assert np.median(f0["f"]) > 1.4 * np.median(f0["m"])
    assert len(set(f0["f"] + f0["m"])) == 68


# --- the same again -------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_whatever_the_workers_and_their_order(corpus, monkeypatch, tmp_path):
    every = synthetic.clips(SMALL)[::10]
    monkeypatch.setattr(synthetic, "clips", lambda scale: [*reversed(every)])
    synthetic.generate(tmp_path / "one", SMALL, 0, workers=1)
    one, whole = contents(tmp_path / "one"), contents(corpus[0])
    assert len(one) == 48
    assert one == {name: whole[name] for name in one}


def test_a_clip_does_not_depend_on_the_scale():
    few, many = synthetic.clips(0.01), synthetic.clips(0.1)
    assert set(few) < set(many)


def test_another_seed_another_corpus():
    clip = ("01", "f", "anger", 0)
    here, there = synthetic.utterance(0, *clip), synthetic.utterance(1, *clip)
    assert np.array_equal(here, synthetic.utterance(0, *clip))
    assert len(here) != len(there) or not np.array_equal(here, there)


def test_what_is_there_is_not_made_again(corpus, monkeypatch):
    monkeypatch.setattr(synthetic, "generate", None)
    assert synthetic.read(corpus[0], scale=SMALL, seed=0).equals(corpus[1])


def test_an_empty_folder_is_filled(few, tmp_path):
    assert len(synthetic.read(tmp_path, scale=SMALL)) == 28


@pytest.mark.parametrize("changed", [{"scale": 0.02}, {"seed": 1}])
def test_another_corpus_in_the_folder_is_refused(corpus, changed):
    with pytest.raises(InputError, match=r"dataset\.root"):
        synthetic.read(corpus[0], **{"scale": SMALL, "seed": 0, **changed})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.wav").touch()
    with pytest.raises(InputError, match="does not hold the synthetic corpus"):
        synthetic.read(tmp_path, scale=SMALL)


def test_a_lost_clip_is_noticed(few, tmp_path):
    root = tmp_path / "corpus"
    synthetic.read(root, scale=SMALL)
    next((root / "DEMOS").iterdir()).unlink()
    with pytest.raises(InputError, match="27 clips instead of 28"):
        synthetic.read(root, scale=SMALL)


@pytest.mark.parametrize(("trouble", "raised"), [(OSError("disk full"), RunError), (KeyboardInterrupt(), None)])
def test_an_interrupted_generation_leaves_nothing(trouble, raised, few, monkeypatch, tmp_path):
    def utterance(*clip, whole=synthetic.utterance):
        if clip[1] == "20":
            raise trouble
        return whole(*clip)

    monkeypatch.setattr(synthetic, "utterance", utterance)
    with pytest.raises(raised or KeyboardInterrupt):
        synthetic.read(tmp_path / "corpus", scale=SMALL)
    assert not list(tmp_path.iterdir())
