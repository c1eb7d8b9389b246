"""Waveforms as features: the ragged store, networks that listen, cached states, what is frozen."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import FIXTURES
from ear import HOP, WINDOW, Ear

import fedser
from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.data.arrays import Growing, Ragged
from fedser.data.store import FeatureStore, extract
from fedser.errors import InputError
from fedser.features import audio
from fedser.models import weights
from fedser.models.lengths import as_inputs, logits
from fedser.preparation import prepare
from fedser.training.objective import Samples

EMODB = ["dataset=emodb", f"dataset.root={FIXTURES / 'emodb'}", "simulation=serial", "logger=none"]
LISTEN = [
    *EMODB, "features=waveform", "model._target_=ear.Ear", "~model.width", "~model.norm", "~model.dropout", "~model.bn_momentum", "~model.bn_eps",
    "+model.tune=frozen", "defence=none", "attack=none", "augment=[]", "rounds=2", "evaluation.every=1", "strategy.fraction_train=1", "client.lr=0.01",
]  # fmt: skip


def settings(*more):
    return validate(compose([*LISTEN, *more]))


def run(folder, *more):
    return fedser.run(compose([*LISTEN, *more]), folder)


# --- the store -------------------------------------------------------------------------------------------------------


def store_of(*more):
    chosen = settings(*more)
    return extract(corpora.load(chosen.dataset), chosen.features)


def test_clips_are_kept_as_they_are():
    store = store_of()
    waveforms = [audio.read(path, 16000) for path in store.table["path"]]
    assert store.lengths.tolist() == [len(waveform) for waveform in waveforms]
    assert store.frames.flat.dtype == np.int16  # EMO-DB is 16 bits at 16 kHz
    taken = store.take([3, 0])
    assert taken.shape == (2, max(len(waveforms[3]), len(waveforms[0])), 1)
    for clip, waveform in zip(taken, (waveforms[3], waveforms[0]), strict=True):
        assert np.array_equal(clip[: len(waveform), 0], waveform) and not clip[len(waveform) :].any()


def test_resampled_clips_are_floats_and_long_ones_cut():
    store = store_of("features.sample_rate=8000", "features.seconds=1")
    assert store.frames.flat.dtype == np.float32 and store.lengths.max() == 8000
    waveform = audio.read(store.table["path"][0], 8000)[:8000]
    assert np.array_equal(store.take([0])[0, : len(waveform), 0], waveform)


def test_what_began_in_16_bits_goes_on_in_floats(tmp_path):
    exact, loud = np.array([[0.5], [-1.0], [3 / 2**15]], np.float32), np.array([[1.0], [1e-6]], np.float32)
    array = Growing(tmp_path / "frames.npy", (1,), pcm=True)
    for part in (exact, exact, loud, exact):
        array.append(part)
    array.close()
    found = np.load(tmp_path / "frames.npy")
    assert found.dtype == np.float32 and np.array_equal(found, np.concatenate([exact, exact, loud, exact]))
    assert [file.name for file in tmp_path.iterdir()] == ["frames.npy"]


def test_sums_are_of_real_samples_alone():
    clips = [np.full((3, 1), 2.0, np.float32), np.full((1, 1), -1.0, np.float32)]
    sums = Ragged(np.concatenate(clips), np.array([3, 1])).sums(np.array([0, 1]))
    assert (sums.count, sums.total.tolist(), sums.squares.tolist()) == (4, [5.0], [13.0])


def test_damage_is_noticed():
    store = store_of("features.seconds=0.5")
    notes = json.loads((store.folder / "store.json").read_text())
    with pytest.raises(Exception, match="is damaged"):
        (store.folder / "store.json").write_text(json.dumps(notes | {"dtype": "float32"}))
        FeatureStore.open(store.folder)


# --- networks that listen --------------------------------------------------------------------------------------------


def test_padding_changes_nothing():
    ear, store = Ear(3).eval(), store_of()
    together = logits(ear, as_inputs(store.take(range(4))), torch.tensor(store.lengths[:4]))
    for row in range(4):
        alone = logits(ear, as_inputs(store.take([row])), torch.tensor(store.lengths[[row]]))
        assert torch.allclose(alone, together[row], atol=1e-5)


@pytest.mark.parametrize(("ragged", "expected"), [(True, 4), (False, 9)])
def test_a_batch_ends_with_its_longest_clip_where_nothing_is_heard_behind(ragged, expected):
    x, lengths = torch.arange(3 * 9.0).view(3, 1, 9, 1), torch.tensor([9, 2, 4])
    samples = replace(Samples.of(x, torch.arange(3), lengths, ragged), adversarial=x + 1)
    batch = samples.batch(torch.tensor([2, 1]))
    assert torch.equal(batch.x, x[[2, 1], :, :expected]) and torch.equal(batch.adversarial, batch.x + 1)
    assert batch.lengths.tolist() == [4, 2] and batch.y.tolist() == [2, 1]


def test_kept_states_are_those_that_the_network_hears(tmp_path):
    """The same training, but for rounding; and under attack it hears the waveforms themselves."""
    kept = run(tmp_path / "kept", "features.cache=states")
    live = run(tmp_path / "live", "features.cache=none")
    for one, other in zip(kept.history, live.history, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
    prepared = prepare(settings("features.cache=states"))
    store, states, model = prepared.store, prepared.forms["states"], prepared.model.eval()
    for row in range(len(store)):
        heard = logits(model, as_inputs(store.take([row])), torch.tensor(store.lengths[[row]]))
        known = logits(model, as_inputs(states.take([row])), torch.tensor(states.lengths[[row]]))
        assert torch.allclose(heard, known, atol=1e-5)
    assert states.lengths.tolist() == ((store.lengths - WINDOW) // HOP + 1).tolist()


def test_attacks_are_made_on_waveforms(tmp_path):
    run(tmp_path / "run", "attack=fgsm", "attack.eps=0.02", "features.cache=states", "evaluation.every=null")
    moved = json.loads((tmp_path / "run" / "evaluation.json").read_text())["examples"]["fgsm"]
    assert moved["linf"] == pytest.approx(0.02) and 10 < moved["snr_db"] < 40


def test_only_what_is_trained_travels_and_is_saved(tmp_path):
    prepared = prepare(settings())
    trained = sum(parameter.numel() for parameter in prepared.model.parameters() if parameter.requires_grad)
    assert prepared.weights["parameters"].size == trained < prepared.parameters
    assert prepared.weights["buffers"].size == 0
    run(tmp_path / "run")
    tensors, _ = weights.read(tmp_path / "run" / "model.safetensors")
    assert set(tensors) == {"mix", "hidden.weight", "hidden.bias", "fc.weight", "fc.bias"}
    weights.fill(prepared.model.eval(), tensors, tmp_path)
    store, recogniser = prepared.store, fedser.load(tmp_path / "run", modules=["ear"])
    expected = logits(prepared.model, as_inputs(store.take([0])), torch.tensor(store.lengths[[0]])).softmax(1)[0]
    assert list(recogniser.predict(store.table["path"][0]).values()) == pytest.approx(expected.tolist(), abs=1e-5)
    whole = prepare(settings("model.tune=all"))
    assert whole.weights["parameters"].size == whole.parameters and not whole.forms


def test_the_centralised_reference_pads_clients_to_the_longest(tmp_path):
    history = run(tmp_path / "run", "strategy=centralised", "features.cache=none", "rounds=4").history
    assert history[-1]["train/loss"] < history[0]["train/loss"]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["features/normalisation=zscore_client"], r"zscore_client is of mel bins.*features/normalisation=none"),
        (["features.cache=state"], r"features\.cache=state must be one of auto, states, pooled, none"),
        (["features.seconds=0"], r"features\.seconds=0 must be greater than 0"),
        (["features.mels=64"], r"the chosen one has not"),
        (["features.cache=pooled"], r"it looks at more than the means"),
        (["features.cache=states", "model.tune=all"], r"its backbone is trained"),
        (["features.cache=states", "augment=[gain]"], r"augment=\[gain\] changes waveforms"),
        (
            ["features.cache=states", "defence=adversarial", "attack=pgd"],
            r"attacks waveforms\. Set features\.cache=none",
        ),
        (["defence=randomise"], r"features=waveform has no frames and mels"),
    ],
)
def test_bad_input(overrides, words):
    with pytest.raises(InputError, match=words):
        prepare(settings(*overrides))


def test_a_clip_that_is_too_short_is_named(tmp_path):
    rows = ["path,speaker,emotion"]
    for number, samples in enumerate((16000, 16000, 16000, 16000, 399)):
        file = tmp_path / f"{number}.wav"
        soundfile.write(file, np.random.default_rng(number).uniform(-0.1, 0.1, samples), 16000)
        rows.append(f"{file.name},a,{'anger' if number % 2 else 'fear'}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    overrides = [word for word in LISTEN if not word.startswith("dataset")]
    chosen = validate(compose([*overrides, "dataset=manifest", f"dataset.root={tmp_path / 'list.csv'}"]))
    with pytest.raises(InputError, match=r"4\.wav: 399 samples are too short, model=statcnn needs 400"):
        prepare(chosen)
