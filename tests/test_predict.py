"""`fedser-predict`: a table, a CSV, folders, bad files, exit codes."""

import csv
import os
import subprocess
import sys

import pytest
import soundfile
import torch
from conftest import FIXTURES

import fedser
from fedser import predict
from fedser.config.settings import LogMels
from fedser.models import weights
from fedser.models.cnn4 import CNN4

CLIPS = sorted((FIXTURES / "emodb/wav").glob("*.flac"))[:3]
CLASSES = ["[calm]", "[upset]", "[odd]"]
FEATURES = {"sample_rate": 16000, "frames": 40, "mels": 16, "window": 512, "hop": 256, "fmin": 20, "fmax": 8000,
            "floor": 1e-8}  # fmt: skip
RANDOMISE = {
    "_target_": "fedser.defences.randomisation.Randomise",
    "frames": [40, 44],
    "mels": [16, 18],
    "size": [44, 18],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a model that was never trained."""
    assert set(LogMels.model_fields) - {"name", "normalisation"} == set(FEATURES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CNN4(3, width=2)
    about = {
        "format": 1, "classes": CLASSES, "network": {"_target_": "fedser.models.cnn4.CNN4", "width": 2},
        "features": FEATURES, "normalisation": {"name": "zscore_global"}, "sums": {}, "shift": -9.0, "scale": 3.0,
        "inference": RANDOMISE, "run": "made", "fedser": "0", "code": {},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.safetensors").write_bytes(weights.serialised(network.state_dict(), about))
    about |= {"normalisation": {"_target_": "fedser.features.normalisation.ClientZScore", "name": "zscore_client"}}
    about |= {"shift": None, "scale": None, "sums": {"count": 1, "total": [0.0] * 16, "squares": [0.0] * 16}}
    (folder / "own.safetensors").write_bytes(weights.serialised(network.state_dict(), about))
    about |= {"normalisation": {"_target_": "fedser.features.normalisation.ClientMinMax", "name": "minmax_client"}}
    (folder / "range.safetensors").write_bytes(weights.serialised(network.state_dict(), about))
    return folder


def predicted(capsys, *words):
    """(exit code, lines of the table, lines on stderr)"""
    code = predict.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_a_table(run, capsys):
    code, table, err = predicted(capsys, run, *CLIPS)
    assert (code, err) == (0, []) and table[0].split() == ["file", "class", "probability"]
    recogniser = fedser.load(run)
    for line, clip in zip(table[1:], CLIPS, strict=True):
        found = recogniser.predict(clip)
        best = max(found, key=found.get)
        assert line.split() == [str(clip), best, f"{found[best]:.3f}"]


def test_a_csv_with_all_classes(run, capsys, tmp_path):
    for more, options in ((["--defended", "--draws", 2], {"defended": True, "draws": 2}), ([], {})):
        assert predicted(capsys, run, *CLIPS, "--csv", tmp_path / "p.csv", *more)[0] == 0
        rows = list(csv.DictReader((tmp_path / "p.csv").open()))
        recogniser = fedser.load(run)
        for row, clip in zip(rows, CLIPS, strict=True):
            found = recogniser.predict(clip, **options)
            assert row.pop("file") == str(clip) and row.pop("class") == max(found, key=found.get)
            assert {f"probability/{name}": pytest.approx(value) for name, value in found.items()} == {
                key: float(value) for key, value in row.items()
            }


def test_folders_are_searched_and_bad_files_left_out(run, capsys, tmp_path):
    speech, rate = soundfile.read(CLIPS[0])
    folder = tmp_path / "my [clips]" / "below"
    folder.mkdir(parents=True)
    soundfile.write(folder / "b.WAV", speech, rate)
    soundfile.write(folder.parent / "a.ogg", speech, rate)
    soundfile.write(folder / "short.wav", speech[:100], rate)
    (folder / "notes.txt").write_text("no audio")
    (folder / "._b.wav").write_text("of another system")
    (folder / "dir.wav").mkdir()
    code, table, err = predicted(capsys, run, folder.parent, tmp_path / "gone.wav", "--csv", tmp_path / "p.csv")
    assert code == 1 and len(err) == 2
    assert err[0].startswith(f"fedser-predict: {folder / 'short.wav'}: too short")
    assert err[1] == f"fedser-predict: {tmp_path / 'gone.wav'}: can't be read as audio: there is no such file"
    good = [str(folder.parent / "a.ogg"), str(folder / "b.WAV")]
    assert [line.rsplit(maxsplit=2)[0] for line in table[1:]] == good
    assert [row["file"] for row in csv.DictReader((tmp_path / "p.csv").open())] == good


@pytest.mark.parametrize("words, message", [
    (["{tmp}/none", "{clip}"], "{tmp}/none is not there: a run has its model when it has finished."),
    (["{tmp}", "{clip}"], "{tmp}/model.safetensors is not there"),
    (["{run}", "{tmp}"], "{tmp}: holds no audio, no file that ends in .wav, .flac"),
    (["{run}", "{clip}", "--csv", "{tmp}/no/p.csv"], "--csv {tmp}/no/p.csv can't be written: No such file"),
    (["{run}", "{clip}", "--defended", "--draws", "0"], "draws=0, at least one is needed"),
    (["{run}/range.safetensors", "{clip}"], "each speaker by herself (minmax_client)"),
    (["{run}/own.safetensors", "{clip}", "--speaker", "{tmp}/gone.wav"], "{tmp}/gone.wav: can't be read as audio"),
])  # fmt: skip
def test_bad_input(run, capsys, tmp_path, words, message):
    places = {"tmp": tmp_path, "run": run, "clip": CLIPS[0]}
    code, table, err = predicted(capsys, *(word.format(**places) for word in words))
    assert (code, table, len(err)) == (2, [], 1)
    assert err[0].startswith("fedser-predict: ") and message.format(**places) in err[0]


def test_a_speaker_normalised_by_herself(run, capsys):
    code, table, _ = predicted(capsys, run / "own.safetensors", CLIPS[0], "--speaker", *CLIPS)
    found = fedser.load(run / "own.safetensors", clips=CLIPS).predict(CLIPS[0])
    assert code == 0 and table[1].split()[-1] == f"{max(found.values()):.3f}"


def test_an_unknown_speaker_is_normalised_by_all(run, capsys, caplog):
    code, table, _ = predicted(capsys, run / "own.safetensors", CLIPS[0])
    assert code == 0 and len(table) == 2
    assert "--speaker PATH. Without them an unknown speaker is normalised by all training speakers'" in caplog.text


def test_stopping_keeps_the_rows_so_far(run, capsys, tmp_path, monkeypatch):
    from fedser.models.recogniser import Recogniser

    real = Recogniser.predict

    def slow(self, clip, **options):
        if clip == CLIPS[1]:
            raise KeyboardInterrupt
        return real(self, clip, **options)

    monkeypatch.setattr(Recogniser, "predict", slow)
    assert predicted(capsys, run, *CLIPS, "--csv", tmp_path / "p.csv")[0] == 130
    assert [row["file"] for row in csv.DictReader((tmp_path / "p.csv").open())] == [str(CLIPS[0])]


def test_help_imports_little():
    program = (
        "import sys, fedser, fedser.predict\n"
        "try: fedser.predict.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'pandas', 'hydra', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--csv FILE" in done.stdout
