"""The recogniser: a run's model from waveform to probabilities, the same numbers as in the run, and nothing unsafe."""

import copy
import csv
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import FIXTURES, SMALL
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

import fedser
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract
from fedser.errors import InputError
from fedser.features import audio, normalisation
from fedser.features.front_end import fit
from fedser.features.normalisation import Normaliser, Sums
from fedser.federation import transport
from fedser.models import weights
from fedser.models.cnn4 import CNN4
from fedser.models.recogniser import Recogniser

CLIPS = sorted((FIXTURES / "emodb/wav").glob("*.flac"))
RUN = [
    *SMALL,
    "features.frames=373",
    "rounds=6",
    "evaluation.every=null",
    "evaluation.attacks=[]",
    "evaluation.draws=1",
    "partition.test=0.5",
]


def trained(folder, *overrides):
    return fedser.run(fedser.compose([*RUN, *overrides]), folder).folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("global") / "run")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run whose clients normalise by their own clips."""
    return trained(tmp_path_factory.mktemp("own") / "run", "features.normalisation=zscore_client")


@pytest.fixture(scope="module")
def recogniser(run):
    return fedser.load(run)


def data_of(folder):
    """(the store of a run, its client splits)"""
    settings = validate(fedser.compose(RUN))
    store = extract(corpora.load(settings.dataset), settings.features)
    return store, partition(store.table, settings.partition, settings.seed)


def waveform_of(path):
    return torch.from_numpy(audio.read(path, 16000))


def as_recorded(recogniser, folder, clips, clients=None):
    """What is predicted for test clips is right where `utterances.csv` says so and wrong where it does not; which of
    the two there were."""
    found = {}
    for row in csv.DictReader((folder / "utterances.csv").open()):
        if clients is None or row["client"] in clients:
            probabilities = recogniser.predict(next(clips.rglob(Path(row["utterance"]).name)))
            right = max(probabilities, key=probabilities.get) == row["emotion"]
            found[row["utterance"]] = right, float(row["correct/original"]) == 1
    assert all(predicted == recorded for predicted, recorded in found.values())
    return {recorded for _, recorded in found.values()}


def test_predictions_are_those_of_the_run(run, recogniser):
    assert as_recorded(recogniser, run, FIXTURES / "emodb") == {True, False}


@pytest.mark.corpus
def test_predictions_are_those_of_the_run_on_a_whole_corpus(data_folder, tmp_path):
    overrides = [f"dataset.root={data_folder / 'emodb'}", "rounds=2", "defence=none", "model.width=4"]
    folder = trained(tmp_path / "run", *overrides)
    assert as_recorded(fedser.load(folder), folder, data_folder / "emodb") == {True, False}


def test_inputs_are_those_of_the_run_to_the_bit_and_logits_follow(run, recogniser):
    store, splits = data_of(run)
    parts = [Sums.of(store.frames[split.train]) for split in splits]
    normalise = normalisation.zscore(sum(parts[1:], parts[0]))
    model = CNN4(7, width=2)
    transport.unpack(load_arrays(max((run / "weights").iterdir())), model)
    for row, path in enumerate(store.table["path"][:12]):
        waveform = waveform_of(path)
        x, real = recogniser.inputs(waveform[None])
        expected = torch.from_numpy(normalise(store.frames[[row]])).unsqueeze(1)
        assert torch.equal(x, expected) and real.tolist() == [store.lengths[row]]
        torch.testing.assert_close(recogniser(waveform[None]), model.eval()(expected))


def test_the_file_is_a_state_dict_by_name(run):
    model = CNN4(7, width=2)
    assert str(model.load_state_dict(load_file(run / "model.safetensors"))) == "<All keys matched successfully>"
    last = load_arrays(max((run / "weights").iterdir()))
    assert {key: vector.tolist() for key, vector in transport.pack(model).items()} == {
        key: vector.tolist() for key, vector in last.items()
    }


def test_tensors_that_are_shared_or_integer_have_their_names_too():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
            self.other.weight = self.one.weight
            self.norm = torch.nn.BatchNorm1d(2)

    flat = {"parameters": np.arange(8, dtype=np.float32), "buffers": 10 + np.arange(4, dtype=np.float32)}
    model = Tied()
    tensors = weights.named(flat, model)
    assert tensors["one.weight"].tolist() == tensors["other.weight"].tolist() == [[0, 1], [2, 3]]
    assert (tensors["norm.bias"].tolist(), tensors["norm.running_var"].tolist()) == ([6, 7], [12, 13])
    assert tensors["norm.num_batches_tracked"].item() == 0
    assert model.norm.running_mean.tolist() == [0, 0]  # the model at hand stays as it was
    read = torch.nn.Module.load_state_dict(Tied(), safe(weights.serialised(tensors, {})))
    assert not read.missing_keys and not read.unexpected_keys


def safe(content):
    from safetensors.torch import load

    return load(content)


def test_a_folder_is_not_needed_and_neither_is_the_corpus(run, recogniser, tmp_path, monkeypatch):
    shutil.copyfile(run / "model.safetensors", tmp_path / "given.safetensors")
    monkeypatch.setattr(corpora, "load", None)
    again = fedser.load(tmp_path / "given.safetensors")
    assert again.classes == recogniser.classes and not again.training
    assert again.predict(CLIPS[0]) == recogniser.predict(CLIPS[0])


def test_each_waveform_of_a_batch_by_its_own_length(recogniser):
    waveforms = [waveform_of(path) for path in CLIPS[:6]]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    assert len(set(lengths.tolist())) == 6
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=0.3)
    x, real = recogniser.inputs(batch, lengths)
    for row, waveform in enumerate(waveforms):
        alone = fit(recogniser.front_end(waveform), 373)
        torch.testing.assert_close(x[row, 0], (alone - recogniser.shift) / recogniser.scale, atol=1e-4, rtol=0)
        assert real[row] == min(373, 1 + (len(waveform) - 512) // 256)
        torch.testing.assert_close(recogniser(batch, lengths)[[row]], recogniser(waveform[None]), atol=1e-4, rtol=0)


def test_long_waveforms_are_cropped(recogniser):
    seen = 512 + 372 * 256
    waveform = torch.randn(1, seen + 5000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(recogniser(waveform), recogniser(waveform[:, :seen]))
    assert recogniser.inputs(waveform)[1].tolist() == [373]


def test_it_is_differentiable_and_looks_at_real_samples_only(recogniser):
    double = copy.deepcopy(recogniser).double()
    batch = torch.stack([waveform_of(path)[:20000] for path in CLIPS[:2]]).double()
    lengths = torch.tensor([20000, 9000])
    real = torch.arange(20000) < (512 + (lengths - 512) // 256 * 256)[:, None]  # what follows is no whole hop
    batch.requires_grad_()
    double(batch, lengths)[:, 0].sum().backward()
    assert (batch.grad[real] != 0).float().mean() > 0.99 and (batch.grad[~real] == 0).all()
    step = 1e-9 * torch.randn(batch.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        change = (double(batch + step, lengths) - double(batch - step, lengths))[:, 0].sum() / 2
    assert change.item() == pytest.approx((batch.grad * step).sum().item(), rel=1e-3)


def test_waveforms_shorter_than_a_window_are_refused(recogniser):
    assert recogniser(torch.randn(1, 512)).shape == (1, 7)
    for waveform, lengths in (
        (torch.randn(1, 511), None),
        (torch.randn(2, 900), torch.tensor([900, 511])),
        (torch.randn(1, 900), torch.tensor([901])),
    ):
        with pytest.raises(InputError, match="a window alone takes 512"):
            recogniser(waveform, lengths)
    with pytest.raises(audio.BadAudio, match="too short"):
        recogniser.predict(np.random.default_rng(0).standard_normal(511))


def test_files_of_any_rate_and_stereo(recogniser, tmp_path):
    waveform = waveform_of(CLIPS[0]).numpy()
    stereo = np.stack([0.5 * waveform, 0.25 * waveform], axis=1)
    soundfile.write(tmp_path / "clip.wav", stereo, 44100, subtype="FLOAT")
    found = recogniser.predict(tmp_path / "clip.wav")
    assert list(found) == recogniser.classes and sum(found.values()) == pytest.approx(1)
    assert recogniser.predict(stereo, 44100) == recogniser.predict(torch.from_numpy(stereo), 44100) == found
    assert recogniser.predict(stereo.mean(axis=1), 16000) == recogniser.predict(stereo.mean(axis=1)) != found


@pytest.mark.parametrize("waveform, message", [
    (np.zeros(16000, np.int16) + 1, r"int16 \[16000\]"), (np.zeros((2, 2, 9)), r"float64 \[2, 2, 9\]"),
    (np.zeros(16000), "silent"), (np.full(16000, np.nan), "not finite"), (np.zeros(0), "empty"),
])  # fmt: skip
def test_what_is_no_waveform_is_refused(recogniser, waveform, message):
    with pytest.raises(audio.BadAudio, match=f"the waveform: .*{message}"):
        recogniser.predict(waveform)
    with pytest.raises(audio.BadAudio, match="at -1 Hz"):
        recogniser.predict(np.random.default_rng(0).standard_normal(16000), -1)


def test_behind_the_defence_it_is_the_mean_over_draws(recogniser):
    x, _ = recogniser.inputs(waveform_of(CLIPS[0])[None])
    from fedser.randomness import generator

    drawn = recogniser.defence(x.expand(3, -1, -1, -1), generator=generator(5, "randomise"))
    with torch.no_grad():
        expected = recogniser.network(drawn).softmax(1).mean(0)
    found = recogniser.predict(CLIPS[0], defended=True, draws=3, seed=5)
    assert list(found.values()) == expected.tolist()
    assert found != recogniser.predict(CLIPS[0], defended=True, draws=3, seed=6)
    assert found != recogniser.predict(CLIPS[0])
    with pytest.raises(InputError, match="draws=0"):
        recogniser.predict(CLIPS[0], defended=True, draws=0)
    with pytest.raises(InputError, match="this model's run has none"):
        Recogniser(["a"], torch.nn.Identity(), {"sample_rate": 16000, "frames": 4, "window": 512}).predict(
            CLIPS[0], defended=True
        )


def test_speakers_normalised_by_themselves(own, caplog):
    unknown = fedser.load(own)
    assert "each speaker by herself (zscore_client)" in caplog.text
    everyone = np.concatenate([split.train for split in data_of(own)[1]])
    frames = data_of(own)[0].frames[everyone].reshape(-1, 64)
    np.testing.assert_allclose(unknown.shift, frames.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(unknown.scale, frames.std(0, dtype=np.float64), rtol=1e-4)
    (store, splits), seen = data_of(own), set()
    for split in splits:
        recogniser = fedser.load(own, clips=store.table["path"].iloc[split.train])
        expected = normalisation.zscore(Sums.of(store.frames[split.train]))
        assert (recogniser.shift.numpy() == expected.shift).all() and (recogniser.scale.numpy() == expected.scale).all()
        seen |= as_recorded(recogniser, own, FIXTURES / "emodb", {split.name})
    assert seen == {True, False}


class Median:
    """A normalisation of the user's own: by the client's median and everyone's sums."""

    def __call__(self, train, everyone):
        return Normaliser.of(np.median(train, axis=(0, 1)), normalisation.zscore(everyone).scale)


@pytest.mark.parametrize("kind, common", [
    (normalisation.GlobalZScore, True), (normalisation.Unchanged, True), (normalisation.ClientZScore, False),
    (normalisation.ClientMinMax, False), (Median, False),
])  # fmt: skip
def test_whether_clients_share_a_normaliser(kind, common):
    everyone = Sums.of(np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32))
    assert Sums.from_plain(json.loads(json.dumps(everyone.plain()))).plain() == everyone.plain()
    assert (normalisation.shared(kind(), everyone) is not None) is common


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def test_files_that_are_no_model(run, tmp_path):
    file, tensors = tmp_path / "model.safetensors", load_file(run / "model.safetensors")
    from safetensors.numpy import save
    from safetensors.torch import save as save_tensors

    about = weights.read(run / "model.safetensors")[1]
    for content, message in (
        (pickle.dumps(Bomb()), "is damaged"),
        ((run / "model.safetensors").read_bytes()[:-9], "is damaged"),
        (b"", "is damaged"),
        (save_tensors(tensors), "is no model of fedser's"),
        (save(load_arrays(max((run / "weights").iterdir()))), "made by fedser 0.3.0 or older.*trains it again"),
        (weights.serialised(tensors, about | {"format": 2}), "format=2 must be 1\\."),
        (weights.serialised(tensors, about | {"shift": "x"}), "shift"),
        (weights.serialised(tensors, {"format": 1}), "classes"),
        (weights.serialised(tensors, about | {"classes": ["a", "b"]}), "of a model with other classes or layers"),
        (
            weights.serialised({key: tensors[key] for key in tensors if key != "fc.bias"}, about),
            "of a model with other classes or layers",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"{file}.*{message}"):
            fedser.load(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="is not there: a run has its model when it has finished"):
        fedser.load(tmp_path)


def naming(run, file, **changes):
    """A file whose metadata say something else than the run's."""
    tensors, about = weights.read(run / "model.safetensors")
    file.write_bytes(weights.serialised(tensors, about | changes))
    return file


@pytest.mark.parametrize("target", [
    "builtins.print", "os.system", "torch.hub.load", "torch.load", "torch.os.system", "fedser.run",
    "torch.nn.modules.module.warnings.sys.exit", "fedser.models.recogniser.load", "fedser.features.audio.read",
    "fedser.models.weights.torch.hub.load", "torch.nn.functional.relu", "fedser.modelsx.Net", "torch.nnx.Net", "nets",
])  # fmt: skip
def test_no_file_runs_code_that_was_not_trusted(run, tmp_path, capsys, target):
    bad = {"_target_": target, "_args_": ["run"]}
    for changes in (
        {"network": bad},
        {"inference": bad},
        {"network": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Flatten", "x": [[bad]]}]}},
    ):
        with pytest.raises(InputError, match=f"wants to run {target}, code from outside fedser"):
            fedser.load(naming(run, tmp_path / "bad.safetensors", **changes))
    assert capsys.readouterr().out == ""


def test_an_interpolation_hides_nothing(run, tmp_path):
    hidden = {"_target_": "torch.nn.Sequential", "_args_": ["${oc.create:'{_target_: os.getcwd}'}"]}
    with pytest.raises(InputError, match="has an interpolation among its settings"):
        fedser.load(naming(run, tmp_path / "bad.safetensors", network=hidden))


OWN = """
import os
from fedser.models.cnn4 import CNN4
class Net(CNN4):
    pass
def made(classes, **options):
    return CNN4(classes, **options)
"""


@pytest.mark.parametrize("name", ["Net", "made"])
def test_code_of_ones_own_is_run_where_one_says_so(run, tmp_path, monkeypatch, name):
    module = f"own_{name.lower()}_network"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{module}.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    network = {"_target_": f"{module}.{name}", "width": 2}
    file = naming(run, tmp_path / "own.safetensors", network=network)
    for trusted in ((), [tmp_path], ["own"]):
        with pytest.raises(InputError, match=rf"wants to run {module}.{name}, .*modules=\[its folder"):
            fedser.load(file, modules=trusted)
    assert module not in sys.modules  # it was not even imported
    expected = fedser.load(run).predict(CLIPS[0])
    assert fedser.load(file, modules=[tmp_path / "code"]).predict(CLIPS[0]) == expected
    assert fedser.load(file, modules=[module]).predict(CLIPS[0]) == expected
    through = naming(run, tmp_path / "through.safetensors", network=network | {"_target_": f"{module}.os.system"})
    with pytest.raises(InputError, match=rf"wants to run {module}.os.system"):
        fedser.load(through, modules=[tmp_path / "code"])
