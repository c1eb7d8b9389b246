"""Run folders → `Run`s. What is damaged is left out and named in `Run.problems`; the rest is still read."""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from omegaconf import OmegaConf  # and not plain YAML, which takes 1e-05 for a string

from fedser.config.protocol import KINDS
from fedser.errors import InputError
from fedser.runs.folder import RunFolder, run_folders

log = logging.getLogger(__name__)
T = TypeVar("T")

TESTED = tuple(f"uar/{kind}" for kind in KINDS)  # and not that of the validation
SEXES = {"f": "female", "m": "male"}  # as some corpora's readers abbreviate them
TEXT = ("utterance", "client", "speaker", "sex", "emotion")  # columns of utterances.csv; the others are numbers
NEEDED = ("utterance", "client", "emotion")  # those with something in each row


class Attack(NamedTuple):
    """An attack as an evaluation had it; empty where the evaluation does not say."""

    settings: Mapping[str, Any] = MappingProxyType({})
    threat: str = ""

    @property
    def eps(self) -> float | None:
        """Its budget in σ; one that looks for the smallest change has none, whatever its `eps` says."""
        eps = self.settings.get("eps")
        return None if eps is None or "the smallest change" in self.threat else float(eps)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation.json and the files beside it."""

    folder: Path
    name: str
    content: dict[str, Any]
    classes: tuple[str, ...]
    conditions: dict[str, dict]
    attacks: dict[str, Attack]
    fraction: float  # the share of the test utterances that was evaluated
    written: float  # seconds since the epoch
    utterances: pd.DataFrame | None  # a row per test utterance
    times: dict[str, float]  # seconds that each set of examples took
    example: dict[str, np.ndarray]  # `x`, and `delta/` and `predicted/` of each attack

    def attack(self, variant: str) -> Attack:
        return self.attacks.get(variant, Attack())


@dataclass(frozen=True, eq=False)
class Run:
    """What a run left in its folder; parts that it never wrote, or that are damaged, are empty."""

    folder: Path
    name: str
    status: str
    error: str  # why it did not finish, in a line
    summary: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]  # one record per round, in order
    evaluations: list[Evaluation]  # the run's own first
    problems: list[str]  # a sentence for each file that could not be used
    privacy: dict[str, Any] = field(default_factory=dict)  # what `fedser-privacy` found

    @property
    def uar(self) -> dict[str, float]:
        """Final UAR per condition, as a fraction; of an unfinished run what its last evaluated round had."""
        for record in [self.summary, *reversed(self.history)]:
            if found := {key.removeprefix("uar/"): v for key, v in record.items() if key.startswith(TESTED)}:
                return found
        return {}

    @property
    def weights(self) -> Path:
        """Of the trained model; there may be none."""
        return self.folder / "model.safetensors"

    @property
    def rounds(self) -> int | None:
        """Rounds done."""
        return self.history[-1]["round"] if self.history else self.summary.get("rounds")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, of the evaluation or else of the configuration; empty if neither has them."""
        if self.evaluations:
            return self.evaluations[0].classes
        return tuple(map(str, self.setting("dataset.classes") or ()))

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Clips per class, `train` and `test`, as far as the run wrote them down."""
        for content in (self.summary, *(evaluation.content for evaluation in self.evaluations)):
            if isinstance(found := content.get("counts"), dict):
                return {part: counts for part, counts in found.items() if isinstance(counts, dict)}
        return {}

    def setting(self, key: str) -> Any:
        """The config's value under a dotted key, None if there is none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def curve(self, condition: str) -> tuple[list[int], list[float]]:
        """Evaluated rounds and the UAR (fraction) in each; rounds without a number are left out."""
        key = f"uar/{condition}"
        kept = {record["round"]: record[key] for record in self.history if record.get(key) is not None}
        return list(kept), list(kept.values())


def load(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in these folders and below them, in the order given, none twice.

    Raises InputError for a path that holds no run. What is damaged is logged, left out, and stands in `Run.problems`.
    """
    runs = [_load_run(folder.resolve()) for folder in run_folders(paths)]
    for problem in (problem for run in runs for problem in run.problems):
        log.warning("%s", problem)
    return runs


def _load_run(folder: Path) -> Run:
    problems: list[str] = []

    def attempt(read: Callable[..., T], file: Path, default: T, *rest) -> T:
        try:
            return read(file, *rest)
        except InputError as error:
            problems.append(str(error))
            return default

    lost = {"status": "damaged"} if (folder / "summary.json").is_file() else {}
    summary = attempt(_json, folder / "summary.json", lost, "it is not known whether this run was finished")
    finished = summary.get("status") == "finished"
    history = attempt(_history, folder / "history.jsonl", [], finished)
    config = attempt(_config, folder / "config.yaml", {})
    records = [place / "evaluation.json" for place in RunFolder(folder).evaluations()]
    evaluations = [attempt(_evaluation, file, None, attempt) for file in records]
    if finished and not evaluations:
        problems.append(f"{folder}: holds no evaluation.json, so there are only its curves and its summary")
    return Run(
        folder=folder,
        name=str(summary.get("name") or folder.name),
        status=str(summary.get("status") or "unknown"),
        error=str(summary.get("error") or "").strip().split("\n")[0],
        summary=summary,
        config=config,
        history=history,
        evaluations=list(filter(None, evaluations)),
        problems=problems,
        privacy=attempt(_json, studied, {}) if (studied := folder / "privacy.json").is_file() else {},
    )


# --- Files -----------------------------------------------------------------------------------------------------------


def _text(path: Path, without: str) -> str:
    """The file's text; `without` says what is lost where there is none."""
    if not path.is_file():
        raise InputError(f"{path}: missing, so {without}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _json_object(path: Path, text: str, first_line: int = 1) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{first_line + error.lineno - 1}: not JSON ({error.msg})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}:{first_line}: not a JSON object")
    for key, number in value.items():
        if key.startswith("uar/") and number is not None and type(number) not in (int, float):
            raise InputError(f"{path}:{first_line}: {key} is {number!r}, not a number")
    return value


def _json(path: Path, without: str = "") -> dict[str, Any]:
    return _json_object(path, _text(path, without))


def _history(path: Path, finished: bool) -> list[dict[str, Any]]:
    lines = _text(path, "there are no curves of this run").splitlines(keepends=True)
    if lines and not finished and not lines[-1].endswith("\n"):
        lines.pop()  # the run was killed, or is just now writing, in the middle of this line
    records = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _json_object(path, line, number)
            if type(record.get("round")) is not int:
                raise InputError(f"{path}:{number}: has no round")
            records[record["round"]] = record  # a resumed run may have repeated a round: the later one counts
    return [records[round_] for round_ in sorted(records)]


def _config(path: Path) -> dict[str, Any]:
    text = _text(path, "this run's settings are not known")
    try:
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # PyYAML's and OmegaConf's errors share no base class
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise InputError(f"{place}: not a config ({problem or type(error).__name__})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a config (no mapping)")
    return config


def _evaluation(path: Path, attempt: Callable) -> Evaluation:
    content = _json(path)
    classes, conditions = content.get("classes"), content.get("conditions")
    if not isinstance(classes, list) or not classes or not isinstance(conditions, dict):
        raise InputError(f"{path}: lacks classes or conditions")

    def sound(found: Mapping[str, Any]) -> dict[str, Any]:
        return {key: v for key, v in found.items() if attempt(_check_condition, path, False, key, v, len(classes))}

    content["conditions"] = sound(conditions)
    unseen = content.get("unseen")
    content["unseen"] = unseen if isinstance(unseen, dict) else {}
    content["unseen"]["conditions"] = sound(content["unseen"].get("conditions") or {})
    for key in ("attacks", "clients", "examples"):
        entries = (content.get(key) or {}).items()
        content[key] = {name: entry for name, entry in entries if isinstance(entry, dict)}
    fraction = (content.get("evaluation") or {}).get("fraction")
    attacks = content["attacks"].items()

    def beside(name: str, read: Callable[..., T], default: T, *rest) -> T:
        file = path.with_name(name)
        return attempt(read, file, default, *rest) if file.is_file() else default

    return Evaluation(
        folder=path.parent,
        name=str(content.get("name") or path.parent.name),
        content=content,
        classes=tuple(map(str, classes)),
        conditions=content["conditions"],
        attacks={name: Attack(entry.get("settings") or {}, str(entry.get("threat") or "")) for name, entry in attacks},
        fraction=1.0 if fraction is None else float(fraction),
        written=path.stat().st_mtime,
        utterances=beside("utterances.csv", _utterances, None, set(map(str, classes))),
        times=beside("times.json", _json, {}).get("examples") or {},
        example=beside("example.npz", _example, {}),
    )


def _check_condition(path: Path, name: str, record: Any, classes: int) -> bool:
    def require(condition: bool, wrong: str) -> None:
        if not condition:
            raise InputError(f"{path}: {name}{wrong}; condition left out")

    require(isinstance(record, dict), " is not an object")
    clients = record.get("by_client") or {}
    columns = record.get("by_group") or {}
    told = [
        (f"{column} {value}, client {client}", matrix)
        for column, values in columns.items()
        for value, clients_ in values.items()
        for client, matrix in clients_.items()
    ]
    for place, matrix in [("matrix", record.get("matrix")), *((f"client {c}", m) for c, m in clients.items()), *told]:
        rows = matrix if isinstance(matrix, list) else []
        lengths = [len(row) if isinstance(row, list) else 0 for row in rows]
        require(lengths == [classes] * classes, f": {place} is not a {classes} × {classes} matrix")
        counts = all(type(count) in (int, float) and count >= 0 for row in rows for count in row)
        require(counts, f": {place} holds something that is not a count")
    require(any(map(any, record["matrix"])), ": no utterance was counted")
    draws = record.get("draws", 1)
    whole = type(draws) is int and draws >= 1 and not any(sum(row) % draws for row in record["matrix"])
    require(whole, f": its counts are not those of {draws!r} draws")
    return True


def _utterances(path: Path, classes: Set[str]) -> pd.DataFrame:
    """Those of clients that train, as the evaluation's conditions have them."""
    frame = _frame(path, classes)
    if "unseen" in frame:
        frame = frame[frame["unseen"] != "1"].drop(columns="unseen").reset_index(drop=True)
    frame["sex"] = frame["sex"].replace(SEXES)
    numbers = [column for column in frame if column not in TEXT]
    try:
        frame[numbers] = frame[numbers].replace("", math.nan).astype(float)
    except ValueError as error:
        raise InputError(f"{path}: holds something that is not a number ({error})") from error
    correct = frame[[column for column in numbers if column.startswith("correct/")]]
    if not (correct.isna() | ((correct >= 0) & (correct <= 1))).all(axis=None):
        raise InputError(f"{path}: a fraction of correct draws is not between 0 and 1")
    return frame


def _frame(path: Path, classes: Set[str]) -> pd.DataFrame:
    """Cells as they are written. Raises InputError for a row that lacks a field, or whose clip cannot be placed."""
    try:
        reader = csv.reader(io.StringIO(_text(path, "")), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({error})") from error
    columns = rows[0][1] if rows else []
    if missing := [column for column in TEXT if column not in columns]:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}")
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise InputError(f"{path}:{line}: has {len(row)} fields, not {len(columns)}")
        cells = dict(zip(columns, row, strict=True))
        if empty := [name for name in NEEDED if not cells[name].strip()]:
            raise InputError(f"{path}:{line}: has no {' and no '.join(empty)}")
        if cells["emotion"] not in classes:
            raise InputError(f"{path}:{line}: the emotion {cells['emotion']!r} is none of the classes")
    return pd.DataFrame([row for _, row in rows[1:]], columns=columns, dtype=object)


def _example(path: Path) -> dict[str, np.ndarray]:
    """An archive's arrays; perturbations of another shape than the log-Mel are left out."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # a cut archive raises one of half a dozen kinds, with advice on pickles
        raise InputError(f"{path}: cannot be read as an archive of arrays ({type(error).__name__})") from error
    shape = arrays["x"].shape if "x" in arrays else None
    if shape is not None and len(shape) != 2:
        raise InputError(f"{path}: its x is no log-Mel [frames, mels]")
    return {key: array for key, array in arrays.items() if not key.startswith("delta/") or array.shape == shape}
