"""`fedser-listen`: attacked clips as 16-bit WAV, and the page that plays them, where the corpus may be passed on."""

import base64
import csv
import json
import re
import wave

import numpy as np
import pytest
import soundfile
from conftest import FIXTURES, SMALL

import fedser
from fedser import compose, listen, report
from fedser.config.identity import digest, everything
from fedser.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network that has learnt a little of two speakers, with batch norm and normalisation of each client's own."""
    overrides = [
        "model.width=8",
        "rounds=15",
        "evaluation.every=null",
        "attack=none",
        "defence=none",
        "client.lr=0.003",
    ]
    return fedser.run(compose([*SMALL, *overrides]), tmp_path_factory.mktemp("listen") / "run")


@pytest.fixture(scope="module")
def found(run):
    return listen.listen(run.folder, ["snr_pgd", "snr_noise"], [25.0], clips=3)


def pcm(file):
    with wave.open(str(file)) as content:
        assert (content.getsampwidth(), content.getnchannels(), content.getframerate()) == (2, 1, 16000)
        return np.frombuffer(content.readframes(content.getnframes()), "<i2").astype(int)


def test_files_add_up_and_keep_their_level(run, found):
    assert len(found) == 6 and {clip["client"] for clip in found} == {"14", "15"}
    for clip in found:
        folder = run.folder / "listening" / clip["attack"] / clip["clip"].removesuffix(".flac")
        original, adversarial, difference, louder = (
            pcm(folder / f"{name}.wav") for name in ("original", "adversarial", "difference", "difference+25dB")
        )
        speech, _ = soundfile.read(FIXTURES / "emodb/wav" / clip["clip"], dtype="int16")
        assert np.array_equal(original, speech) and np.array_equal(original + difference, adversarial)
        rms = [np.sqrt(np.square(part.astype(float)).mean()) for part in (original, difference, louder)]
        assert 20 * np.log10(rms[0] / rms[1]) == pytest.approx(clip["snr_of_files"], abs=1e-6)
        assert clip["snr_of_files"] > 24.9 and (clip["attack"] != "snr_noise@snr=25" or clip["snr_of_files"] < 25.1)
        assert rms[2] == pytest.approx(rms[1] * 10**1.25, rel=0.01)
        assert json.loads((folder / "clip.json").read_text()) == {k: v for k, v in clip.items() if k != "folder"}


def test_a_clips_class_is_the_evaluations_and_rounding_changes_none(run, found):
    """The predictions in `clip.json` are those of the rounded files."""
    rows = {row["utterance"]: row for row in csv.DictReader((run.folder / "utterances.csv").open())}
    for clip in found:
        row = rows[clip["clip"]]
        assert clip["unchanged"] and clip["class"] == row["emotion"]
        assert (clip["predicted"]["original"] == clip["class"]) == (float(row["correct/original"]) == 1)
    changed = {clip["attack"]: 0 for clip in found}
    for clip in found:
        changed[clip["attack"]] += len(set(clip["predicted"].values())) - 1
    assert changed["snr_pgd@snr=25"] > changed["snr_noise@snr=25"]


def test_the_page_plays_them_where_the_corpus_may_be_passed_on(run, found, tmp_path):
    page = report.write(report.load([run.folder]), tmp_path / "report")[0].read_text()
    sounds = re.findall(r'<audio[^>]* src="data:audio/wav;base64,([^"]+)"', page)
    assert len(sounds) == 3 * 4 and "EMO-DB, Burkhardt et al. 2005, CC0 1.0" in page
    files = {file.read_bytes() for file in (run.folder / "listening").rglob("*.wav")}
    assert {base64.b64decode(sound) for sound in sounds} <= files
    config = run.folder / "config.yaml"
    config.write_text(re.sub("credit: .*", "credit: null", whole := config.read_text()))
    page = report.write(report.load([run.folder]), tmp_path / "report")[0].read_text()
    config.write_text(whole)
    assert "<audio" not in page and "licence does not let them be passed on" in page


def test_the_command(run, found, tmp_path, capsys):
    words = [str(run.folder), "--snr", "30", "--attack", "snr_fgsm", "--clips", "1", "-o", str(tmp_path / "clips")]
    assert listen.main(words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    (file,) = (tmp_path / "clips").rglob("original.wav")
    assert line.startswith(f"{file.parent}: ") and " recognised as " in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--clips", "0"], "--clips 0: at least one."),
        (["{run}", "--attack", "pgd"], "--attack pgd: it changes features, which nobody can listen to."),
        (["{run}", "--attack", "snr_pdg"], "did you mean 'snr_pgd'?"),
        (["{run}", "client.lr=1"], "client.lr=1: belongs to the training."),
        (["{tmp}"], "{tmp} holds no run"),
    ],
)
def test_bad_input(run, capsys, tmp_path, words, message):
    places = {"run": run.folder, "tmp": tmp_path}
    assert listen.main([word.format(**places) for word in words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("fedser-listen: ") and message.format(**places) in err[-1]


def test_another_checkpoint_is_refused(run, tmp_path):
    (tmp_path / "other").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"model\.safetensors has no frozen part"):
        listen.listen(run.folder, checkpoint=tmp_path / "other")


def test_who_is_credited_decides_nothing(settings):
    mixed = ["dataset=mixed", "dataset.root=null", "features.frames=128"]
    for first, second in (([], ["dataset.credit=null"]), (mixed, [*mixed, "dataset.corpora.emodb.credit=null"])):
        one, other = (settings(*words) for words in (first, second))
        assert one.plain != other.plain and digest(everything(one)) == digest(everything(other))
