"""The federation in process: every strategy, sampling, failing clients; what the server learns is what it may."""

import json
import threading

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.numpy import load_file

from fedser import compose
from fedser.config.protocol import Protocol
from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract
from fedser.detectors.lda import LDA
from fedser.errors import RunError
from fedser.evaluation import measure, metrics
from fedser.evaluation.parts import Parts
from fedser.federation import client_app, server_app, strategies, transport
from fedser.randomness import derive
from fedser.simulation import backend

STRATEGIES = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum",
              "multikrum", "bulyan", "qfedavg", "dp", "centralised"]  # fmt: skip
FOUR = ["partition=iid", "partition.clients=4"]


def weights_of(result):
    return load_file(max((result.folder / "weights").iterdir()))


@pytest.fixture(scope="module")
def by_strategy(tmp_path_factory):
    from conftest import SMALL

    from fedser import compose, run

    folder = tmp_path_factory.mktemp("strategies")
    words = [*SMALL, *FOUR, "defence=none", "attack=none", "features.frames=32", "evaluation.every=null"]
    return {name: run(compose([*words, f"strategy={name}"]), folder / name) for name in STRATEGIES}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains(by_strategy, name):
    result = by_strategy[name]
    assert result.metrics["status"] == "finished" and 0 <= result.metrics["uar/original"] <= 1
    assert len(result.history) == 2
    weights = weights_of(result)
    assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in weights.values())


def test_strategies_differ(by_strategy):
    parameters = {name: weights_of(result)["parameters"] for name, result in by_strategy.items()}
    for name in STRATEGIES[1:]:
        assert not np.array_equal(parameters[name], parameters["fedavg"]), name


def test_centralised_trains_on_everyone_in_one_place(small, tmp_path):
    """As one client that has all training utterances: the loss of a round is that of one bare loop over them."""
    from fedser.training.local import train
    from fedser.training.objective import CrossEntropy, Samples

    words = ["attack=none", "defence=none", "strategy=centralised", "rounds=1"]
    result = small(*words)
    kept = weights_of(result)
    record = json.loads((result.folder / "evaluation.json").read_text())
    assert set(record["clients"]) == {"14", "15"}  # each is tested by itself
    from fedser.config.validation import validate
    from fedser.preparation import prepare

    prepared = prepare(validate(compose([*SMALL, *words])))
    rows = np.concatenate([split.train for split in prepared.splits])
    frames = prepared.store.frames[rows].astype(np.float64)
    flat = frames.reshape(-1, frames.shape[-1])
    x = torch.from_numpy(((frames - flat.mean(0)) / flat.std(0)).astype(np.float32)).unsqueeze(1)
    samples = Samples.of(x, torch.from_numpy(prepared.store.labels[rows]))
    packed = transport.Packed(prepared.model)
    optimizer = prepared.settings.client.optimizer.build(prepared.model.parameters())
    loss = train(prepared.model, optimizer, samples, CrossEntropy(), round=1, epochs=2, batch_size=8,
                 precision="fp32", mu=0.0, seed=derive(0, "train", 1, "14"))  # fmt: skip
    assert result.history[0]["train/loss"] == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(packed.arrays()["parameters"], kept["parameters"], atol=2e-3)


def test_server_optimisers_never_step_buffers(by_strategy):
    for name in ("fedadam", "fedyogi"):
        variances = weights_of(by_strategy[name])["buffers"].reshape(-1)
        assert (variances >= -10).all()
    # One round of FedAdam changes parameters by its own step, but averages the buffers just as FedAvg does.
    first = {name: by_strategy[name].history[0]["train/loss"] for name in ("fedavg", "fedadam")}
    assert first["fedavg"] == first["fedadam"]


def test_fedadam_averages_the_buffers_of_round_one(small, tmp_path):
    common = [*FOUR, "rounds=1", "defence=none", "attack=none"]
    plain = weights_of(small(*common, folder=tmp_path / "avg"))
    adam = weights_of(small(*common, "strategy=fedadam", folder=tmp_path / "adam"))
    np.testing.assert_array_equal(plain["buffers"], adam["buffers"])
    assert not np.array_equal(plain["parameters"], adam["parameters"])


def test_mu_zero_is_fedavg_and_mu_pulls_towards_the_start(small, tmp_path, settings):
    common = [*FOUR, "rounds=1", "client.epochs=15", "defence=none", "attack=none", "features.frames=32"]
    zero = weights_of(small(*common, "strategy=fedprox", "strategy.proximal_mu=0.0", folder=tmp_path / "zero"))
    avg = weights_of(small(*common, folder=tmp_path / "avg"))
    strong = weights_of(small(*common, "strategy=fedprox", "strategy.proximal_mu=10.0", folder=tmp_path / "ten"))
    np.testing.assert_array_equal(zero["parameters"], avg["parameters"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "initial weights"))
        start = transport.pack(settings().model.component.build(classes=7))["parameters"]
    assert np.linalg.norm(strong["parameters"] - start) < 0.9 * np.linalg.norm(avg["parameters"] - start)


def test_fedavg_weights_by_utterances(settings, tmp_path, monkeypatch):
    """The aggregate of one round equals the weighted mean of what the clients send, computed here in float64."""
    sent = []
    uneven = settings("defence=none", "partition=dirichlet", "partition.clients=3", "partition.alpha=1.0")
    _, strategy, weights, serve = federate(uneven, tmp_path)
    accepted = server_app.Exchange._accepted

    def spy(exchange, reply):
        if "parameters" in reply.content:
            parameters = transport.from_record(reply.content["parameters"]).copy()
            sent.append((reply.content["metrics"]["num-examples"], parameters))
        return accepted(exchange, reply)

    monkeypatch.setattr(server_app.Exchange, "_accepted", spy)
    new = serve(lambda f: f.train(strategy, 1, weights, list(range(f.clients)))[0])
    counts = np.array([count for count, _ in sent], dtype=np.float64)
    expected = np.average(np.stack([array.astype(np.float64) for _, array in sent]), axis=0, weights=counts)
    assert len(set(counts)) > 1
    np.testing.assert_allclose(new["parameters"], expected, rtol=1e-5, atol=1e-7)


def federate(settings, tmp_path):
    """A federation in process, opened by serve(function of the federation after its handshake)."""
    corpus = corpora.load(settings.dataset)
    store = extract(corpus, settings.features)
    clients = len(partition(store.table, settings.partition, settings.seed))
    experiment = {"settings": settings.plain, "classes": corpus.classes, "store": str(store.folder),
                  "attacks": {"fgsm": settings.attacks["fgsm"].node}, "state": str(tmp_path / "state")}  # fmt: skip
    plan = backend.plan(settings, clients)
    strategy = strategies.build_strategy(settings.strategy, clients)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = transport.pack(settings.model.component.build(classes=len(corpus.classes)))
    results = []

    def serve(work):
        def behind(grid):
            federation = server_app.Federation(grid, clients, experiment, threading.Event())
            federation.handshake()
            results.append(work(federation))

        backend.simulate(behind, client_app.app, clients, plan, threading.Event())
        return results[-1]

    return experiment, strategy, weights, serve


def test_evaluation_on_clients_equals_evaluating_centrally(settings, tmp_path):
    experiment, _, weights, serve = federate(settings("defence=none"), tmp_path)
    protocol = Protocol(["fgsm"], randomised=False)
    pooled = serve(lambda federation: federation.evaluate(1, weights, protocol)).pooled()

    state = client_app.ClientState(json.loads(json.dumps(experiment)), client_app.simulated)
    store = state.clients.store
    splits = partition(store.table, state.settings.partition, state.settings.seed)
    frames = store.frames[np.concatenate([split.train for split in splits])].astype(np.float64)
    mean, deviation = frames.mean(axis=(0, 1)), frames.std(axis=(0, 1))
    rows = np.concatenate([split.test for split in splits])
    x = torch.from_numpy(((store.frames[rows] - mean) / deviation).astype(np.float32)).unsqueeze(1)
    y = torch.from_numpy(store.table["label"].to_numpy()[rows])
    transport.unpack(weights, state.model)
    central = measure.evaluate(
        state.model, x, y, protocol, attacks=state.attacks, randomise=None, batch_size=16, seed=0
    )
    for condition, predicted in central.predictions.items():
        matrix = metrics.confusion(y, predicted[0], 7)
        assert matrix.sum() == pooled[condition].sum() == len(rows)
        # The statistics differ in the last float bits (sums against pooled data): at most one borderline clip may flip.
        assert np.abs(matrix - pooled[condition]).sum() <= 2, condition


def sizes(name, value):
    """How many numbers there are under each name of a record's value; the answer to an evaluation is JSON."""
    if name == "config.answer":
        value = json.loads(value)
    if isinstance(value, dict):
        for key, part in value.items():
            yield from sizes(f"{name}.{key}", part)
    elif hasattr(value, "numpy"):
        yield name, value.numpy().size
    else:
        yield name, np.size(value)


def test_the_server_is_told_numbers_only(settings, tmp_path):
    """No reply holds anything of the size of the data: weights, one loss, counts and 64-bin sums."""
    _, strategy, weights, serve = federate(settings("defence=none"), tmp_path)
    kinds = {}

    def listen(federation):
        push, pull = federation.grid.push_messages, federation.grid.pull_messages

        def pulled(identifiers):
            replies = pull(identifiers)
            for reply in replies:
                for name, record in reply.content.items():
                    for key, value in record.items():
                        for part, size in sizes(f"{name}.{key}", value):
                            kinds[part] = max(size, kinds.get(part, 0))
            return replies

        federation.grid.push_messages, federation.grid.pull_messages = push, pulled
        federation.handshake()
        federation.train(strategy, 1, weights, [0, 1])
        federation.evaluate(1, weights, Protocol(["fgsm"], randomised=False))
        detector = federation.detector(1, weights, ["fgsm"], LDA(), Parts(tmp_path / "parts", ""))
        dimensions.append(len(detector.weights))
        shown = Protocol(["fgsm"], randomised=False, utterances=True, groups=["sex"])
        federation.evaluate(1, weights, shown, detector=detector)

    dimensions = []
    serve(listen)
    most = max(kinds[f"config.answer.examples.fgsm.{measure}"] for measure in ("linf", "l2", "rms", "snr"))
    assert most < 20
    model = {"parameters.parameters": weights["parameters"].size, "buffers.buffers": weights["buffers"].size}
    assert kinds == model | {
        "metrics.num-examples": 1, "metrics.loss": 1, "metrics.count": 1,
        "metrics.total": 64, "metrics.squares": 64, "config.name": 1,
        "config.answer.counts.original": 49, "config.answer.counts.adversarial/fgsm": 49,
        "config.answer.utterances": 1, "config.answer.validation.original": 49,
        # How far each of the client's test utterances was moved: no features, no labels, no names.
        **{f"config.answer.examples.fgsm.{measure}": most for measure in ("linf", "l2", "rms", "snr")},
        "config.answer.examples.fgsm.seconds": 1,
        # How many were right at first, and how many of these are wrong under attack.
        "config.answer.examples.fgsm.right": 1, "config.answer.examples.fgsm.fooled": 1,
        # For a detector the sums of (1, z)(1, z)ᵀ over training clips, clean and attacked; two scores of each test clip.
        "sums.sums": 2 * (1 + dimensions[0]) ** 2,
        **{f"config.answer.detector.{condition}.{key}": size for condition in ("original", "adversarial/fgsm")
           for key, size in {"clips": 1, "caught": 1, "wrong": 1, "slipped": 1, "score": most, "unsure": most}.items()},
        # The speakers' sexes are told only as names of further matrices, where they are asked for.
        **{f"config.answer.groups.sex.{sex}.{condition}": 49 for sex in ("female", "male")
           for condition in ("original", "adversarial/fgsm")},
        **{f"config.answer.utterances.{name}": most for name in ("row", "original", "adversarial/fgsm")},
    }  # fmt: skip


@pytest.mark.parametrize("broken", transport.KEYS)
def test_a_global_model_that_is_no_number_ends_the_run(settings, broken):
    class Clients:
        trainers = (0, 1)

        def train(self, strategy, round, weights, chosen):
            return weights | {broken: np.array([1.0, np.nan])}, {"loss": 1.0}, []

    weights = {key: np.ones(2) for key in transport.KEYS}
    with pytest.raises(RunError, match=rf"NaN or infinite in round 1 .*\(its {broken}\).* client.lr"):
        list(server_app.train_rounds(Clients(), None, weights, settings()))


def test_sampling_is_seeded_and_sized(settings):
    chosen = [server_app.sample_clients(68, 17, seed=3, round=r) for r in range(1, 6)]
    assert all(len(set(clients)) == 17 and clients == sorted(clients) for clients in chosen)
    assert chosen == [server_app.sample_clients(68, 17, seed=3, round=r) for r in range(1, 6)]
    assert chosen[0] != chosen[1]
    assert server_app.sample_clients(68, 17, seed=4, round=1) != chosen[0]
    assert server_app.sample_clients(5, 5, seed=0, round=1) == [0, 1, 2, 3, 4]
    assert sorted(client for each in chosen[:4] for client in each) == list(range(68))  # everyone before anyone again
    turn = [client for r in range(1, 6) for client in server_app.sample_clients(24, 5, seed=0, round=r)]
    assert set(turn) == set(range(24)) and len(turn) == 25
    assert strategies.clients_per_round(settings("strategy.fraction_train=0.01").strategy, 5) == 1
    assert strategies.clients_per_round(settings("strategy.fraction_train=0.5").strategy, 5) == 3


def test_fraction_train_trains_only_the_sampled(small):
    result = small(*FOUR, "strategy.fraction_train=0.5", "defence=none", "attack=none")
    assert [row["train/clients"] for row in result.history] == [2, 2]


@pytest.fixture
def failing_client(monkeypatch):
    """A client whose training raises in round 2."""
    real = client_app.train_locally

    def arm(name):
        def train(model, optimizer, samples, objective, **options):
            if names.pop(0) == name:
                raise RunError("the training loss became nan; a smaller client.lr may help")
            return real(model, optimizer, samples, objective, **options)

        names = []
        handler = client_app.train

        def spy(state, data, message):
            names.append(data.name if int(message.content["config"]["server-round"]) == 2 else "")
            return handler(state, data, message)

        monkeypatch.setattr(client_app, "train_locally", train)
        monkeypatch.setattr(client_app, "train", spy)
        import fedser.deployment.server

        monkeypatch.setattr(fedser.deployment.server, "client_app", client_app.make_app())

    return arm


def test_a_failing_client_fails_the_run_and_is_named(small, failing_client, tmp_path):
    failing_client("client-2")
    with pytest.raises(RunError) as raised:
        small(*FOUR, "reuse=false", "defence=none", "attack=none")
    assert "client 'client-2'" in str(raised.value) and "loss became nan" in str(raised.value)
    assert "Traceback" in str(raised.value)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and "client-2" in summary["error"] and summary["rounds"] == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_client_that_cannot_speak_for_itself_is_named_too(small, monkeypatch):
    """As when its worker dies: Flower answers in its place, and knows no names."""
    from flwr.app import Error, Message

    import fedser.deployment.server

    app = client_app.make_app()
    monkeypatch.setitem(
        app._registered_funcs, "train.default", lambda m, c: Message(Error(0, "actor\ndied"), reply_to=m)
    )
    monkeypatch.setattr(fedser.deployment.server, "client_app", app)
    with pytest.raises(RunError, match=r"client 'client-0': its worker failed or died: actor died"):
        small(*FOUR, "reuse=false", "defence=none", "attack=none")


def test_min_reply_fraction_goes_on_without_it_and_says_so(small, failing_client, caplog):
    failing_client("client-2")
    result = small(*FOUR, "reuse=false", "defence=none", "attack=none", "simulation.min_reply_fraction=0.75")
    assert [row.get("train/missing") for row in result.history] == [None, ["client-2"]]
    assert result.history[1]["train/clients"] == 3
    assert "client-2" in caplog.text


def test_adversarial_training_changes_the_model_from_round_two_on(small, tmp_path):
    clean = small("defence=none", folder=tmp_path / "clean")
    for pairing in ("disjoint", "paired"):
        trained = small("defence=adversarial", f"defence.training.pairing={pairing}", folder=tmp_path / pairing)
        assert trained.history[0]["train/loss"] == clean.history[0]["train/loss"]
        assert trained.history[1]["train/loss"] != clean.history[1]["train/loss"]


def test_persisting_moments_changes_round_two(small, tmp_path):
    reset = small("defence=none", folder=tmp_path / "reset")
    persist = small("defence=none", "client.optimizer_state=persist", folder=tmp_path / "persist")
    assert reset.history[0]["train/loss"] == persist.history[0]["train/loss"]
    assert not np.array_equal(weights_of(reset)["parameters"], weights_of(persist)["parameters"])


def test_vgg15_really_trains(small):
    result = small("model=vgg15", "rounds=1", "defence=none", "attack=none", "dataset.classes=[anger,sadness]",
                   "dataset.drop=[boredom,disgust,fear,happiness,neutral]")  # fmt: skip
    assert result.metrics["parameters"] == 14_855_111 - 5 * 257  # two classes instead of seven
    assert weights_of(result)["parameters"].size == result.metrics["parameters"]
    assert result.metrics["clients"] == 2 and np.isfinite(result.history[0]["train/loss"])


def test_features_resident_on_the_device_are_the_same_inputs(settings, tmp_path, monkeypatch):
    from fedser.features.normalisation import Sums, zscore

    experiment, *_ = federate(settings(), tmp_path)
    state = client_app.ClientState(json.loads(json.dumps(experiment)), client_app.simulated)
    data = state.clients.client(0)
    rows = data.rows("train")
    normalise = zscore(Sums.of(data.frames(rows)))
    before = state.samples(data, rows, normalise)
    monkeypatch.setattr(state, "_resident", lambda: torch.from_numpy(np.array(state.clients.store.frames, np.float32)))
    again = state.samples(data, rows, normalise)
    for part in ("x", "y", "weight", "lengths"):
        assert torch.equal(getattr(before, part), getattr(again, part)), part


def test_precision_of_attacks_and_evaluation_can_be_halved(small, tmp_path):
    common = ["defence=adversarial", "reuse=false"]
    full = small(*common, folder=tmp_path / "full")
    attack = small(*common, "client.attack_precision=bf16", folder=tmp_path / "attack")
    tested = small(*common, "evaluation.precision=bf16", folder=tmp_path / "tested")
    losses = [[row["train/loss"] for row in result.history] for result in (full, attack, tested)]
    assert losses[0] == losses[2] and losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1] and losses[0][1] == pytest.approx(losses[1][1], rel=0.05)


class Contrary(backend.SerialGrid):
    """Replies come in the reverse of the order in which the messages of a window were sent."""

    most = 0

    def pull_messages(self, message_ids):
        type(self).most = max(self.most, len(self._inbox))
        self._inbox = dict(reversed(self._inbox.items()))
        replies = super().pull_messages(message_ids)
        self._inbox = dict(reversed(self._inbox.items()))
        return replies


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_the_order_of_arrival_decides_nothing(small, tmp_path, monkeypatch, strategy):
    many = ["partition=dirichlet", "partition.clients=6", "partition.alpha=1.0", "reuse=false", f"strategy={strategy}"]
    usual = small(*many, folder=tmp_path / "usual")
    monkeypatch.setattr(backend.Plan, "window", 4)
    monkeypatch.setattr(backend, "SerialGrid", Contrary)
    reverse = small(*many, folder=tmp_path / "reverse")
    for name in ("history.jsonl", "model.safetensors", "evaluation.json", "utterances.csv", "example.npz"):
        assert (usual.folder / name).read_bytes() == (reverse.folder / name).read_bytes(), name
    assert Contrary.most == 4  # of six clients, never more were under way
