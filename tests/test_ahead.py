"""A Ray that starts while a run is prepared: when one does, and that none is left behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import start, until

from fedser.simulation import backend, ray_cluster, ray_grid

RAY = {"backend": "ray", "address": None, "actors": None, "num_gpus": 0, "total_gpus": None}


@pytest.fixture
def place():
    """A folder with a short path, for Ray's sockets and whatever is written."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    yield folder
    shutil.rmtree(folder)


def processes(place) -> list[str]:
    """Command lines of Ray's processes whose folder is here."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that ended since
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if f"{place}/fedser-ray-" in line]


@pytest.mark.parametrize(
    ("changed", "places"),
    [
        ({}, 2),
        ({"actors": 3}, 3),
        ({"actors": "three"}, 0),  # which is refused when it is looked at
        ({"backend": "serial"}, 0),
        ({"backend": "serial", "actors": 3}, 0),
        ({"address": "auto"}, 0),
        ({"num_gpus": 0.5}, 0),
        ({"total_gpus": 1}, 0),
    ],
)
def test_when_there_is_one(monkeypatch, changed, places):
    monkeypatch.setattr(ray_cluster, "cores", lambda: 2.0)
    monkeypatch.setattr(ray_cluster, "cards", lambda: [])
    assert ray_cluster._places(RAY | changed) == places


def test_none_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr(ray_cluster, "cards", lambda: [])
    assert ray_cluster._places(RAY | {"actors": 1}) == 1
    monkeypatch.setattr(ray_cluster, "free_memory", lambda: 4 * ray_cluster.LEAST_AHEAD - 4)
    assert ray_cluster._places(RAY | {"actors": 1}) == 0
    monkeypatch.undo()
    monkeypatch.setattr(ray_cluster, "cards", lambda: [])
    monkeypatch.setattr(ray_cluster, "SHARED", Path("/nowhere"))
    assert ray_cluster._places(RAY | {"actors": 1}) == 0


def test_none_for_a_run_that_has_finished_or_many_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "Ahead", None)  # would raise
    with ray_cluster.ahead(RAY | {"actors": ray_cluster.MOST_AHEAD + 1}, tmp_path):
        pass
    (tmp_path / "summary.json").write_text("{}")
    with ray_cluster.ahead(RAY, tmp_path):
        pass


def test_what_torchattacks_never_uses_is_not_imported():
    """Nor by who looks through all modules, as Hydra does; and who uses it has it."""
    code = """
import sys, torch, fedser.attacks.fgsm, torchattacks
for module in list(sys.modules.values()):
    vars(module)
print(sorted({"scipy.optimize", "scipy.stats._stats_py"} & set(sys.modules)))
net, x, y = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
print(torchattacks.OnePixel(net, pixels=1, steps=1, popsize=4)(x, y).shape, torchattacks.TIFGSM(net, steps=1)(x, y).shape)
from scipy.stats import norm; import scipy.stats.qmc
print(norm is scipy.stats.norm, scipy.stats.qmc.Sobol.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    size = "torch.Size([2, 3, 8, 8])"
    assert done.stdout.splitlines() == ["[]", f"{size} {size}", "True Sobol"], done.stderr


@pytest.mark.ray
@pytest.mark.parametrize("more", [0, 1])
def test_the_plan_has_room_in_it_or_gets_another_one(place, monkeypatch, more):
    import ray

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray_cluster, "cards", lambda: [])
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    try:
        with ray_cluster.ahead(RAY | {"actors": 1}, place):
            assert ray_cluster.machines() is None  # it is nobody else's that was joined
            assert ray_cluster.free_before() > 0
            with ray_cluster.up(backend.Plan("ray", 1 + more, 1, 0.0, 0.0)) as taken:
                assert taken == {"num_cpus": 1, "num_gpus": 0.0}
                assert ray.cluster_resources()["CPU"] == 1 + more
                worker = ray_grid.ClientAppActor.remote(None, 1, 1)  # imported without the collector, works with it
                assert ray.get(worker.__ray_call__.remote(lambda self: __import__("gc").isenabled()))
            assert not ray.is_initialized() and ray_cluster.free_before() is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(place.glob("fedser-ray-*")) and not processes(place)


@pytest.mark.ray
@pytest.mark.parametrize("ended", ["by an error", "by Ctrl-C"])
def test_nothing_is_left_of_a_run_that_does_not_begin(place, ended):
    missing = ["dataset=emodb", f"dataset.root={place / 'none'}"] if ended == "by an error" else []
    environment = {"TMPDIR": str(place), "FEDSER_CACHE": str(place / "cache")}
    run = start(place, "simulation=cpu", "simulation.actors=1", *missing, **environment)
    if ended == "by Ctrl-C":
        until(lambda: list(place.glob("fedser-ray-*")), run)
        os.kill(run.pid, signal.SIGINT)
    _, told = run.communicate()
    assert run.returncode == (2 if ended == "by an error" else 130), told
    assert "Traceback" not in told
    until(lambda: not processes(place), seconds=20)
    assert not list(place.glob("fedser-ray-*"))
