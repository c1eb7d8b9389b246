"""What an evaluation came to: the clients' answers, and what they add up to.

A client reports, per condition, one confusion matrix for each draw of the randomisation, and how far each utterance was
moved by each attack. Only where models are compared utterance by utterance (`evaluation.utterances`) it also reports
which of them were classified correctly, from which labels can be guessed, and shows one of them (`evaluation.example`):
with both turned off, the server learns no more than counts and lengths.
"""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fedser import __version__
from fedser.config.protocol import UNSEEN, Condition, Protocol
from fedser.evaluation import detection
from fedser.evaluation.groups import SEXES
from fedser.evaluation.measure import Measured
from fedser.evaluation.metrics import METRICS, confusion, uar

FORMAT = 1  # of evaluation.json


@dataclass
class Results:
    """The answers of all clients to one evaluation.

    answers: per client, in plain values, `counts` {condition: [draws, classes, classes]}, `examples` {set: {measure:
        [n]}}, `validation` {condition: [classes, classes]}, counts on the validation utterances, and, where asked for,
        `utterances` {"row": [n], condition: [n] draws that were classified correctly}; with a detector `detector`
        {condition: counts, and scores where asked for} (see `detection.answer`); where asked for `groups` {column:
        {value: {condition: [classes, classes]}}}, counts over all draws (see `groups.counts`).
    example: an .npz of one utterance and its perturbations (see `example`), where asked for.
    missing: the names of the clients who did not answer.
    unseen: the same of the clients that do not train, of whom there is nothing in the rest; None where all do.
    detector: what watched for adversarial examples, in plain values; None for nothing.
    """

    protocol: Protocol
    classes: list[str]
    answers: dict[str, dict]
    example: bytes | None = None
    missing: list[str] = field(default_factory=list)
    unseen: "Results | None" = None
    detector: dict | None = None

    def counts(self, condition: str) -> dict[str, np.ndarray]:
        """Per client the confusion matrices [draws, true, predicted] of a condition."""
        return {name: np.array(answer["counts"][condition]) for name, answer in self.answers.items()}

    def pooled(self) -> dict[str, np.ndarray]:
        """Per condition the confusion matrix over all clients and draws."""
        names = [condition.name for condition in self.protocol.conditions]
        return {name: sum(self.counts(name).values()).sum(axis=0) for name in names}

    def metrics(self) -> dict[str, float]:
        """`uar/<condition>` and `accuracy/<condition>`, means over the draws; those of validation utterances too.

        And `uar/unseen/<condition>`, … where there are clients that do not train.
        """
        own = {f"{metric}/{name}": value for name, part in self._measured().items() for metric, value in part.items()}
        own |= detection.metrics(self.detection())
        return own | (apart(self.unseen.metrics()) if self.unseen else {})

    def _measured(self) -> dict[str, dict[str, float]]:
        """The metrics of each condition that has utterances."""
        measured = {name: _figures(matrix) for name, matrix in self.pooled().items() if matrix.any()}
        return measured | {f"validation/{name}": figures for name, figures in self.validation().items()}

    def validation(self) -> dict[str, dict[str, float]]:
        """UAR and accuracy on the clients' validation utterances by condition; nothing where they have none."""
        parts = [answer["validation"] for answer in self.answers.values()]
        pooled = {name: sum(np.array(part[name]) for part in parts) for name in (parts[0] if parts else ())}
        return {name: _figures(matrix) for name, matrix in pooled.items() if matrix.any()}

    def detection(self) -> dict[str, dict]:
        """The detector's figures by condition without randomisation (`detection.figures`); nothing without one."""
        return detection.figures([answer["detector"] for answer in self.answers.values() if "detector" in answer])

    def tested(self) -> dict[str, int]:
        """Per client how many utterances were tested."""
        return {name: int(counts.sum()) for name, counts in self.counts("original").items()}

    def seconds(self) -> dict[str, float]:
        """Per set of examples how long it took to make, added up over the clients."""
        answers = [*self.answers.values(), *(self.unseen.answers.values() if self.unseen else ())]
        return {name: sum(each["examples"][name]["seconds"][0] for each in answers) for name in self.protocol.sets}

    def record(self) -> dict:
        """The `classes`, `conditions` and `examples` of `evaluation.json`; `unseen`: those of who does not train."""
        head = {"format": FORMAT, "version": __version__, "classes": self.classes}
        apart = {"unseen": self.unseen._record()} if self.unseen else {}
        return head | self._record() | {"missing": self.missing} | apart

    def _record(self) -> dict:
        tested = any(self.tested().values())  # not where all that clients have is for validation
        watched = {"detector": {"figures": found}} if (found := self.detection()) else {}
        return watched | {
            "conditions": {each.name: self._condition(each) for each in self.protocol.conditions if tested},
            "examples": {name: self._examples(name) for name in self.protocol.sets if tested},
            "validation": self.validation(),
        }

    def utterances(self, table: pd.DataFrame, base: str) -> pd.DataFrame | None:
        """One row per test utterance, in the table's order, or None where the clients were not asked for it.

        `table` is the store's: it says which utterance a row is, `base` the clips' common folder. Columns: utterance
        (the clip's path below that folder), client, speaker, sex, emotion,
        `correct/<condition>` (fraction of the draws), `l2/<set>` (σ) and `snr/<set>` (dB), empty where nothing moved;
        where some clients do not train, `unseen`, 1 for theirs and 0 for the others'.
        """
        parts = self._of_clients(table, base)
        if self.unseen:
            parts = [part.assign(unseen=0) for part in parts]
            parts += [part.assign(unseen=1) for part in self.unseen._of_clients(table, base)]
        return pd.concat(parts).sort_index().reset_index(drop=True) if parts else None

    def _of_clients(self, table: pd.DataFrame, base: str) -> list[pd.DataFrame]:
        reported = [name for name, answer in self.answers.items() if (answer["utterances"] or {}).get("row")]
        return [self._utterances(name, table, base) for name in reported]

    def _condition(self, condition: Condition) -> dict:
        by_client = self.counts(condition.name)
        by_draw = sum(by_client.values())
        total = by_draw.sum(axis=0)
        return {
            "attack": condition.attack,
            "draws": len(by_draw),
            **_figures(total),
            "uar_sd": _sd(by_draw),
            "matrix": total,
            "by_draw": by_draw,
            "by_client": {name: counts.sum(axis=0) for name, counts in by_client.items()},
            **({"by_group": self._by_group(condition.name)} if self.protocol.groups else {}),
        }

    def _by_group(self, condition: str) -> dict[str, dict[str, dict[str, list]]]:
        """Per column, value and client that tells of it the counts."""
        found: dict[str, dict] = {column: {} for column in self.protocol.groups}
        for client, answer in self.answers.items():
            for column, told in answer["groups"].items():
                for value, matrices in told.items():
                    found[column].setdefault(value, {})[client] = matrices[condition]
        return found

    def _examples(self, name: str) -> dict:
        """How far a set's examples are from their originals: medians over those that moved, and the largest cell."""
        parts = [answer["examples"][name] for answer in self.answers.values()]
        measures = {key: np.concatenate([np.array(part.get(key, [])) for part in parts]) for key in parts[0]}
        right, fooled = (sum(sum(part.get(key, [])) for part in parts) for key in ("right", "fooled"))
        moved = measures["l2"] > 0
        median = {key: float(np.median(measures[key][moved])) if moved.any() else None for key in ("l2", "rms", "snr")}
        return {
            "linf": float(measures["linf"].max(initial=0.0)),
            "l2": median["l2"],
            "rms": median["rms"],
            "snr_db": median["snr"],
            "waveform_db": float(np.median(measures["loud"][moved])) if "loud" in measures and moved.any() else None,
            "success": fooled / right if right else None,
            "moved": float(moved.mean()) if len(moved) else 0.0,
            "zero_gradient": float(measures["flat"].mean()) if "flat" in measures else None,
        }

    def _utterances(self, client: str, table: pd.DataFrame, base: str) -> pd.DataFrame:
        answer = self.answers[client]
        right = dict(answer["utterances"])
        rows = right.pop("row")
        known = table.iloc[rows]
        columns = {
            "utterance": [Path(os.path.relpath(path, base)).as_posix() for path in known["path"]],
            "client": client,
            "speaker": known["speaker"],
            "sex": known["sex"].map(SEXES) if "sex" in known else None,
            "emotion": [self.classes[label] for label in known["label"]],  # or what else is the target
        }
        for condition, correct in right.items():
            columns[f"correct/{condition}"] = np.array(correct) / len(answer["counts"][condition])
        for name, measures in answer["examples"].items():
            moved = np.array(measures["l2"]) > 0
            for measure in ("l2", "snr"):
                columns[f"{measure}/{name}"] = np.where(moved, measures[measure], np.nan)
        return pd.DataFrame(columns, index=rows)


def _mixed(parts: dict[str, list]) -> dict[str, list]:
    """What was measured of a set's clips in the order of their L2 lengths, and sums of what sums are needed of: by its
    place a clip could be followed from set to set."""
    order = np.argsort(parts["l2"], kind="stable")
    summed = {key: [sum(parts[key])] for key in ("right", "fooled") if key in parts}
    mixed = {key: [values[place] for place in order] for key, values in parts.items() if len(values) == len(order)}
    return parts | mixed | summed


def answer(measured: Measured, y, rows: np.ndarray, classes: int, utterances: bool) -> dict:
    """A client's answer: what it measured on its utterances with labels y [n], in plain values (see `Results`)."""
    counts = {
        condition: [confusion(y, predicted, classes).tolist() for predicted in draws]
        for condition, draws in measured.predictions.items()
    }
    watched = detection.answer(measured.scores, measured.predictions, y, utterances)
    examples = {name: {key: part.tolist() for key, part in parts.items()} for name, parts in measured.examples.items()}
    examples = examples if utterances else {name: _mixed(parts) for name, parts in examples.items()}
    correct = {condition: (draws == y.cpu()).sum(0).tolist() for condition, draws in measured.predictions.items()}
    row_by_row = {"row": rows.tolist()} | correct if utterances else None
    told = {"counts": counts, "examples": examples, "utterances": row_by_row}
    return told | ({"detector": watched} if watched else {})


def joined(parts: list[dict], protocol: Protocol) -> dict:
    """A client's answers to the parts of a protocol, as its answer to the whole protocol."""
    counts, examples, rows, watched = ({}, {}, {}, {})
    told: dict[str, dict] = {column: {} for column in protocol.groups}
    for part in parts:
        counts |= part["counts"]
        examples |= part["examples"]
        rows |= part["utterances"] or {}
        watched |= part.get("detector", {})
        for column, values in part.get("groups", {}).items():
            for value, matrices in values.items():
                told[column].setdefault(value, {}).update(matrices)
    if protocol.gradients:
        seen = {
            name.startswith("adaptive/"): examples[name]["flat"] for name in protocol.sets if "flat" in examples[name]
        }
        examples = {name: part | {"flat": seen[name.startswith("adaptive/")]} for name, part in examples.items()}
    names = [condition.name for condition in protocol.conditions]
    return {
        "counts": {name: counts[name] for name in names},
        "examples": {name: examples[name] for name in protocol.sets},
        "utterances": {name: rows[name] for name in ("row", *names)} if rows else None,
        "validation": {name: matrix for part in parts for name, matrix in part["validation"].items()},
        **({"detector": watched} if watched else {}),
        **({"groups": told} if told else {}),
    }


def example(measured: Measured, client: str, classes: list[str]) -> bytes:
    """One utterance as an .npz: `title`, `x` [frames, mels] in σ, the class `predicted/original`, and per set
    `delta/<set>` and `predicted/<set>`."""
    shown = {
        name: classes[int(part)] if name.startswith("predicted/") else part.numpy()
        for name, part in measured.shown.items()
    }
    np.savez_compressed(file := io.BytesIO(), title=f"A test utterance of client {client}", **shown)
    return file.getvalue()


def joined_examples(parts: list[bytes]) -> bytes | None:
    """One .npz of those of a protocol's parts, None where there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    arrays = {}
    for part in parts:
        with np.load(io.BytesIO(part)) as content:
            arrays |= {name: content[name] for name in content}
    np.savez_compressed(file := io.BytesIO(), **arrays)
    return file.getvalue()


def apart(metrics: dict[str, float]) -> dict[str, float]:
    """`uar/original` → `uar/unseen/original`."""
    return {key.replace("/", f"/{UNSEEN}", 1): value for key, value in metrics.items()}


def _figures(matrix: np.ndarray) -> dict[str, float]:
    return {name: metric(matrix) for name, metric in METRICS.items()}


def _sd(by_draw: np.ndarray) -> float:
    """The sample standard deviation of UAR over draws; 0 for a single one."""
    return float(np.std([uar(matrix) for matrix in by_draw], ddof=1)) if len(by_draw) > 1 else 0.0
