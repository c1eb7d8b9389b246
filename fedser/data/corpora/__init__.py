"""Corpora: audio on disk becomes a table of utterances, one row each.

Every module here but `cells` has one function, `read(root, **options)`, that returns a pandas.DataFrame with the
columns

    path     absolute path of the audio file
    speaker  the corpus's own id, a string ("03"); missing where nobody knows
    emotion  full English noun ("happiness"), the same in every corpus
    sex      "f", "m" or missing

where it is known `text`, what is said, `split` (train, validation, test) where the corpus has one of its own, and
whatever else the file names say, sorted by speaker and file name, so that neither the folder layout nor the audio
format changes the order. `dataset._target_` in the configuration names the
function; `load` is the one entry.
"""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedser.config import components
from fedser.config.settings import Dataset
from fedser.errors import InputError

log = logging.getLogger(__name__)

AUDIO = {".wav", ".flac"}
REQUIRED = ("path", "speaker", "emotion")
SENTENCE = "text"  # the column of what is said, in corpora that know it


@dataclass(frozen=True)
class Corpus:
    """A corpus's utterances: `table` has a reader's columns plus `label` (index into `classes`) and `client`."""

    name: str
    table: pd.DataFrame
    classes: list[str]


def load(dataset: Dataset, *columns: str | None) -> Corpus:
    """The corpus that the settings describe.

    Emotions in `dataset.drop` are left out; `dataset.classes` fixes the labels' order (null: all emotions that are
    there, sorted); with a `dataset.target` other than the emotion the classes are that column's values.
    `dataset.client` is the column whose values are the federated clients; it is missing for a clip without a speaker,
    whom a partition may do without. `label` and `client` columns that a reader brings itself are replaced. `columns`
    are others that somebody reads (`partition.split.column`, `evaluation.groups`).

    Raises InputError where the audio is not found, or the table does not fit the configuration.
    """
    table = _read(dataset)
    _check(table, dataset.name)
    _warn_of_others(table.attrs.get("others", []), dataset, (SENTENCE, dataset.client, *columns))
    for emotion in sorted(set(dataset.drop) - set(table["emotion"])):
        log.warning("dataset.drop: %s has no %s (it has %s)", dataset.name, emotion, _names(table["emotion"]))
    table = table[~table["emotion"].isin(dataset.drop)].reset_index(drop=True)
    classes = _classes(table, dataset)
    labels = _labels(table, classes, dataset.target).astype("int64")
    table = table.assign(label=labels, client=_clients(table, dataset.client))
    for missing in sorted(set(classes) - set(table[dataset.target])):
        log.warning("dataset.classes: %s has no utterance of %s", dataset.name, missing)
    return Corpus(dataset.name, table, classes)


def _read(dataset: Dataset) -> pd.DataFrame:
    """The reader's table of `dataset.root`; a corpus that knows its own place, as the synthetic one, needs none."""
    if dataset.root:
        return dataset.component.build(Path(dataset.root).expanduser().absolute())
    root = components.parameters(components.locate(dataset.component.target, "dataset")).get("root")
    if root is None or root.default is not None:
        raise InputError(f"dataset.root is not set: say where {dataset.name} lies, dataset.root=…")
    return dataset.component.build()


def _stem(file: Path) -> str:
    return file.stem


def read_names(
    root: Path, pattern: str, form: str, corpus: str, name: Callable[[Path], str] = _stem
) -> Iterator[tuple[str, re.Match]]:
    """(path, match) of every audio file under `root`, in order of its name.

    `name`, that of the file without its extension, is matched by `pattern`, whatever its case; `form` tells people
    what it should look like. Raises InputError as `clips` does, and for a name that does not match.
    """
    for file in clips(root, corpus, name).values():
        match = re.fullmatch(pattern, name(file), flags=re.IGNORECASE)
        if match is None:
            raise InputError(f"{corpus}: {file} is not named {form}; move it away, or correct dataset.root=…")
        yield str(file), match


def clips(root: Path, corpus: str, name: Callable[[Path], str] = _stem) -> dict[str, Path]:
    """Every audio file under `root` by its name in lower case, in that order.

    Raises InputError for a missing or empty root, and one utterance found twice (as .wav and as .flac, or in two
    folders, which would put the same clip into training and test).
    """
    if not root.is_dir():
        raise InputError(f"{corpus}: there is no folder {root}; say where the corpus lies: dataset.root=…")
    files = sorted(_audio_files(root), key=lambda file: (name(file).lower(), file))
    if not files:
        raise InputError(f"{corpus}: no .wav or .flac under {root}; say where the corpus lies: dataset.root=…")
    for file, following in itertools.pairwise(files):
        if name(file).lower() == name(following).lower():
            raise InputError(f"{corpus}: the same utterance twice, {file} and {following}; keep one of them")
    return {name(file).lower(): file for file in files}


def warn_left_out(corpus: str, count: int, why: str) -> None:
    """Logs how many clips a reader left out, if any."""
    if count:
        log.warning("%s: %d clips left out: %s", corpus, count, why)


def emotion_of(code: str, codes: Mapping[str, str], path: str) -> str:
    """The emotion that a file name's code stands for; InputError naming file and code if there is none."""
    if code not in codes:
        known = ", ".join(f"{key} {name}" for key, name in codes.items())
        raise InputError(f"{path}: unknown emotion code '{code}' (known: {known})")
    return codes[code]


def as_table(rows: list[dict]) -> pd.DataFrame:
    """`rows` as a reader's table: sorted by speaker, within a speaker as given (by file name)."""
    return pd.DataFrame(rows).sort_values("speaker", kind="stable", ignore_index=True)


def _audio_files(root: Path) -> Iterator[Path]:
    # Links are followed: corpora are large, and often linked to from where they are wanted.
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower() in AUDIO and not name.startswith(".") and file.is_file():
                yield file


def _check(table: pd.DataFrame, name: str) -> None:
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"dataset={name}: its reader must return a pandas.DataFrame, not {type(table).__name__}.")
    lacking = [column for column in REQUIRED if column not in table.columns]
    if lacking:
        raise InputError(f"{name}: the table of utterances has no column {', '.join(lacking)} (it has {_names(table)})")
    if table.empty:
        raise InputError(f"{name}: not a single utterance; correct dataset.root=…")


def _warn_of_others(columns: list[str], dataset: Dataset, read: Iterable[str | None]) -> None:
    """A column of the user's own list that nothing reads may be a misspelt one."""
    if unread := [column for column in columns if column not in read]:
        log.warning(
            "%s: nothing reads its columns %s (read are path, speaker, emotion, sex, text, and what dataset.client, "
            "partition.split.column and evaluation.groups name)", dataset.root, ", ".join(unread),
        )  # fmt: skip


def _classes(table: pd.DataFrame, dataset: Dataset) -> list[str]:
    """What there is to tell apart, in the labels' order. Raises InputError where a clip has no such thing."""
    if dataset.target == "emotion":
        return [name for name in dataset.classes or sorted(table["emotion"].unique()) if name not in dataset.drop]
    known = table.get(dataset.target, pd.Series(None, table.index, dtype=object))
    if known.isna().any():
        raise InputError(
            f"dataset.target={dataset.target}: {table['path'][known.isna()].iloc[0]} has no {dataset.target} "
            f"({int(known.isna().sum())} of {len(table)} clips like that); leave them out, or choose another target."
        )
    return sorted(known.unique())


def _labels(table: pd.DataFrame, classes: list[str], target: str) -> pd.Series:
    if len(set(classes)) != len(classes):
        raise InputError(f"dataset.classes names an emotion twice: {', '.join(classes)}")
    stray = table[~table[target].isin(classes)]
    if len(stray):
        path, emotion = stray.iloc[0][["path", "emotion"]]
        raise InputError(
            f"{path}: '{emotion}' is not in dataset.classes ({', '.join(classes)}), nor in dataset.drop; "
            f"{len(stray)} utterances like that: {_names(stray['emotion'])}"
        )
    if len(classes) < 2:
        key = "dataset.classes" if target == "emotion" else f"dataset.target={target}"
        raise InputError(f"{key}: there is nothing to tell apart in [{', '.join(classes)}]")
    return table[target].map({name: index for index, name in enumerate(classes)})


def _clients(table: pd.DataFrame, column: str) -> pd.Series:
    if column not in table.columns:
        raise InputError(f"dataset.client: there is no column '{column}' (there are {_names(table)})")
    known = table[column].notna()
    if not known.all() and column != "speaker":
        without = table["path"][~known]
        raise InputError(f"dataset.client: {without.iloc[0]} has no {column} ({len(without)} like that)")
    return table[column].astype(str).where(known, None)


def _names(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values}))
