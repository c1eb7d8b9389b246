"""The bare command, as a new user meets it: `fedser` with nothing cached, then again with its features cached.

    python benchmarks/run.py [--json PATH] [override …]

Prints wall-clock seconds in all and until the first round is done, and the UARs. The second run trains again
(`reuse=false`), so the difference is what the cache saves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(folder: Path, cache: str, overrides: list[str]) -> dict:
    """One `python -m fedser` in a process of its own."""
    command = [sys.executable, "-m", "fedser", f"hydra.run.dir={folder}", *overrides]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"FEDSER_CACHE": cache}, stdout=subprocess.DEVNULL)
    history, first = folder / "history.jsonl", None
    while process.poll() is None:
        if first is None and history.exists() and history.read_text():
            first = time.perf_counter() - began
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    summary = json.loads((folder / "summary.json").read_text())
    uars = {key: value for key, value in summary.items() if key.startswith("uar/")}
    return {"seconds": time.perf_counter() - began, "first_round_s": first, "clients": summary["clients"], **uars}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = str(Path(scratch, "cache"))
        rows = {
            "nothing cached": run(Path(scratch, "cold"), cache, overrides),
            "features cached": run(Path(scratch, "warm"), cache, [*overrides, "reuse=false"]),
        }
    print(f"{'':18}{'in all':>10}{'round 1':>10}{'clients':>10}{'UAR':>8}{'under attack':>14}")
    for name, row in rows.items():
        attacked = min(value for key, value in row.items() if key.startswith("uar/"))
        print(
            f"{name:18}{row['seconds']:9.1f}s{row['first_round_s']:9.1f}s{row['clients']:10}"
            f"{100 * row['uar/original']:7.1f}%{100 * attacked:13.1f}%"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
