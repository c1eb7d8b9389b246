"""Fixtures: real speech that is always there, whole corpora where they are, and a cache of its own."""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"

# A small federated experiment on real speech: two speakers, in process, seconds. Of defaults that do not change.
SMALL = [
    "dataset=emodb",
    f"dataset.root={FIXTURES / 'emodb'}",
    "features.frames=128",
    "model.width=2",
    "rounds=2",
    "evaluation.every=1",
    "simulation=serial",
    "logger=none",
    "experiment=v03",
]


# In a background job of a shell Ctrl-C is ignored, and would be in every process that a test starts and interrupts.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Files that start Ray or a SuperLink take longest. They come first, so that in the end no worker waits for another's."""
    long = {item.path for item in items if item.get_closest_marker("ray") or item.get_closest_marker("loopback")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing is read from or written to the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDSER_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.delenv("WANDB_API_KEY", raising=False)
    torch.set_num_threads(1)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The whole corpora: `FEDSER_DATA`, or ../shared/data beside the checkout; skips where neither is."""
    for folder in (os.environ.get("FEDSER_DATA"), HERE.parent.parent / "shared" / "data"):
        if folder and Path(folder, "emodb").is_dir():
            return Path(folder)
    pytest.skip("no whole corpora here: set FEDSER_DATA")


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The four models of the paper with two seeds, made up, and their report: (runs' folder, report's folder, what was
    written). Once for all workers, for it takes long; nobody may change it."""
    from runs import make_grid

    from fedser import report

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "reported"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "written.json").exists():
            make_grid(folder / "runs")
            written = report.write(report.load([folder / "runs"]), folder / "report/new")
            (folder / "written.json").write_text(json.dumps(list(map(str, written))))
    return folder / "runs", folder / "report/new", list(map(Path, json.loads((folder / "written.json").read_text())))


@pytest.fixture
def settings():
    """settings(*overrides) → checked plain values of the small experiment."""
    from fedser.config.compose import compose
    from fedser.config.validation import validate

    return lambda *overrides: validate(compose([*SMALL, *overrides]))


@pytest.fixture
def small(tmp_path):
    """small(*overrides, folder=…) → the result of running the small experiment in-process."""
    from fedser import compose, run

    def go(*overrides, folder=None):
        common = [item for item in SMALL if not ("model=vgg15" in overrides and item.startswith("model."))]
        return run(compose([*common, *overrides]), folder or tmp_path / "run")

    return go


@pytest.fixture(scope="module")
def callers_ray():
    """A Ray of the caller's, as a notebook has: runs join it instead of starting one each, which takes seconds."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # workers import from tests/, too
        ray.init(
            address="local", num_cpus=3, num_gpus=0, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, object_store_memory=80_000_000,
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture
def cli(tmp_path):
    """cli(*arguments) → a finished `python -m fedser …` process, run from an empty folder."""

    def go(*arguments, **environment):
        command = [sys.executable, "-m", "fedser", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=300
        )

    return go


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(*arguments) → what `fedser …` came to, like `cli` but in this process, which has imported torch already."""
    from fedser.__main__ import main

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedser", *arguments])
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own would be taken for the user's
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=left.value.code, stdout=said.out, stderr=said.err)

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as `main` does, and taken back
    return go
