"""fedser as a process of its own, for what only a process can be: interrupted, killed, waited for."""

import os
import subprocess
import sys
import time

SECONDS = 120  # a loaded machine is not slower than that


def start(folder, *arguments, **environment) -> subprocess.Popen:
    """`python -m fedser …` in `folder`, in a session of its own; its Ray workers find what the tests define."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedser", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(condition, process=None, seconds=SECONDS):
    """Waits for what shall come true, as long as `process` lives; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError(f"{condition} did not come true in {seconds} s")
        time.sleep(0.05)
    return found


def rounds(folder) -> int:
    """How many rounds the history in a run's folder has."""
    history = folder / "history.jsonl"
    return history.read_text().count("\n") if history.exists() else 0
