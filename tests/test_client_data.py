"""A client with data of its own is the simulated client of that speaker, and neither sees anybody else's."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedser.config.protocol import Protocols
from fedser.data import corpora
from fedser.data.store import FeatureStore, extract
from fedser.features import audio
from fedser.features.normalisation import Sums
from fedser.federation import client_app, transport
from fedser.federation.client_data import ClientData, Own, Simulated
from fedser.simulation import backend

SPEAKER, NUMBER = "15", 1
OVERRIDES = ["defence=two_stage", "evaluation.attacks=[fgsm]", "evaluation.fraction=0.5", "evaluation.utterances=false",
             "partition.validation=0.2"]  # fmt: skip


@pytest.fixture
def simulated(settings):
    """(settings, store) of a simulation of both speakers."""
    chosen = settings(*OVERRIDES)
    return chosen, extract(corpora.load(chosen.dataset), chosen.features)


@pytest.fixture(params=["emodb", "manifest"])
def own(request, settings, tmp_path):
    """The settings of a client on a machine of its own, where there are the clips of one speaker alone."""
    folder = tmp_path / "own"
    folder.mkdir()
    for clip in FIXTURES.glob(f"emodb/wav/{SPEAKER}*"):
        shutil.copy(clip, folder)
    if request.param == "emodb":
        return settings(*OVERRIDES, f"dataset.root={folder}")
    table = corpora.load(settings(f"dataset.root={folder}").dataset).table
    table[["path", "speaker", "emotion"]].to_csv(folder / "clips.csv", index=False)
    classes = "dataset.classes=[anger,boredom,disgust,fear,happiness,neutral,sadness]"
    return settings(*OVERRIDES, "dataset=manifest", f"dataset.root={folder / 'clips.csv'}", classes)


class Asked:
    """A client that answers messages in this process, as Flower hands them over."""

    def __init__(self, settings, data, number, store=None, state=""):
        self.settings, self.number = settings, number
        attacks = {name: attack.node for name, attack in Protocols.of(settings).attacks.items()}
        classes = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
        experiment = {
            "settings": settings.plain,
            "classes": classes,
            "attacks": attacks,
            "store": str(store),
            "state": state,
        }
        self.experiment, self.app = json.dumps(experiment), client_app.make_app(data)

    def __call__(self, kind, weights=None, **config):
        content = RecordDict({"config": ConfigRecord({"experiment": self.experiment, **config})})
        content = RecordDict((transport.to_records(weights) if weights else {}) | dict(content))
        context = Context(0, 0, {"partition-id": self.number}, RecordDict(), {})
        with backend._task_identity():  # without which Flower's messages can't be made
            reply = self.app(Message(content, 1, kind), context)
        assert not reply.has_error(), reply.error.reason
        return reply.content


def opened(monkeypatch) -> list[str]:
    """The names of the clips that are decoded from now on."""
    names, read = [], audio.read

    def listed(path, *arguments, **options):
        names.append(str(path).rpartition("/")[2])
        return read(path, *arguments, **options)

    monkeypatch.setattr(audio, "read", listed)
    return names


def test_own_data_answer_as_the_simulated_client_does(simulated, own, monkeypatch, tmp_path):
    settings, store = simulated
    before = Asked(settings, client_app.simulated, NUMBER, store.folder)
    monkeypatch.setenv("FEDSER_CACHE", str(tmp_path / "cache"))  # it has extracted nothing yet
    names = opened(monkeypatch)
    after = Asked(own, lambda experiment, settings: Own(SPEAKER, settings), NUMBER)

    queried = [asked("query") for asked in (before, after)]
    assert len(names) == 21 and all(name.startswith(SPEAKER) for name in names)
    assert queried[0]["config"]["name"] == queried[1]["config"]["name"] == SPEAKER
    assert dict(queried[0]["metrics"]) == dict(queried[1]["metrics"])

    everyone = {key: queried[0]["metrics"][key] for key in ("count", "total", "squares")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = transport.pack(settings.model.component.build(classes=7))
    for round in (1, 2):  # the second one is adversarial
        trained = [asked("train", weights, **everyone, **{"server-round": round}) for asked in (before, after)]
        arrays = [transport.from_records(reply) for reply in trained]
        for key in transport.KEYS:
            np.testing.assert_array_equal(arrays[0][key], arrays[1][key])
            assert not np.array_equal(arrays[0][key], weights[key])
        assert dict(trained[0]["metrics"]) == dict(trained[1]["metrics"])

    protocol = json.dumps(Protocols.of(settings).final.plain())
    tested = [
        asked("evaluate", weights, **everyone, **{"server-round": 2, "protocol": protocol}) for asked in (before, after)
    ]
    answers = [json.loads(reply["config"]["answer"]) for reply in tested]
    for found in answers:
        for examples in found["examples"].values():
            del examples["seconds"]
    assert answers[0] == answers[1]
    assert (
        np.sum(answers[0]["counts"]["original"]) == 2 and np.sum(answers[0]["validation"]["original"]) == 3
    )  # half of 4; of 17
    assert len(names) == 21  # decoded once, and nobody else's


def test_a_client_has_its_own_utterances_only(simulated):
    settings, store = simulated
    clients = Simulated(store.folder, settings)
    for number, name in enumerate(("14", "15")):
        data = clients.client(number)
        rows = np.concatenate([data.rows(part) for part in ("train", "validation", "test")])
        assert data.name == name and data.number == number
        assert sorted(rows) == np.flatnonzero(store.table["client"] == name).tolist()


def test_what_a_client_has_does_not_depend_on_others_labels(simulated):
    settings, store = simulated
    split = Simulated(store.folder, settings).client(0).split
    blind = store.table.assign(label=np.where(store.table["client"] == "14", store.table["label"], 0))
    notes = {"base": store.base, "classes": store.classes, "skipped": []}
    other = FeatureStore(store.folder, store.frames, blind, notes)
    one, without = ClientData(store, split), ClientData(other, split)
    for part, fraction in (("train", 0.3), ("test", 0.5), ("test", 1.0)):
        rows = one.rows(part, fraction, seed=3)
        assert (rows == without.rows(part, fraction, seed=3)).all()
        assert (one.labels(rows) == without.labels(rows)).all()
        assert Sums.of(one.frames(rows)).count == Sums.of(without.frames(rows)).count


def test_a_fraction_is_the_clients_own_draw(simulated):
    """By name and seed, the same again."""
    settings, store = simulated
    data = [Simulated(store.folder, settings).client(number) for number in (0, 1)]
    for one in data:
        rows = one.rows("train", 0.5, seed=0)
        assert len(rows) == round(0.5 * len(one.rows("train"))) and set(rows) < set(one.rows("train"))
        assert (one.rows("train", 0.5, seed=0) == rows).all()
        assert (one.rows("train", 0.5, seed=1) != rows).any()
        assert len(one.rows("train", 0.01)) == 1
