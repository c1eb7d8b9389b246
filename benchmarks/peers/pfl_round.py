"""A federated round by Apple's pfl 0.6 (Granqvist et al. 2024), in processes of its own (`peers.pfl_worker`)."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PACKAGES = "pfl dp-accounting multiprocess prv-accountant dill attrs absl-py mpmath"
INSTALL = f"pip install --no-deps --target DIR {PACKAGES}, then PYTHONPATH=DIR"


def installed():
    """Whether pfl and what it imports can be found; imports none of it."""
    return all(importlib.util.find_spec(name) for name in ("pfl", "dp_accounting", "multiprocess", "prv_accountant"))


def run(settings, data, rounds, threads):
    """(seconds per round, losses per round) of pfl in len(threads) processes."""
    with tempfile.TemporaryDirectory() as scratch:
        torch.save((settings, data, rounds, threads), Path(scratch, "work.pt"))
        folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, folders)),
            "OMP_NUM_THREADS": str(max(threads)),
            "CUDA_VISIBLE_DEVICES": "",  # pfl would take a GPU unasked
        }
        torchrun = [
            "torch.distributed.run",
            "--standalone",
            "--local-addr=127.0.0.1",
            f"--nproc-per-node={len(threads)}",
        ]
        command = [sys.executable, "-m", *torchrun, "-m", "peers.pfl_worker", scratch]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"pfl ended with exit code {done.returncode}:\n{done.stdout[-4000:]}")
        parts = [json.loads(Path(scratch, f"{rank}.json").read_text()) for rank in range(len(threads))]
    return parts[0]["seconds"], [sum(losses) for losses in zip(*(part["losses"] for part in parts), strict=True)]
