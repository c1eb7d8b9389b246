"""Lists that corpora bring along: files of cells with a header, separated by commas, tabs or semicolons."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from fedser.errors import InputError

SEPARATORS = ",\t;"  # the one that the header has most of
SEXES = {"f": "f", "female": "f", "m": "m", "male": "m"}


def read_cells(file: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A list's cells as text without blanks around them, only empty ones missing; row i stands in line i + 2.

    Raises InputError naming the file for one that can't be read, lacks a column or has no rows.
    """
    try:
        # Only an empty cell is missing: a speaker may well be called "NA". The signature is what Excel writes.
        cells = {"dtype": str, "keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
        with file.open(encoding="utf-8-sig") as opened:
            header = opened.readline()
        table = pd.read_csv(file, encoding="utf-8-sig", sep=max(SEPARATORS, key=header.count), **cells)
    except (ValueError, OSError) as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise InputError(f"{file}: can't be read as CSV: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{file}: its lines have more cells than its header has columns")
    table.columns = table.columns.str.strip()
    for column in table:
        table[column] = table[column].str.strip().replace("", None)
    if lacking := [column for column in columns if column not in table.columns]:
        raise InputError(f"{file}: no column {', '.join(lacking)} in its header ({', '.join(table.columns)})")
    table = table.dropna(how="all")  # blank lines; the index still counts them
    if table.empty:
        raise InputError(f"{file}: lists no utterances")
    return table


def place_of(root: Path, corpus: str, *names: str) -> Path:
    """The file or folder of a corpus by one of these names below `root`. Raises InputError where none is there."""
    found = next((root / name for name in names if (root / name).exists()), None)
    if found is None:
        raise InputError(
            f"{corpus}: there is no {' or '.join(names)} in {root}; say where the corpus lies: dataset.root=…"
        )
    return found


def clip_of(name: str, found: Mapping[str, Path], file: Path) -> str:
    """The path of a clip that the list `file` names, of those `found` by `clips`. Raises InputError where it is not."""
    stem = str(name).lower().removesuffix(".wav")
    if stem not in found:
        raise InputError(f"{file}: lists {name}, of which there is no audio; get it, or strike the line")
    return str(found[stem])
