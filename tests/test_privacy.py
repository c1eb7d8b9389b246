"""What is inferred from embeddings and updates, what a run's noise guarantees, and what a private client says."""

import functools
import json
from math import exp, sqrt
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import SMALL
from runs import Made, make_run
from scipy.optimize import brentq
from scipy.special import ndtr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from fedser import compose, report, run
from fedser.config.validation import validate
from fedser.errors import InputError
from fedser.features.normalisation import Sums
from fedser.federation import dp_fedavg, guarantee, strategies, updates
from fedser.preparation import prepare
from fedser.privacy import main, probe, study
from fedser.privacy.embeddings import Subject
from fedser.privacy.updates import Senders
from fedser.privacy.updates import findings as inferred_from_updates
from fedser.report import tables
from fedser.report.analysis.models import corpora
from fedser.runs.folder import RunFolder

# Eight voices; a network without statistics of its batches.
VOICES = [
    "dataset=manifest", "features.frames=32", "model.width=2", "model.norm=group", "rounds=3",
    "evaluation.every=null", "attack=none", "defence=none", "simulation=serial", "logger=none",
    "client.optimizer_state=reset", "strategy.fraction_train=1.0",
]  # fmt: skip
PRIVATE = ["strategy=dp_fedavg", "model.norm=group", "client.optimizer_state=reset",
           "features/normalisation=zscore_client"]  # fmt: skip


# --- Probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dimensions"), [(2, 5), (4, 5), (3, 90)])
def test_the_probe_is_scikit_learns(classes, dimensions):
    rng = np.random.default_rng(classes)
    y = np.repeat(np.arange(classes), [9, 14, 30, 7][:classes])
    x = rng.standard_normal((len(y), dimensions)) * 10 + 0.4 * y[:, None]
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=5000).fit(scaled, y).predict_proba(scaled)
    np.testing.assert_allclose(probe.Logistic(x, y, classes).probabilities(x), theirs, atol=1e-3)


def test_folds_hold_speakers_apart_and_have_all_values():
    speakers = np.repeat([f"s{n:02d}" for n in range(11)], 4)
    sexes = np.where(np.arange(44) < 16, "f", "m")  # four women, seven men
    folds = probe.by_group(speakers, sexes)
    assert set(folds) == {0, 1, 2, 3}
    for fold in range(4):
        assert set(sexes[folds == fold]) == {"f", "m"}
        assert not set(speakers[folds == fold]) & set(speakers[folds != fold])
    with pytest.raises(InputError, match="at least 5 speakers of each kind.*only f: s00, s01, s02, s03"):
        probe.by_group(speakers, sexes, least=5)


def test_the_equal_error_rate_is_that_of_the_pairs():
    rng = np.random.default_rng(3)
    speakers, said, sexes = np.repeat(list("abcdef"), 20), np.tile(np.arange(10), 12), np.repeat([0, 1], 60)
    x = rng.standard_normal((120, 8)) + 0.8 * np.repeat(rng.standard_normal((6, 8)), 20, axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for alike in ([], [sexes]):
        pairs = [
            (i, j) for i in range(120) for j in range(i) if said[i] != said[j] and all(s[i] == s[j] for s in alike)
        ]
        alarms, hits, _ = roc_curve([speakers[i] == speakers[j] for i, j in pairs], [x[i] @ x[j] for i, j in pairs])
        expected = alarms[np.argmin(np.abs(alarms - (1 - hits)))]
        found, interval = probe.equal_error(x, speakers, said, alike)
        assert found == pytest.approx(expected, abs=0.02) and interval.low < found < interval.high
    assert np.isnan(probe.equal_error(x[:20], speakers[:20], said[:20], [])[0])  # nobody else


def test_whitening_learns_nothing_of_whom_it_is_tested_on():
    rng = np.random.default_rng(0)
    x, speakers, folds = rng.standard_normal((60, 4)), np.repeat(list("abcd"), 15), np.repeat([0, 1], 30)
    before = probe.whitened(x, speakers, folds)
    others = np.concatenate([speakers[:30], rng.permutation(speakers[30:])])
    np.testing.assert_array_equal(before[30:], probe.whitened(x, others, folds)[30:])
    assert not np.allclose(before[:30], probe.whitened(x, others, folds)[:30])


# --- A run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Overrides: vowels of four women and four men, eight each, of four sentences and two emotions."""
    folder, rows = tmp_path_factory.mktemp("voices"), []
    time = np.arange(9600) / 16000
    for number in range(8):
        for clip in range(8):
            rng = np.random.default_rng([number, clip])
            pitch = (115 if number % 2 else 205) + 6 * (number // 2) + rng.normal(0, 2)
            formant = 500 + 150 * (clip % 4) + 40 * number
            tones = [
                np.exp(-(((k * pitch - formant) / 300) ** 2)) * np.sin(2 * np.pi * k * pitch * time)
                for k in range(1, 20)
            ]
            wave = sum(tones) * (1 + 0.8 * np.sin(2 * np.pi * (2 + 6 * (clip // 4)) * time)) + rng.normal(
                0, 0.02, len(time)
            )
            soundfile.write(folder / f"{number}{clip}.wav", 0.1 * wave, 16000)
            known = {"path": f"{number}{clip}.wav", "speaker": f"v{number}", "sex": "m" if number % 2 else "f"}
            rows.append(known | {"emotion": ["calm", "anger"][clip // 4], "text": f"t{clip % 4}", "language": "it"})
    pd.DataFrame(rows).to_csv(folder / "clips.csv", index=False)
    return [*VOICES, f"dataset.root={folder / 'clips.csv'}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, voices):
    folder = tmp_path_factory.mktemp("private") / "run"
    run(compose([*voices, "checkpoint.updates=2"]), folder)
    return folder


def test_sex_and_speaker_are_inferred(trained, capsys):
    assert main([str(trained)]) == 0
    found = json.loads((trained / "privacy.json").read_text())
    said = capsys.readouterr().out
    assert all(each["text"] in said for each in found["findings"]) and found["guarantee"] is None
    by = {(each["what"], each["source"], each["metric"]): each for each in found["findings"]}
    sex, speaker = by["sex", "log-Mel statistics", "uar"], by["speaker", "log-Mel statistics", "uar"]
    assert sex["value"] > 0.8 and (sex["chance"], sex["speakers"], sex["samples"]) == (0.5, 8, 64)
    assert speaker["value"] > 0.3 and speaker["chance"] == 1 / 8 and "folds of sentences" in speaker["protocol"]
    assert by["speaker", "log-Mel statistics", "eer"]["value"] < 0.4
    assert {("sex", "embeddings", "uar"), ("speaker", "embeddings", "eer_within_sex")} <= set(by)
    layer = "blocks.0.conv, learnt from its other clients"
    one, mean = by["sex", f"one update of {layer}", "uar"], by["sex", f"the mean of 2 updates of {layer}", "uar"]
    assert (one["samples"], mean["samples"], mean["speakers"]) == (16, 8, 8)
    assert by["speaker", "one update of fc, learnt from earlier ones", "uar"]["chance"] == 1 / 8
    noise = by["sex", "noise in place of updates of blocks.0.conv", "uar"]
    assert (noise["samples"], noise["speakers"]) == (16, 8) and 0.3 < noise["value"] < 0.7


def test_embeddings_are_what_the_last_layer_is_given(trained):
    subject = Subject.of(trained)
    found, model, store = subject.embeddings(), subject.prepared.model, subject.prepared.store
    split = subject.prepared.splits[3]
    frames = store.frames[split.train].reshape(-1, 64).astype(np.float64)
    x = (store.frames[split.test] - frames.mean(0)) / np.maximum(frames.std(0), 1e-6)
    lengths = torch.from_numpy(store.lengths[split.test])
    with torch.no_grad():
        expected = model.eval().embed(torch.from_numpy(x.astype(np.float32))[:, None], lengths)
    np.testing.assert_allclose(found[split.test], expected, rtol=1e-3, atol=1e-3)


def test_of_a_network_that_listens_log_mels_are_the_baseline_too(trained, voices, tmp_path):
    """Those of its waveforms, which equal the features of a run on log-Mels."""
    ear = ["features=waveform", "features.seconds=0.528", "model._target_=ear.Ear", "+model.tune=frozen", "rounds=1"]
    ear += [f"~model.{key}" for key in ("width", "norm", "dropout", "bn_momentum", "bn_eps")]  # 0.528 s are 32 frames
    listening = [each for each in voices if not each.startswith(("features.", "model."))]
    subject = Subject.of(run(compose([*listening, *ear]), tmp_path / "ear").folder)
    ours, theirs = subject.log_mels(), Subject.of(trained).log_mels()
    clips = subject.prepared.store.table["path"].tolist()
    rows = [clips.index(path) for path in Subject.of(trained).prepared.store.table["path"]]
    np.testing.assert_allclose(ours[rows], theirs, atol=1e-3)


def test_speakers_who_did_not_train_are_told_apart_from_those_who_did(voices, tmp_path):
    made = run(
        compose([*voices, "partition/split=speaker", "partition.split.test=4", "partition.split.validation=0"]),
        tmp_path / "held",
    )
    found = study(made.folder)["findings"]
    sizes = {(each["whose"], each["metric"]): each["speakers"] for each in found if each["source"] == "embeddings"}
    assert sizes["seen", "uar"] == sizes["unseen", "uar"] == 4 and ("unseen", "eer") in sizes


def test_other_runs_updates_are_learnt_from(trained, voices):
    """Here those of its own run once more: what is learnt by heart is known."""
    subject = Subject.of(trained)
    found = inferred_from_updates(subject, [subject])
    told = [each for each in found if each.source == f"one update of blocks.0.conv, learnt from {trained.name}"]
    assert [each.metric for each in told] == ["uar"] and (told[0].value, told[0].samples) == (1.0, 16)
    bare = run(compose([*voices, "rounds=1"]), trained.parent / "none")
    with pytest.raises(InputError, match="has kept no updates.*checkpoint.updates=10"):
        study(trained, shadows=[bare.folder])


def test_updates_of_several_speakers_are_left_out(trained, voices, caplog):
    several = ["partition=iid", "partition.clients=4", "checkpoint.updates=1"]
    mixed = run(compose([*voices, *several]), trained.parent / "iid")
    found = study(mixed.folder)["findings"]
    assert {each["source"] for each in found} == {"embeddings", "log-Mel statistics"}
    assert "tells of no single speaker (partition=iid). They are left out." in caplog.text
    with pytest.raises(InputError, match="tells of no single speaker"):
        study(mixed.folder, shadows=[trained])


def test_updates_are_what_clients_send_less_what_they_got(trained, voices):
    """With all clients in a round, their weighted mean is what the round did to the model."""
    subject = Subject.of(trained)
    one = run(compose([*voices, "rounds=1", "checkpoint.updates=5"]), trained.parent / "one")
    first = updates.read(one.folder)
    sizes = {split.name: len(split.train) for split in subject.prepared.splits}
    mean = sum(sizes[name] * first[name][0].astype(np.float64) for name in sizes) / sum(sizes.values())
    done = RunFolder(one.folder).weights(1)["parameters"] - subject.prepared.weights["parameters"]
    np.testing.assert_allclose(mean, done, atol=1e-6)
    kept, own = updates.read(trained), Senders.of(subject, "sex")
    assert set(kept) == set(sizes) and {len(each) for each in kept.values()} == {2}  # of three rounds
    assert own.updates.shape == (8, 2, len(done)) and next(iter(own.layers)) == "blocks.0.conv"
    assert [part.stop for part, _ in own.layers.values()][-1] == len(done)


def test_that_updates_are_kept_changes_nothing(trained, voices):
    other = run(compose([*voices, "reuse=false"]), trained.parent / "bare")
    assert (other.folder / "history.jsonl").read_bytes() == (trained / "history.jsonl").read_bytes()
    assert RunFolder(trained).summary()["identity"] == other.metrics["identity"]
    assert not updates.folder(other.folder).exists()
    again = run(compose([*voices, "checkpoint.updates=1"]), other.folder)  # finished, but without what is asked for
    assert not again.metrics["reused"] and updates.folder(again.folder).is_dir()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("age", "has no column 'age' \\(there are .*speaker"),
        ("emotion", "'emotion' is not the same in all clips of speaker"),
        ("language", "nothing to infer from 'language', whose values are: it"),
    ],
)
def test_a_column_that_tells_nothing_is_refused(trained, column, words):
    subject = Subject.of(trained)
    with pytest.raises(InputError, match=words):
        subject.values(column)


def test_too_few_speakers_and_runs_that_are_none_are_refused(small, tmp_path, capsys):
    made = small("attack=none", "defence=none", "rounds=1")
    assert main([str(made.folder)]) == 2
    assert "fedser-privacy: a probe needs at least 3 speakers of each kind" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds no run: fedser-privacy takes the folders of finished runs"):
        study(tmp_path)


# --- Guarantees ------------------------------------------------------------------------------------------------------


def balle_wang(multiplier, delta):
    """ε by Theorem 8 of Balle and Wang 2018, solved here."""

    def excess(epsilon):
        one, other = 1 / (2 * multiplier), epsilon * multiplier
        return ndtr(one - other) - exp(epsilon) * ndtr(-one - other) - delta

    return brentq(excess, 0, 200)


@functools.cache
def prepared(*overrides):
    return prepare(validate(compose([*SMALL, "attack=none", "defence=none", *PRIVATE, *overrides])))


def guaranteed(*overrides):
    """What the settings come to, with a model and clients made once."""
    settings = validate(compose([*SMALL, "attack=none", "defence=none", *PRIVATE, *overrides]))
    norms = [word for word in overrides if "norm=" in word]
    made = prepared(*norms)
    return guarantee.of(settings, made.model, made.norm, made.splits)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_epsilon_is_that_of_the_formula(multiplier):
    assert guarantee.epsilon(multiplier, 1e-5) == pytest.approx(balle_wang(multiplier, 1e-5), rel=1e-4)


def test_a_client_is_counted_as_often_as_it_trains():
    found = guaranteed(
        "rounds=8", "strategy.fraction_train=0.5", "strategy.noise_multiplier=2", "strategy.noise=clients"
    )
    assert found["participations"] == 4 and not found["why"]  # one of two clients, by turns
    assert found["epsilon"] == pytest.approx(balle_wang(2 / sqrt(4), 1e-5), rel=1e-4)
    assert found["epsilon_server"] == pytest.approx(found["epsilon"])  # who trains alone adds all of the noise
    whole = guaranteed("rounds=8", "strategy.noise_multiplier=2", "strategy.noise=clients", "strategy.delta=1e-6")
    assert whole["participations"] == 8 and whole["epsilon_server"] > whole["epsilon"]
    assert whole["epsilon"] == pytest.approx(balle_wang(2 / sqrt(8), 1e-6), rel=1e-4)
    assert guaranteed("strategy.noise_multiplier=2")["epsilon_server"] is None


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["strategy=dp"], "strategy=dp covers parameters alone"),
        (["model.norm=batch", "batch_norm=aggregate"], "batch-norm statistics"),
        (["model.norm=batch", "batch_norm=local"], "batch_norm=local"),
        (["client.optimizer_state=average"], "client.optimizer_state=average"),
        (["features/normalisation=zscore_global"], "features.normalisation=zscore_global"),
        (["simulation.min_reply_fraction=0.5"], "simulation.min_reply_fraction"),
        (["corruption=[dropout]"], "corruption.dropout"),
        (["selection=best", "partition.validation=0.2"], "selection=best"),
        (["detector=lda", "attack=fgsm"], "detector=lda"),
        (["strategy.delta=0.5"], "strategy.delta=0.5"),
    ],
)
def test_what_breaks_the_guarantee_is_named(overrides, culprit):
    found = guaranteed(*overrides)
    assert found["epsilon"] is None and found["text"].startswith("no guarantee: ")
    assert any(culprit in reason for reason in found["why"]) and len(found["why"]) <= 2


def test_without_an_accountant_there_is_no_epsilon(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    assert "pip install '.[privacy]'" in guaranteed()["text"]


def test_attacks_made_on_another_run_are_no_private_matter():
    node = {"_target_": "x", "attack": {"members": [{"source": "outputs/RUN"}]}}
    assert guarantee._sources(SimpleNamespace(node=node))
    assert not guarantee._sources(SimpleNamespace(node={"attack": {"source": None}}))


def test_a_run_without_noise_promises_nothing():
    assert guaranteed("strategy=fedavg") is None


# --- Private clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["server", "clients"])
def test_private_clients_say_no_more_than_they_must(noise, small, monkeypatch):
    from fedser.federation import server_app

    said = []
    accepted = server_app.Exchange._accepted
    monkeypatch.setattr(
        server_app.Exchange, "_accepted", lambda self, reply: said.append(dict(reply.content)) or accepted(self, reply)
    )
    made = small(*PRIVATE, f"strategy.noise={noise}", "attack=none", "defence=none", "strategy.noise_multiplier=1")
    queries = [each for each in said if "config" in each and "name" in each["config"] and "metrics" in each]
    trainings = [each for each in said if "parameters" in each]
    assert len(queries) == 2 and len(trainings) == 4
    for each in queries:
        assert each["metrics"]["num-examples"] == 1 and set(each["metrics"]["total"]) == {0.0}
    for each in trainings:
        assert dict(each["metrics"]) == {"num-examples": 1} and "remarks" not in each
        assert len(each["buffers"]["buffers"].numpy()) == 0
    assert made.metrics["privacy"]["epsilon"] > 0 and all("train/loss" not in row for row in made.history)
    assert made.metrics["status"] == "finished" and "privacy" in json.loads((made.folder / "summary.json").read_text())


def test_a_client_clips_its_update_and_adds_its_part_of_the_noise():
    start, end = np.zeros(20_000, np.float32), np.full(20_000, 0.05, np.float32)  # an update of length 7.07
    own = dp_fedavg.Withheld(clipping_norm=1.0, deviation=0.01)
    sent = own.update(start, end, seed=1)
    assert np.std(sent - end / np.linalg.norm(end)) == pytest.approx(0.01, rel=0.03)
    np.testing.assert_array_equal(sent, own.update(start, end, seed=1))
    assert not np.array_equal(sent, own.update(start, end, seed=2))
    short = np.full(20_000, 1e-4, np.float32)
    np.testing.assert_allclose(dp_fedavg.Withheld(1.0, 0.0).update(start, short, 0), short)
    np.testing.assert_array_equal(dp_fedavg.Withheld().update(start, end, 0), end)  # the server's own matter


def test_the_noise_of_all_clients_is_the_servers():
    made = dp_fedavg.DPFedAvg(noise_multiplier=2.0, clipping_norm=0.5, num_sampled_clients=16, noise="clients")
    mean = sqrt(16 * made.withheld.deviation**2) / 16  # of a mean of sixteen
    assert mean == pytest.approx(2.0 * 0.5 / 16)
    assert strategies.private(made)["clipping_norm"] == 0.5


def test_sums_are_told_where_they_are_needed():
    numbers = {"num-examples": 40} | Sums.of(np.ones((2, 3, 4))).plain()
    assert dp_fedavg.Withheld(sums=False).query(numbers) == numbers | {"num-examples": 1}
    told = dp_fedavg.Withheld().query(numbers)
    assert told["count"] == 1 and told["total"] == [0.0] * 4 and told["squares"] == [1.0] * 4


# --- The report ------------------------------------------------------------------------------------------------------


def test_the_report_has_a_table(tmp_path):
    finding = {"what": "sex", "source": "embeddings", "whose": "seen", "metric": "uar", "low": 0.7, "high": 0.9,
               "chance": 0.5, "speakers": 10, "samples": 535, "protocol": "a probe"}  # fmt: skip
    for seed, value in ((0, 0.8), (1, 0.9)):
        told = {"epsilon": None, "why": ["x"], "text": "no guarantee: x"}
        folder = make_run(tmp_path / str(seed), Made("pgd", seed), full=False, privacy=told)
        layers = [finding | {"source": f"one update of {name}, learnt from others"} for name in ("first", "second")]
        found = [finding | {"value": value}, *({**each, "value": 0.5, "low": None} for each in layers)]
        (folder / "privacy.json").write_text(json.dumps({"findings": [*found, {"metric": "broken"}]}))
    (corpus,) = corpora(report.load([tmp_path]))
    table = tables.privacy(corpus)
    assert [row[2].text for row in table.cells] == ["embeddings", "one update of first, learnt from others"]
    assert table.cells[0][5].value == pytest.approx(0.85) and table.cells[0][5].notes == ("[70.0, 90.0]",)
    assert len(table.data) == 3 and table.notes == ["AT-PGD: no guarantee: x."]
    assert not tables.privacy(SimpleNamespace(models=[]))


@pytest.mark.parametrize(
    "more", [["strategy=dp"], [*PRIVATE, "strategy.noise=server"], [*PRIVATE, "strategy.noise=clients"]]
)
def test_a_round_at_rate_zero_is_no_division_by_zero(voices, tmp_path, more):
    """The last one of a cosine."""
    result = run(compose([*voices, "client/schedule=cosine", "rounds=2", *more]), tmp_path / "run")
    assert len(result.history) == 2
