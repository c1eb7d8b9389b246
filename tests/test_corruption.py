"""Conditions of the field: hand-worked values, training clips only, the same on any actors, and clear refusals."""

import json
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, SMALL

from fedser import compose, run
from fedser.corruption.dropout import Dropout
from fedser.corruption.field import Field
from fedser.corruption.labels import LabelNoise, MissingLabels
from fedser.corruption.noise import Noise
from fedser.errors import InputError
from fedser.federation.client_data import WAVEFORMS, Own, Simulated
from fedser.preparation import prepare

ALL = "corruption=[label_noise,noise,missing_labels,dropout]"


def rng(seed=0):
    return np.random.default_rng(seed)


# --- each --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "sparsity", "zeros"), [(7, 0.4, 17), (7, 1, 35), (4, 0, 0), (2, 0.9, 0)])
def test_a_transition_matrix_has_its_rate_and_sparsity(classes, sparsity, zeros):
    """Of 7 × 6 off the diagonal 0.4 are 17 zeros; at most five in a row can be, or it could not err."""
    made = LabelNoise(classes, 0.3, 0.0, sparsity).matrix(rng())
    np.testing.assert_allclose(made.sum(axis=1), 1)
    np.testing.assert_allclose(np.diag(made), 0.7)
    assert (made == 0).sum() == zeros
    for row, off in zip(made, ~np.eye(classes, dtype=bool), strict=True):
        assert len(set(row[off & (row > 0)])) == 1


def test_labels_are_drawn_by_the_matrix_and_rates_differ_by_client():
    noise, true = LabelNoise(5, 0.4), np.arange(5).repeat(4000)
    labels = noise(true, rng(3), rng(4))
    shares = np.histogram2d(true, labels, bins=5)[0] / 4000
    np.testing.assert_allclose(shares, noise.matrix(rng(3)), atol=0.04)
    assert not (shares[noise.matrix(rng(3)) == 0]).any() and labels.dtype == np.int64
    rates = [1 - LabelNoise(5, 0.4, 0.1).matrix(rng(seed))[0, 0] for seed in range(200)]
    assert abs(np.mean(rates) - 0.4) < 0.03 and abs(np.std(rates) - 0.1) < 0.02
    np.testing.assert_array_equal(LabelNoise(5, 0.0)(true, rng(3), rng(4)), true)


def test_so_many_labels_are_missing():
    labels = MissingLabels(0.25)(np.arange(10), rng(), rng(1))
    assert (labels == -1).sum() == 2 and all(label in (-1, place) for place, label in enumerate(labels))


def test_noise_has_one_level_a_client_and_other_noise_a_clip():
    waveform = np.sin(np.arange(4000) / 5).astype(np.float32)
    levels = set()
    for client in range(12):
        made = [Noise((10.0, 30.0))(waveform, rng(client), rng(clip)) for clip in (1, 2)]
        powers = [np.square(each - waveform, dtype=float).mean() for each in made]
        snr = [10 * np.log10(np.square(waveform, dtype=float).mean() / power) for power in powers]
        assert snr[0] == pytest.approx(snr[1], abs=1e-2) and not np.array_equal(*made)
        levels.add(round(snr[0], 1))
    assert levels == {10.0, 30.0}
    half = [Noise((10.0,), clients=0.5)(waveform, rng(client), rng()) is waveform for client in range(60)]
    assert 15 < sum(half) < 45


def test_who_drops_out_is_drawn_anew_in_each_round_and_one_stays():
    field, names = Field({"dropout": Dropout(0.3)}, {}, seed=1), [f"c{n}" for n in range(20)]
    rounds = [tuple(field.present(names, round)) for round in range(1, 101)]
    assert rounds == [tuple(field.present(names, round)) for round in range(1, 101)] and len(set(rounds)) > 90
    assert sum(map(len, rounds)) / 2000 == pytest.approx(0.7, abs=0.05)
    nobody = Field({"dropout": Dropout(1.0)}, {}, seed=1)
    assert {len(nobody.present(names, round)) for round in range(1, 20)} == {1}
    assert len({nobody.present(names, round)[0] for round in range(1, 20)}) > 5


# --- in a run ----------------------------------------------------------------------------------------------------------


def test_training_clips_are_corrupted_and_no_others(settings):
    clean = prepare(settings("partition.validation=0.2", "attack=snr_noise"))
    chosen = settings("partition.validation=0.2", "attack=snr_noise", ALL, "corruption.label_noise.rate=0.9")
    prepared = prepare(chosen)
    forms = {name: str(form.folder) for name, form in prepared.forms.items()}
    clients = Simulated(prepared.store.folder, chosen, forms)
    for was, split in zip(clean.splits, prepared.splits, strict=True):
        own = clients.client(split.number)
        assert len(split.train) == len(was.train) - round(0.5 * len(was.train)) and set(split.train) < set(was.train)
        assert np.array_equal(own.rows("train"), split.train)
        for part in ("validation", "test"):
            rows = own.rows(part)
            assert np.array_equal(rows, getattr(was, part))
            assert np.array_equal(own.labels(rows), clean.store.labels[rows])
            assert np.array_equal(own.frames(rows), clean.store.frames[rows])
            assert np.array_equal(own.form(WAVEFORMS).frames(rows), clean.forms[WAVEFORMS].frames[rows])
        rows = own.rows("train")
        assert (own.labels(rows) != clean.store.labels[rows]).mean() > 0.5
        assert np.array_equal(own.form(WAVEFORMS).labels(rows), own.labels(rows))
        assert (np.abs(own.frames(rows) - clean.store.frames[rows]).mean(axis=(1, 2)) > 0.05).all()
        assert (own.form(WAVEFORMS).frames(rows) != clean.forms[WAVEFORMS].frames[rows]).any(axis=1).all()
        assert np.array_equal(own.lengths(rows), clean.store.lengths[rows])
    assert prepared.model_key != clean.model_key and prepared.data != clean.data
    assert prepare(settings("partition.validation=0.2", "attack=snr_noise", "corruption=none")).data == clean.data


def test_who_drops_out_is_in_no_mean_and_named(small, tmp_path):
    words = ["defence=none", "attack=none", "rounds=1", "partition=iid", "partition.clients=4"]
    made = [
        small(*words, *more, folder=tmp_path / str(len(more)))
        for more in ([], ["corruption=[dropout]", "corruption.dropout.rate=0.7"])
    ]
    tested = [json.loads((each.folder / "evaluation.json").read_text())["clients"] for each in made]
    assert tested[0] == tested[1]
    whole, row = (each.history[0] for each in made)
    assert whole["train/clients"] == 4 and 1 <= row["train/clients"] == 4 - len(row["train/missing"])
    assert row["train/loss"] != whole["train/loss"] and set(row["train/missing"]) < set(tested[0])


def test_a_client_on_its_own_machine_has_what_it_has_in_a_simulation(settings, tmp_path):
    for clip in FIXTURES.glob("emodb/wav/15*"):
        shutil.copy(clip, tmp_path)
    words = ["corruption=[label_noise,noise,missing_labels]", "defence=none", "attack=none"]
    prepared = prepare(settings(*words))
    simulated = Simulated(prepared.store.folder, prepared.settings).client(1)
    own = Own("15", settings(*words, f"dataset.root={tmp_path}")).client(1)
    rows = [each.rows("train") for each in (simulated, own)]
    assert np.array_equal(simulated.frames(rows[0]), own.frames(rows[1]))
    assert np.array_equal(simulated.labels(rows[0]), own.labels(rows[1]))


@pytest.mark.ray
def test_all_at_once_are_the_same_on_ray(callers_ray, tmp_path):
    words = [*SMALL, ALL, "partition=iid", "partition.clients=4", "attack=none", "defence=none", "reuse=false"]
    words += ["features.normalisation=zscore_client", "rounds=2"]
    serial = run(compose(words), tmp_path / "serial")
    ray = ["simulation=cpu", "simulation.actors=2", "simulation.probe=false"]
    other = run(compose([*(word for word in words if word != "simulation=serial"), *ray]), tmp_path / "ray")
    weights = [(each.folder / "model.safetensors").read_bytes() for each in (serial, other)]
    assert serial.history == other.history and weights[0] == weights[1]


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["corruption=[missing_labels]", "corruption.missing_labels.rate=0.95"],
         "corruption.missing_labels leaves client '14' 1 of 17 clips to train on, too few"),
        (["corruption=[missing_labels]", "corruption.missing_labels.rate=1"], "rate=1 leaves no client a clip"),
        (["corruption=[label_noise]", "corruption.label_noise.rate=1.5"], "rate=1.5 must lie between 0 and 1"),
        (["corruption=[noise]", "corruption.noise.snr=[]"], "corruption.noise.snr=[] must be"),
        (["corruption=[dropout]", "strategy=centralised"], "one client, who can't drop out"),
        (["corruption=[label_nois]"], "label_noise"),
        (["corruption=[noise]", "corruption.noise._target_=fedser.augmentation.level.Gain", "~corruption.noise.snr",
          "~corruption.noise.clients", "+corruption.noise.deviation=1"], ".of must be one of labels, waveforms, rounds"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(settings, words, says):
    with pytest.raises(InputError) as raised:
        prepare(settings(*words))
    assert says in str(raised.value) and "\n" not in str(raised.value)
