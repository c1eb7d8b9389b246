"""A running Ray cluster, joined and left as it was; a Ray of our own, of which nothing stays. Real Rays throughout."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SMALL
from processes import rounds, start, until
from test_ray import TRAINED, same

from fedser.errors import InputError, RunError
from fedser.simulation import backend, ray_cluster

QUICK = [*SMALL, "defence=none", "attack=none", "reuse=false"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def actors() -> list[dict]:
    """All actors that the joined cluster has seen."""
    from ray._private import state

    return list(state.actors().values())


@pytest.fixture(scope="module")
def two_machines():
    """A cluster of two nodes with one CPU each, as `ray start` makes it → (HOST:PORT, ray://HOST:PORT, temp folder)."""
    import ray

    scratch, port, client_port = tempfile.mkdtemp(prefix="t"), free_port(), free_port()
    environment = os.environ | {"RAY_TMPDIR": scratch, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--num-gpus=0"]
    start += ["--object-store-memory=80000000", "--disable-usage-stats"]
    head = ["--head", f"--port={port}", f"--ray-client-server-port={client_port}", "--include-dashboard=false"]
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    nodes = [subprocess.Popen([*start, *head], **quiet)]
    address = f"127.0.0.1:{port}"

    def complete():
        with contextlib.suppress(InputError), ray_cluster.joined(address):
            return len(ray_cluster.machines()) == 2

    try:
        until(lambda: Path(scratch, "ray/ray_current_cluster").is_file())
        nodes.append(subprocess.Popen([*start, f"--address={address}"], **quiet))
        until(complete)
        assert not ray.is_initialized()
        yield address, f"ray://127.0.0.1:{client_port}", scratch
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    from fedser import compose, run

    return run(compose([*SMALL, *TRAINED]), tmp_path_factory.mktemp("serial") / "run")


def clean(address) -> bool:
    """Whether both nodes are up and none of our workers is left on them; they have been on both."""
    with ray_cluster.joined(address):
        ours = [actor for actor in actors() if actor["ActorClassName"] == "ClientAppActor"]
        assert len(ray_cluster.machines()) == 2
        return ours and all(actor["State"] == "DEAD" for actor in ours)


@pytest.mark.ray
def test_a_cluster_gives_the_serial_numbers_to_the_bit(two_machines, small, serial):
    import ray

    address, *_ = two_machines
    result = small(*TRAINED, "simulation=cpu", f"simulation.address={address}")
    assert result.metrics["plan"].startswith(f"5 clients · 2 at a time on Ray at {address}, each with 1 CPU · 3 waves")
    same(serial, result)
    assert not ray.is_initialized()
    until(lambda: clean(address))


@pytest.mark.ray
def test_every_node_takes_part(two_machines, settings):
    from flwr.app import ConfigRecord, Message, MessageType, RecordDict
    from flwr.clientapp import ClientApp

    address, *_ = two_machines
    app = ClientApp()

    @app.query()
    def where(message, context):
        import time

        import ray

        time.sleep(0.2)
        node = ray.get_runtime_context().get_node_id()
        return Message(RecordDict({"config": ConfigRecord({"node": node})}), reply_to=message)

    found = []

    def serve(grid):
        until(lambda: len(list(grid.get_node_ids())) == 6)
        content = RecordDict({"config": ConfigRecord()})
        messages = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in grid.get_node_ids()]
        found.extend(reply.content["config"]["node"] for reply in grid.send_and_receive(messages))

    for limit, nodes in (("null", 2), (1, 1)):
        chosen = settings("simulation=cpu", f"simulation.address={address}", f"simulation.actors={limit}")
        plan = backend.plan(chosen, 6)
        assert plan.actors == nodes
        backend.simulate(serve, app, 6, plan, threading.Event())
        assert len(found) == 6 and len(set(found)) == nodes
        found.clear()


@pytest.mark.ray
def test_a_failing_run_leaves_the_callers_ray_and_actors_alone(two_machines, small, capsys):
    import ray

    address, *_ = two_machines
    with ray_cluster.joined(address):  # here the caller is this test

        @ray.remote(num_cpus=0)
        class Other:
            def answer(self):
                return 42

        other = Other.remote()
        with pytest.raises(RunError, match="the training loss became"):
            small("client.lr=1e30", "client.epochs=3", "simulation=cpu")
        assert ray.is_initialized() and ray.get(other.answer.remote()) == 42
        until(lambda: clean(None))
    assert "ClientAppActor" not in capsys.readouterr().out  # Ray would print here that clients were ended


@pytest.mark.ray
def test_ctrl_c_leaves_the_cluster_up_and_empty(two_machines, tmp_path):
    address, _, scratch = two_machines
    arguments = [*QUICK, "rounds=500", "simulation=cpu", "simulation.address=auto", "hydra.run.dir=run"]
    process = launch(arguments, tmp_path, RAY_TMPDIR=scratch)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "on Ray at auto" in errors and "Traceback" not in errors
    assert not said  # Ray would print here that clients were ended
    until(lambda: clean(address))


@pytest.mark.ray
def test_ray_client_gives_the_serial_numbers_too(two_machines, cli, serial, tmp_path):
    """In a process of its own: Ray's client leaves threads of gRPC behind, which don't go with pytest's."""
    address, remote, _ = two_machines
    done = cli(*SMALL, *TRAINED, "simulation=cpu", f"simulation.address={remote}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    same(serial, SimpleNamespace(folder=tmp_path / "run"))
    until(lambda: clean(address))


def launch(arguments, folder, **environment):
    """A run in a session of its own, in its second round."""
    process = start(folder, *arguments, **environment)
    until(lambda: rounds(folder / "run"), process)
    return process


def session(leader: int, word: str) -> list[str]:
    """The command lines of the processes of a session, and of those that name `word`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, belongs = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().decode(errors="replace")
            if state != "Z" and (int(belongs) == leader or word in words):
                found.append(words)
    return found


@pytest.mark.ray
def test_of_a_killed_run_no_process_stays_and_the_next_one_removes_its_folder(tmp_path, monkeypatch):
    scratch = Path(tempfile.mkdtemp(prefix="t"))
    arguments = [*QUICK, "rounds=500", "simulation=cpu", "hydra.run.dir=run"]
    # RAY_ADDRESS names a cluster that is none of our business.
    process = launch(arguments, tmp_path, TMPDIR=str(scratch), RAY_ADDRESS="127.0.0.1:1")
    (folder,) = scratch.glob("fedser-ray-*")
    assert any("raylet" in words for words in session(process.pid, str(scratch)))
    process.kill()
    process.communicate()
    until(lambda: not session(process.pid, str(scratch)))
    assert (folder / "session_latest").exists()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with ray_cluster.scratch_folder() as own:
        assert list(scratch.glob("fedser-ray-*")) == [own]
        ray_cluster.sweep(scratch)  # as another run would
        assert own.is_dir()
    assert not list(scratch.glob("*fedser-ray-*"))
    shutil.rmtree(scratch)


def test_folders_that_are_not_ours_to_remove_stay(tmp_path):
    (tmp_path / "fedser-ray-old").mkdir()  # of a fedser that knew no locks
    (tmp_path / "other").mkdir()
    held = tmp_path / "fedser-ray-held"
    held.mkdir()
    with (held / ray_cluster.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ray_cluster.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
    ray_cluster.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"fedser-ray-old", "other"}


def test_sockets_find_room_where_the_temp_folder_has_a_long_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ray_cluster.scratch_folder() as folder:
        assert len(str(tmp_path)) > ray_cluster.LONGEST_ROOT and folder.parent == Path("/tmp")
    assert not folder.exists()


@pytest.mark.parametrize("address", ["127.0.0.1:PORT", "ray://127.0.0.1:PORT", "auto"])
def test_where_no_cluster_runs_is_said_with_how_to_start_one(settings, address, tmp_path, monkeypatch):
    address = address.replace("PORT", str(free_port()))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(InputError, match=r"no Ray cluster .* `ray start --head`.*`ray start --address=HOST:6379`"):
        backend.plan(settings("simulation=cpu", f"simulation.address={address}"), 2)


def test_a_cluster_that_left_its_address_behind_is_not_waited_for(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        backend.plan(settings("simulation=cpu", "simulation.address=auto"), 2)


def test_serial_runs_join_no_cluster(settings):
    with pytest.raises(InputError, match=r"simulation\.address=auto .* simulation\.backend=serial"):
        backend.plan(settings("simulation.address=auto"), 2)
