"""Finished runs → one small JSON each, as they are kept here: what was measured, how long it took, by which command.

python docs/results/collect.py OUTPUTS… [--to docs/results]
"""

import argparse
import json
from pathlib import Path

from fedser.evaluation import record as records
from fedser.runs.folder import RunFolder, run_folders


def cell(run: RunFolder) -> dict:
    """What is kept of one run: no clients, no single draws."""
    config, summary = run.config(), run.summary()
    training = config["defence"]["training"]
    return {
        "dataset": config["dataset"]["name"],
        "model": f"{config['model']['name']} of width {config['model'].get('width')}",
        "trained_against": training and training["attack"]["name"],
        "seed": config["seed"],
        "rounds": summary["rounds"],
        "version": summary["version"],
        "train_seconds": None if summary.get("reused") else round(sum(summary.get("train_seconds", [])), 1),
        "curve": [found for row in run.history() if (found := uars(row))],
        "evaluations": [evaluation(folder) for folder in run.evaluations()],
    }


def uars(row: dict) -> dict:
    """The round and the UARs of a row of the history; nothing where it was not evaluated."""
    found = {key: round(value, 4) for key, value in row.items() if key.startswith("uar/")}
    return found and {"round": row["round"]} | found


def evaluation(folder: Path) -> dict:
    """What is kept of one evaluation."""
    record, times = records.read(folder), json.loads((folder / "times.json").read_text())
    return {
        "name": record["name"],
        "round": record["round"],
        "fraction": record["evaluation"]["fraction"],
        "seconds": round(times["seconds"], 1),
        "classes": record["classes"],
        "conditions": {
            name: {key: condition[key] for key in ("uar", "uar_sd", "accuracy", "draws", "matrix")}
            for name, condition in record["conditions"].items()
        },
        "examples": record["examples"],
        "attacks": {name: attack["threat"] for name, attack in record["attacks"].items()},
        "flags": record["flags"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="runs' folders, or folders of runs")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    for run in map(RunFolder, run_folders(arguments.runs)):
        if (run.summary() or {}).get("status") != "finished":
            continue
        kept = cell(run)
        name = f"{run.path.name}.json"
        (arguments.to / name).write_text(json.dumps(kept, separators=(",", ":"), ensure_ascii=False) + "\n")
        print(arguments.to / name)


if __name__ == "__main__":
    main()
