"""The record of an evaluation: what it leaves in a folder, for the report and for whoever wants to look closer.

evaluation.json   conditions with their confusion matrices by client and by draw, how far examples were moved, flags
utterances.csv    what became of each test utterance, where the clients were asked for it
example.npz       one utterance and its perturbations (Chang et al. 2022, Fig. 2), likewise
times.json        how long it took: the only one that depends on the clock
"""

from pathlib import Path

from fedser.config import identity
from fedser.config.protocol import UNSEEN, Protocols
from fedser.config.settings import Settings
from fedser.data.store import FeatureStore
from fedser.evaluation import detection
from fedser.evaluation.metrics import METRICS
from fedser.evaluation.results import Results, apart
from fedser.runs.files import dumps, read_json, write_whole

FILE = "evaluation.json"


def compiled(results: Results, settings: Settings, protocols: Protocols, sexes: dict, round: int) -> dict:
    """`evaluation.json` after `round` rounds; `sexes` are the clients', by name."""
    conditions = results.protocol.conditions
    attacks = {name: protocols.attacks[name] for name in dict.fromkeys(c.attack for c in conditions if c.attack)}
    inference = settings.defence.inference
    record = results.record() | {
        "name": settings.evaluation.name,
        "identity": identity.digest(identity.measured(settings, protocols.attacks)),
        "round": round,
        "clients": {name: {"sex": sexes[name], "utterances": count} for name, count in results.tested().items()},
        "evaluation": settings.plain["evaluation"],
        "inference": inference.node if inference else None,
        "attacks": {
            name: {"settings": attack.node, "threat": threat(attack.name, attack.build())}
            for name, attack in attacks.items()
        },
    }
    if results.detector:
        record["detector"] = {"settings": settings.detector.node} | results.detector | record.get("detector", {})
    if results.unseen:
        tested = results.unseen.tested().items()
        record["unseen"]["clients"] = {name: {"sex": sexes[name], "utterances": count} for name, count in tested}
    from fedser.evaluation import sanity  # and scipy.special, for a fifth of a second, which no run's start needs

    return record | {"flags": sanity.flags(record)}


def threat(name: str, attack) -> str:
    """An attack's threat model in one line: what it says of itself, or its name."""
    return str(attack) if type(attack).__str__ is not object.__str__ else name


def write(folder: Path, record: dict, results: Results, store: FeatureStore, seconds: float) -> None:
    """Writes the record of an evaluation that took so many seconds. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    times = {"seconds": seconds, "examples": results.seconds()}
    write_whole(folder / "times.json", dumps(times, indent=2).encode())
    if results.example is not None:
        write_whole(folder / "example.npz", results.example)
    if (utterances := results.utterances(store.table, store.base)) is not None:
        write_whole(folder / "utterances.csv", utterances.to_csv(index=False, float_format="%.7g").encode())
    write_whole(folder / FILE, dumps(record).encode())  # last: with it, the record is whole


def read(folder: Path) -> dict | None:
    """The `evaluation.json` of a folder, or None. Raises InputError when it is damaged."""
    return read_json(folder / FILE)


def metrics(record: dict) -> dict[str, float]:
    """What a summary has of it: every metric, `uar_sd/` where there were draws, and `recall/…/<class>`; of clients that
    do not train the metrics alone."""
    found = {}
    for name, condition in record["conditions"].items():
        found |= {f"{metric}/{name}": condition[metric] for metric in METRICS}
        if condition["draws"] > 1:
            found[f"uar_sd/{name}"] = condition["uar_sd"]
        for index, emotion in enumerate(record["classes"]):
            row = condition["matrix"][index]
            found[f"recall/{name}/{emotion}"] = row[index] / sum(row) if sum(row) else None
    found |= {f"{metric}/{name}": part[metric] for name, part in _validated(record).items() for metric in METRICS}
    found |= detection.metrics(_detected(record))
    if (unseen := record.get("unseen")) is not None:
        measured = unseen["conditions"] | _validated(unseen)
        found |= {f"{metric}/{UNSEEN}{name}": part[metric] for name, part in measured.items() for metric in METRICS}
        found |= apart(detection.metrics(_detected(unseen)))
    return found


def _detected(record: dict) -> dict[str, dict]:
    return (record.get("detector") or {}).get("figures") or {}


def _validated(record: dict) -> dict[str, dict[str, float]]:
    """The figures on validation utterances, by `validation/<condition>`; records of before had those without attack."""
    found = record.get("validation") or {}
    return {f"validation/{name}": each for name, each in ({"original": found} if "uar" in found else found).items()}
