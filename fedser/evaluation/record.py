"""What an evaluation leaves in a folder, for the report and for whoever wants to look closer.

evaluation.json   conditions with their confusion matrices by client and by draw, how far examples were moved, flags
utterances.csv    what became of each test utterance, where the clients were asked for it
example.npz       one utterance and its perturbations (Chang et al. 2022, Fig. 2), likewise
times.json        how long it took: the only one that depends on the clock
"""

import json
from pathlib import Path

from fedser.config import identity
from fedser.config.compose import build
from fedser.evaluation import sanity
from fedser.evaluation.results import Outcome
from fedser.preparation import Preparation
from fedser.runs.files import dumps, write_whole

FILE = "evaluation.json"


def write(folder: Path, prepared: Preparation, outcome: Outcome, round: int, seconds: float) -> dict:
    """Writes the evidence of one evaluation, after `round` rounds, and returns `evaluation.json`. Raises OSError."""
    record = _record(prepared, outcome, round)
    folder.mkdir(parents=True, exist_ok=True)
    times = {"seconds": seconds, "examples": outcome.seconds()}
    write_whole(folder / "times.json", dumps(times, indent=2).encode())
    if outcome.example is not None:
        write_whole(folder / "example.npz", outcome.example)
    if (utterances := outcome.utterances(prepared.store.table, prepared.store.base)) is not None:
        write_whole(folder / "utterances.csv", utterances.to_csv(index=False, float_format="%.7g").encode())
    write_whole(folder / FILE, dumps(record).encode())  # last: with it, the evidence is whole
    return record


def read(folder: Path) -> dict | None:
    """The `evaluation.json` of a folder, or None."""
    file = folder / FILE
    return json.loads(file.read_text()) if file.is_file() else None


def metrics(record: dict) -> dict[str, float]:
    """What a summary has of it: `uar/`, `accuracy/`, `uar_sd/` where there were draws, and `recall/…/<class>`."""
    found = {}
    for name, condition in record["conditions"].items():
        found |= {f"uar/{name}": condition["uar"], f"accuracy/{name}": condition["accuracy"]}
        if condition["draws"] > 1:
            found[f"uar_sd/{name}"] = condition["uar_sd"]
        for index, emotion in enumerate(record["classes"]):
            row = condition["matrix"][index]
            found[f"recall/{name}/{emotion}"] = row[index] / sum(row) if sum(row) else None
    return found


def _record(prepared: Preparation, outcome: Outcome, round: int) -> dict:
    settings = prepared.settings
    sexes = prepared.sexes()
    record = outcome.record() | {
        "name": settings["evaluation"]["name"],
        "identity": identity.digest(identity.measured(settings)),
        "round": round,
        "clients": {name: {"sex": sexes[name], "utterances": count} for name, count in outcome.tested().items()},
        "evaluation": settings["evaluation"],
        "inference": settings["defence"]["inference"],
        "attacks": {
            name: {"settings": prepared.attacks[name], "threat": str(build(prepared.attacks[name]))}
            for name in dict.fromkeys(condition.attack for condition in outcome.agenda.conditions if condition.attack)
        },
    }
    return record | {"flags": sanity.flags(record)}
