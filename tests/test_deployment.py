"""Real clients: what a server may ask them, and a deployment on loopback with processes that are really killed."""

import functools
import json
import os
import signal
import threading

import pytest
from conftest import FIXTURES
from deployed import CLIENT, Place
from flwr.app import ConfigRecord, Context, Message, RecordDict
from processes import rounds, start, until

from fedser import compose, run
from fedser.config.validation import validate
from fedser.deployment.client import Client
from fedser.deployment.grid import TO, Deployed
from fedser.deployment.roster import Entry, Roster
from fedser.deployment.vetting import Vetting, allowed, greeting
from fedser.errors import InputError, Interrupted, RunError
from fedser.evaluate import evaluate
from fedser.evaluation.results import _mixed
from fedser.simulation import backend

EMODB = FIXTURES / "emodb"
SMALL = ["dataset=emodb", "features.frames=64", "model.width=2", "rounds=2", "evaluation.every=2", "attack=fgsm", "logger=none", "strategy.fraction_train=1.0"]  # fmt: skip


# --- what a server may ask -------------------------------------------------------------------------------------------


@functools.cache
def served(*more):
    return validate(compose([*SMALL, "simulation=deploy", *more]))


@functools.cache
def vetting(**options):
    own = ["dataset=emodb", f"dataset.root={EMODB}", "simulation=serial", "logger=none"]
    return Vetting("14", own, **options)


def test_a_client_takes_over_what_decides_the_numbers_and_nothing_about_its_machine():
    settings = served("dataset.root=/the/servers", "client.state_folder=/the/servers/state", "seed=7")
    experiment, own = vetting().experiment(greeting(settings))
    assert own.seed == 7 and own.dataset.root == str(EMODB) and own.client.state_folder is None
    assert own.simulation.backend == "serial" and own.logger.name == "none"
    assert {"settings", "attacks"} == set(experiment) and own.plain["augment"] == settings.plain["augment"]
    assert list(own.plain["augment"]) == list(settings.plain["augment"])  # they are applied in this order
    assert "/the/servers" not in json.dumps(experiment)


@pytest.mark.parametrize(("change", "words"), [
    ({"model": {"_target_": "os.system"}}, "os.system, which is no component that this client allows"),
    ({"model": {"_target_": "fedser.runs.files.write_whole"}}, "write_whole, which is no component"),
    ({"attack": {"method": {"_target_": "subprocess.run"}}}, "subprocess.run"),
    ({"client": {"optimizer": {"_target_": "builtins.eval"}}}, "builtins.eval"),
    ({"model": {"checkpoint": "/etc/passwd"}}, "checkpoint=/etc/passwd: it may name no files"),
    ({"attack": {"source": "../others"}}, "source=../others"),
    ({"logger": {"name": "wandb"}}, "sets logger, which is the client's own"),
    ({"simulation": {"device": "cuda"}}, "sets simulation, which is the client's own"),
    ({"dataset": {"root": "/elsewhere"}}, "root=/elsewhere: it may name no files"),
    ({"evaluation": {"utterances": True}}, "asks what became of single clips"),
    ({"evaluation": {"example": True}}, "asks what became of single clips"),
])  # fmt: skip
def test_what_a_server_may_not_ask(change, words):
    def merged(node, more):
        return {
            **node,
            **{
                key: merged(node.get(key) or {}, value) if isinstance(value, dict) else value
                for key, value in more.items()
            },
        }

    told = greeting(served())
    told["settings"] = merged(json.loads(json.dumps(told["settings"])), change)
    with pytest.raises(InputError, match="server") as error:
        vetting().experiment(told)
    assert words in str(error.value)


def test_versions_and_sources_are_compared():
    told = greeting(served())
    with pytest.raises(InputError, match=r"here is fedser .* the server has 0\.0\.1: install the same"):
        vetting().experiment(told | {"version": "0.0.1"})
    with pytest.raises(InputError, match="the server has other code than this client: fedser differ"):
        vetting().experiment(told | {"code": {"fedser": "0" * 16}})


def test_settings_stay_what_they_were():
    client = vetting(least_noise=None)
    client.pin(1, "these")
    client.pin(1, "these")
    client.pin(2, "others")
    with pytest.raises(InputError, match="changed the settings in the middle of a run"):
        client.pin(1, "others")


def test_a_client_may_ask_for_noise():
    client, told = vetting(least_noise=0.5), greeting(served())
    for private in (None, {"clipping_norm": None}, {"clipping_norm": 2.0, "deviation": 0.9}):
        with pytest.raises(InputError, match=r"nothing with noise below 0\.5 of what updates are clipped to"):
            client.check_noise(told | {"private": private})
    with pytest.raises(InputError, match="nothing with noise"):
        client.check_noise(told)  # a server that leaves it out
    client.check_noise(told | {"private": {"clipping_norm": 2.0, "deviation": 1.0}})


def asked(client, kind, told, **to):
    to = ConfigRecord({"number": 0, **to})
    content = RecordDict({"config": ConfigRecord({"experiment": json.dumps(told)}), TO: to})
    with backend._task_identity():
        return client(Message(content, 1, kind), Context(1, 1, {}, RecordDict(), {}))


def test_a_client_tells_no_path_and_nothing_before_its_noise_is_there(tmp_path):
    (tmp_path / "14a01Wa.wav").write_bytes(b"no audio")
    own = ["dataset=emodb", f"dataset.root={tmp_path}", "simulation=serial", "logger=none"]
    reason = asked(Client("14", Vetting("14", own)), "query.roster", greeting(served())).error.reason
    assert "… can't be read as audio" in reason and "14a01Wa" not in reason and str(tmp_path) not in reason
    reply = asked(Client("14", vetting(least_noise=0.5)), "query", greeting(served()) | {"classes": ["anger"]})
    assert "nothing with noise below 0.5" in reply.error.reason
    assert "do not answer" in asked(Client("14", vetting()), "query.listen", greeting(served())).error.reason


def test_a_client_knows_its_clips_again():
    client, told = Client("14", vetting()), greeting(served())
    known = asked(client, "query.roster", told).content["config"]["data"]
    told |= {"classes": ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]}
    reply = asked(client, "query", told, data="others")
    assert "client '14': it has other clips than when the run began" in reply.error.reason
    assert not asked(client, "query", told, data=known).has_error()


def test_the_allow_list_is_what_configuration_files_name(tmp_path):
    assert {"fedser.models.statcnn.StatCNN", "torch.optim.Adam"} <= allowed()
    assert not any(name.startswith(("fedser.runs", "fedser.simulation", "os", "subprocess")) for name in allowed())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\nname: mine\n")
    assert "mine.Net" in allowed((str(tmp_path),)) - allowed()


def test_lengths_of_perturbations_say_nothing_of_which_clip():
    found = _mixed(
        {"l2": [3.0, 0.0, 1.0], "rms": [30.0, 0.0, 10.0], "right": [1, 0, 1], "fooled": [0, 0, 1], "loud": []}
    )
    assert found == {"l2": [0.0, 1.0, 3.0], "rms": [0.0, 10.0, 30.0], "right": [2], "fooled": [1], "loud": []}


# --- who is there ----------------------------------------------------------------------------------------------------


def entry(name, **counts):
    return Entry(name, "hash", {"train": counts, "validation": {}, "test": counts}, "f")


def test_classes_are_what_clients_have():
    settings = served("dataset.classes=null")
    assert Roster([entry("a", joy=2, fear=2), entry("b", joy=1, fear=3)]).classes(settings) == ["fear", "joy"]
    with pytest.raises(InputError, match="client 'b' alone has the class 'jyo'"):
        Roster([entry("a", joy=2), entry("b", joy=1, jyo=1)]).classes(settings)
    with pytest.raises(InputError, match="client 'b' has no clips"):
        Roster([entry("a", joy=2), entry("b")]).classes(settings)


def test_a_client_with_other_clips_is_told_apart():
    roster = Roster([entry("a", joy=2), entry("b", joy=1)])
    assert not roster.objection(entry("a", joy=2).plain())
    assert "client 'a' has other clips than when the run began" in roster.objection(entry("a", joy=3).plain())


class Nodes:
    """A grid whose nodes say at once what they are; {id: (name, data)}."""

    def __init__(self, nodes):
        self.nodes, self.asked = nodes, []

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(len(self.asked))
            self.asked.append(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, keys):
        for message in (self.asked[int(key)] for key in keys):
            name, data = self.nodes[message.metadata.dst_node_id]
            yield Message(RecordDict({"config": ConfigRecord({"name": name, "data": data})}), reply_to=message)


@pytest.fixture
def identity():
    """Of a task, without which Flower makes no message."""
    with backend._task_identity():
        yield


def test_who_comes_back_at_the_same_place_is_looked_at_again(identity, caplog, monkeypatch):
    """A SuperNode has its id by its key; one that is started again between two messages has lost none."""
    monkeypatch.setattr("fedser.deployment.grid.LOOK_SECONDS", 0)
    nodes = Nodes({7: ("a", "1"), 8: ("b", "2")})
    accepted = lambda told: "" if told["data"] in "12" else f"client '{told['name']}' has other clips"  # noqa: E731
    grid = Deployed(nodes, RecordDict(), 9.0, threading.Event(), accepted)
    assert [told["name"] for told in grid.gather(2, 9)] == ["a", "b"]

    def comes_back(node, name, data):
        nodes.nodes.pop(node)
        grid._look()
        caplog.clear()
        nodes.nodes[node] = (name, data)
        grid._look()
        return caplog.text

    assert "client 'a' is back" in comes_back(7, "a", "1") and grid._nodes == {"a": 7, "b": 8}
    assert "client 'a' has other clips" in comes_back(7, "a", "3") and grid._nodes == {"b": 8}
    assert "client 'a' is back" in comes_back(7, "a", "1") and grid._nodes == {"a": 7, "b": 8}
    nodes.nodes[9] = ("c", "4")
    assert "another client calls itself 'b', which is there" in comes_back(9, "b", "2")
    assert grid._nodes == {"a": 7, "b": 8}


@pytest.mark.parametrize(("words", "complaint"), [
    (["partition=iid", "partition.clients=3"], "partition=iid deals out a corpus"),
    (["strategy=centralised"], "strategy=centralised needs all clips in one place"),
    (["evaluation.utterances=true"], "evaluation.utterances=true: clients of a deployment do not tell of single clips"),
    (["client.timeout=null"], "client.timeout=null"),
    (["simulation.superlink=here"], "simulation.superlink=here must be HOST:PORT"),
    (["simulation.ca=/nowhere.pem"], "/nowhere.pem can't be read"),
])  # fmt: skip
def test_what_no_deployment_can_do(words, complaint, tmp_path):
    with pytest.raises(InputError) as error:
        run(compose([*SMALL, "simulation=deploy", *words]), tmp_path)
    assert complaint in str(error.value)


def test_no_superlink_there(tmp_path):
    with pytest.raises(RunError, match=r"no SuperLink answers at simulation.superlink=127\.0\.0\.1:9: "):
        run(compose([*SMALL, "simulation=deploy", "simulation.superlink=127.0.0.1:9"]), tmp_path)


# --- on loopback -----------------------------------------------------------------------------------------------------


FAULTS = """
import os, signal, time
from pathlib import Path
import torch


def adam(params, lr, eps=1e-7, fused=True, fault=None, marks=None):
    optimizer = torch.optim.Adam(params, lr=lr, eps=eps, fused=fused)
    step = optimizer.step

    def faulty(*args, **kwargs):
        globals()[fault](marks)
        return step(*args, **kwargs)

    if fault and "home-1" in os.environ["HOME"]:  # of a client, not where the server tries it
        optimizer.step = faulty
    return optimizer


def first(marks):
    try:
        os.mkdir(marks)
    except FileExistsError:
        return False
    return True


def die(marks):
    if first(marks):
        os.kill(os.getpid(), signal.SIGKILL)


def vanish(marks):  # with its SuperNode, which can't take leave
    if first(marks):
        for file in Path("/proc/self/task").glob("*/children"):
            for child in file.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def fail(marks):
    raise ValueError("as asked")


def deaf(marks):
    if first(marks):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(12)


def slow(marks):
    time.sleep(0.3)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """An extension folder of everybody's, with an optimizer to whom things happen."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "deployed_faults.py").write_text(FAULTS)
    (folder / "client" / "optimizer").mkdir(parents=True)
    node = "_target_: deployed_faults.adam\n_partial_: true\nlr: ${..lr}\nfault: null\nmarks: null\n"
    (folder / "client" / "optimizer" / "faulty.yaml").write_text(node)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, modules):
    """A SuperLink with TLS and node keys, and two clients."""
    found = Place(tmp_path_factory.mktemp("place"), EMODB, modules)
    try:
        found.superlink()
        for speaker in found.speakers:
            found.client(speaker)
        yield found
    finally:
        found.close()


def words(place, *more):
    link = [
        f"simulation.superlink={place.address}",
        f"simulation.ca={place.ca}",
        "simulation.clients=2",
        "simulation.wait=120",
    ]
    return [*SMALL, "simulation=deploy", *link, "client/optimizer=faulty", "reuse=false", *more]


def deployed(place, folder, *more):
    return run(compose(words(place, *more), config_dir=place.modules), folder)


@pytest.fixture(scope="module")
def simulated(modules, tmp_path_factory):
    """simulated(*overrides) → the folder of the same run on this machine alone."""

    def go(*more):
        own = ["simulation=serial", f"dataset.root={EMODB}", "client/optimizer=faulty", "reuse=false"]
        return run(
            compose([*SMALL, *own, *more], config_dir=modules), tmp_path_factory.mktemp("simulated") / "run"
        ).folder

    return go


@pytest.fixture(scope="module")
def undisturbed(simulated):
    return simulated()


def same(one, other):
    """Whether two runs have the same figures and weights, to the bit."""
    names = [file.relative_to(one) for file in sorted((one / "weights").iterdir())]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ["history.jsonl", *names])


@pytest.mark.loopback
def test_the_numbers_are_the_simulations(place, undisturbed, tmp_path):
    result = deployed(place, tmp_path / "run")
    assert same(result.folder, undisturbed)
    assert {"config.yaml", "evaluation.json", "model.safetensors", "summary.json"} <= {
        file.name for file in result.folder.iterdir()
    }
    assert not (result.folder / "utterances.csv").exists() and not (result.folder / "example.npz").exists()
    told = "".join(file.read_text() for file in result.folder.glob("*.json*"))
    again = evaluate(result.folder, [*words(place)[len(SMALL) : len(SMALL) + 5], "evaluation.attacks=[fgsm]"])
    known = json.loads((result.folder / "evaluation.json").read_text())
    assert again["conditions"] == known["conditions"]  # by fedser-evaluate, from the same clients
    assert str(place.folder) not in told.replace(str(place.ca), "") and "flac" not in told


@pytest.mark.loopback
def test_private_clients_keep_their_optimizers(place, simulated, tmp_path):
    """Moments stay in the clients' own folders, updates are clipped and noised there, by noise of their own."""
    kept = ["client.optimizer_state=persist", "batch_norm=aggregate"]
    assert same(deployed(place, tmp_path / "run", *kept).folder, simulated(*kept))
    private = [
        "strategy=dp_fedavg",
        "strategy.noise=clients",
        "client.optimizer_state=reset",
        "model.norm=group",
        "strategy.noise_multiplier=3",
    ]
    result = deployed(place, tmp_path / "private", *private)
    assert result.metrics["privacy"]["epsilon"] > 0
    assert not same(result.folder, simulated(*private))  # another noise than the seed's
    told = json.loads((result.folder / "summary.json").read_text())["counts"]
    assert sum(told["train"].values()) == 2  # that they train, not on how much


@pytest.mark.loopback
def test_a_client_that_fails_is_named(place, tmp_path):
    with pytest.raises(RunError, match=r"^client '1[45]': ValueError: as asked$"):  # the traceback stays there
        deployed(place, tmp_path / "run", "client.optimizer.fault=fail")
    assert "ValueError: as asked" in place.log("14") + place.log("15")


@pytest.mark.loopback
@pytest.mark.parametrize("fault", ["die", pytest.param("vanish", marks=pytest.mark.slow)])
def test_a_client_that_is_killed_comes_back_and_nothing_is_lost(place, undisturbed, tmp_path, fault):
    def come_back():
        speaker = until(
            lambda: next((name for name in place.speakers if place.processes[name].poll() is not None), None)
        )
        place.end(speaker)
        place.client(speaker)

    nurse = threading.Thread(target=come_back)
    nurse.start()
    try:
        words = [f"client.optimizer.fault={fault}", f"client.optimizer.marks={tmp_path / 'dead'}"]
        result = deployed(place, tmp_path / "run", *words)
    finally:
        nurse.join()
    assert (tmp_path / "dead").exists() and same(result.folder, undisturbed)


@pytest.mark.loopback
def test_one_that_hangs_is_not_waited_for_beyond_its_time(place, tmp_path):
    fault = ["client.optimizer.fault=deaf", f"client.optimizer.marks={tmp_path / 'deaf'}", "client.timeout=3"]
    with pytest.raises(RunError, match=r"client '1[45]': no answer within client.timeout=3 s"):
        deployed(place, tmp_path / "run", *fault)


@pytest.mark.loopback
def test_a_killed_server_goes_on(place, tmp_path):
    slow = ["client.optimizer.fault=slow"]
    process = start(tmp_path, *words(place, *slow, "rounds=4"), "hydra.run.dir=run", "--config-dir", str(place.modules))
    until(lambda: rounds(tmp_path / "run") >= 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = deployed(place, tmp_path / "run", *slow, "rounds=4")
    assert result.metrics["resumed_after"] and len(result.history) == 4


@pytest.mark.loopback
def test_rounds_go_on_without_one_and_who_may_join_them(place, tmp_path, caplog):
    """One that leaves, comes back with other clips, and then with its own; one that was not there when the run began;
    and Ctrl-C in the end."""
    folder, clip = tmp_path / "run", next((place.folder / "14").iterdir())
    history = lambda: [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]  # noqa: E731
    place.list("15", "late")

    def come_and_go():
        try:
            until(lambda: rounds(folder) >= 1)
            place.end("14", signal.SIGKILL)
            clip.rename(tmp_path / clip.name)
            place.register("late")
            place.client("late")
            place.client("14")
            until(lambda: "client '14' has other clips than when the run began" in caplog.text)
            until(lambda: rounds(folder) >= 3)
            (tmp_path / clip.name).rename(clip)
            place.end("14", signal.SIGKILL)
            place.client("14")
            until(lambda: "client 'late' is not of this run, which has begun" in caplog.text)
            until(lambda: history()[-1]["train/clients"] == 2 and rounds(folder) >= 4)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=come_and_go)
    other.start()
    fault = ["client.optimizer.fault=slow", "client.timeout=3", "simulation.min_reply_fraction=0.5", "rounds=1000"]
    try:
        with pytest.raises(Interrupted):
            deployed(place, folder, *fault, "evaluation.every=null")
    finally:
        other.join()
        place.end("late")
    present = [row["train/clients"] for row in history()]
    assert present[0] == 2 and 1 in present and present[-1] == 2
    assert {tuple(row["train/missing"]) for row in history() if "train/missing" in row} == {("14",)}


@pytest.mark.loopback
def test_two_of_one_name_and_one_of_another_version(place, tmp_path):
    place.client("14", key="stranger", name="double")
    place.client("14", key="old", name="old", code=f"import fedser; fedser.__version__ = '0.0.1'; {CLIENT}")
    place.register("stranger")  # below: the other one connects when the first has been found out
    try:
        with pytest.raises(InputError, match="two clients call themselves '14'"):
            deployed(place, tmp_path / "run", "simulation.clients=3")
        place.end("double")
        place.register("old")
        with pytest.raises(InputError, match=r"client '14': here is fedser 0\.0\.1, and the server has"):
            deployed(place, tmp_path / "run", "simulation.clients=3")
    finally:
        place.end("old")


@pytest.mark.loopback
def test_strangers_and_false_certificates_are_refused(place, tmp_path):
    place.client("14", key="unknown", name="unregistered")
    place.client("14", ca="other.pem", name="deceived")
    place.client("14", name="twin")  # with the key of one that is connected
    try:
        until(lambda: "does not accept this node: its key is not registered" in place.log("unregistered"))
        assert until(lambda: place.processes["deceived"].poll()) == 2
        assert "certificate is not signed by --ca" in place.log("deceived")
        until(lambda: "another node that has it is connected" in place.log("twin"))
    finally:
        place.end("unregistered")
        place.end("twin")
    with pytest.raises(RunError, match="no SuperLink answers.*certificate"):
        deployed(place, tmp_path / "run", f"simulation.ca={place.folder / 'other.pem'}")


@pytest.mark.loopback
def test_a_superlink_that_is_restarted_costs_a_round(place, tmp_path):
    """The last test: clients are not the SuperLink's, and find it again."""
    folder = tmp_path / "run"

    def restart():
        until(lambda: rounds(folder) >= 1)
        place.end("superlink")
        place.superlink()

    other = threading.Thread(target=restart)
    other.start()
    fault = ["client.optimizer.fault=slow", "rounds=4"]
    try:
        with pytest.raises(
            RunError, match="the SuperLink at .* is lost .*: start it again, and the same command goes on"
        ):
            deployed(place, folder, *fault)
    finally:
        other.join()
    assert len(deployed(place, folder, *fault).history) == 4
