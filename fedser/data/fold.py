"""A fold as others publish it, lists of the clips to train on, to select by and to test: `partition/split=file`.

EmoBox (Ma et al., Interspeech 2024) has such folds of 32 corpora: `data/emodb/fold_1/emodb_train_fold_1.jsonl`, …, each
line a JSON object whose `wav` is the clip's path below some folder. Nothing else is read of it: labels and speakers
are our readers', and its lengths are not always right.
"""

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd

from fedser.config.settings import Partition
from fedser.data.split import TEST, TRAIN, VALIDATION, Parts, Rows
from fedser.errors import InputError

log = logging.getLogger(__name__)


def file(
    table: pd.DataFrame,
    rows: Rows,
    settings: Partition,
    *,
    seed: int,
    folder: str,
    train: str = "train",
    validation: str = "valid",
    test: str = "test",
    unknown: Literal["error", "skip"] = "error",
) -> dict[str, Parts]:
    """As the files in `folder` say, whatever `partition.test` and `partition.validation` are; nothing is drawn.

    train, validation, test: what stands in the files' names, `*_train_*.jsonl`; there may be none for validation.
    unknown: what to do with clips in them that the table has not. Clips of the table in no file are left out, with a
    warning, and so is a client without any other.

    Raises InputError for a file that is not there or can't be read, an unknown clip, one in two parts, a fold of which
    the corpus is mostly no part, and one that tests no client that trains.
    """
    words = {TRAIN: train, VALIDATION: validation, TEST: test}
    files = {part: found for part, word in words.items() if (found := _file(Path(folder), word, part))}
    places = _joined({part: _clips(found) for part, found in files.items()}, table["path"], files, unknown)
    parts = np.full(len(table), "", dtype=object)
    for part, found in places.items():
        if len(twice := found[parts[found] != ""]):
            raise InputError(f"{files[part]}: {table['path'].iloc[twice[0]]} is in {parts[twice[0]]} too.")
        parts[found] = part
    _check_left_out(np.flatnonzero(parts == ""), table, folder)
    split = {name: Parts(*(own[parts[own] == part] for part in words)) for name, own in rows.items()}
    if not any(len(own.train) and len(own.test) for own in split.values()):
        raise InputError(
            f"partition.split.folder={folder} tests clients whom nobody trains on, such as whole speakers, and no "
            "other: deal the clips of all to each, partition=iid partition.clients=10."
        )
    return {name: own for name, own in split.items() if any(map(len, own))}


def _file(folder: Path, word: str, part: str) -> Path | None:
    """The file of a part, None where there is none for validation. Raises InputError where it is needed, or two."""
    if not folder.is_dir():
        raise InputError(
            f"partition.split.folder={folder}: there is no such folder; give a fold's, e.g. …/emodb/fold_1."
        )
    found = sorted(folder.glob(f"*_{word}_*.jsonl"))
    if len(found) > 1 or (not found and part != VALIDATION):
        raise InputError(
            f"partition.split.folder={folder} has {len(found) or 'no'} files *_{word}_*.jsonl, where one is needed: "
            f"give the folder of one fold, or partition.split.{part}=WORD."
        )
    return found[0] if found else None


def _clips(file: Path) -> list[str]:
    """The `wav` of each line. Raises InputError naming the line that has none."""
    wavs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            wavs += [str(json.loads(line)["wav"])] if line.strip() else []
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: is no JSON object with a key wav.") from error
    return wavs


def _stem(path: str) -> str:
    return PurePosixPath(path).stem.lower()


def _in_folder(path: str) -> str:
    """JE/n23"""
    return f"{PurePosixPath(path).parent.name.lower()}/{_stem(path)}"


def _with_folder(path: str) -> str:
    """JE_n23"""
    return _in_folder(path).replace("/", "_")


# A clip's name in the corpus and in the fold. One way for all, that by which most are found: where numbers begin anew
# in each folder (MELD), a clip that is not there would else be taken for its namesake in another.
WAYS = ((_in_folder, _in_folder), (_stem, _stem), (_with_folder, _stem), (_stem, _with_folder))


def _joined(
    listed: dict[str, list[str]], paths: pd.Series, files: dict[str, Path], unknown: str
) -> dict[str, np.ndarray]:
    """The positions in the table of each part's clips. Raises InputError for a clip that is not there."""
    wavs = [wav for part in listed.values() for wav in part]
    tried = [(_places(paths, ours), theirs) for ours, theirs in WAYS]
    places, theirs = max(tried, key=lambda way: sum(way[1](wav) in way[0] for wav in wavs))
    found = {}
    for part, own in listed.items():
        missing = [wav for wav in own if theirs(wav) not in places]
        if missing and unknown == "error":
            raise InputError(
                f"{files[part]}: names {missing[0]}, which the corpus has not ({len(missing)} of {len(own)} clips like "
                "that): is it this corpus's fold? partition.split.unknown=skip passes them over, as after dataset.drop."
            )
        _warn_once(f"{files[part]}: {len(missing)} clips passed over, which the corpus has not" if missing else "")
        found[part] = np.unique([places[theirs(wav)] for wav in own if theirs(wav) in places]).astype(int)
    return found


def _places(paths: pd.Series, name: Callable[[str], str]) -> dict[str, int]:
    """Positions by a name of the clips, without names that several have."""
    names = [name(path) for path in paths]
    times = Counter(names)
    return {each: place for place, each in enumerate(names) if times[each] == 1}


def _check_left_out(outside: np.ndarray, table: pd.DataFrame, folder: str) -> None:
    if not len(outside):
        return
    what = f"partition.split.folder={folder}: {len(outside)} of {len(table)} clips of the corpus are in no file of it"
    if 2 * len(outside) > len(table):
        raise InputError(f"{what}, {table['path'].iloc[outside[0]]} to begin with: is it this corpus's fold?")
    _warn_once(f"{what}, and left out")


@functools.cache
def _warn_once(text: str) -> None:
    """A split is made several times in a run."""
    if text:
        log.warning("%s", text)
