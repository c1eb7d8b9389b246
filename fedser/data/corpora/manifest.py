"""Any corpus, listed in a CSV file with a header: path, speaker, emotion, and optionally sex (or gender) and others.

    path,speaker,emotion,sex
    wav/first.wav,01,anger,f

Paths are absolute or relative to the CSV. Cells are separated by commas, tabs or semicolons. Everything is text:
speaker 01 stays "01".
"""

import os
from pathlib import Path

import pandas as pd

from fedser.data.corpora import REQUIRED, as_table
from fedser.errors import InputError

SEPARATORS = ",\t;"  # the one that the header has most of
SEXES = {"f": "f", "female": "f", "m": "m", "male": "m"}


def read(root: Path) -> pd.DataFrame:
    """The utterances that the CSV `root` lists. Raises InputError naming the line of what is wrong in it."""
    table = _parse(root)
    lacking = [column for column in REQUIRED if column not in table.columns]
    if lacking:
        raise InputError(f"{root}: no column {', '.join(lacking)} in its header ({', '.join(table.columns)})")
    if table.empty:
        raise InputError(f"{root}: lists no utterances")
    for column in REQUIRED:
        _complain(root, table, table[column].isna(), f"has no {column}")

    table["path"] = [str(_absolute(root.parent, path)) for path in table["path"]]
    _complain(root, table, ~table["path"].map(lambda path: Path(path).is_file()).astype(bool), "names no file: {path}")
    _complain(root, table, table["path"].duplicated(), "repeats {path}")
    if "sex" not in table:
        table = table.rename(columns={"gender": "sex"}) if "gender" in table else table.assign(sex=None)
    known = table["sex"].str.lower().map(SEXES)
    _complain(root, table, table["sex"].notna() & known.isna(), "has sex '{sex}': write f or m, or leave it empty")
    table["sex"] = known
    known = as_table(table.sort_values("path").to_dict("records"))
    known.attrs["others"] = [column for column in table if column not in (*REQUIRED, "sex")]
    return known


def _parse(root: Path) -> pd.DataFrame:
    if not root.is_file():
        raise InputError(f"manifest: there is no file {root}; give the CSV that lists the clips: dataset.root=…")
    try:
        # Only an empty cell is missing: a speaker may well be called "NA". The signature is what Excel writes.
        cells = {"dtype": str, "keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
        with root.open(encoding="utf-8-sig") as file:
            header = file.readline()
        table = pd.read_csv(root, encoding="utf-8-sig", sep=max(SEPARATORS, key=header.count), **cells)
    except (ValueError, OSError) as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise InputError(f"{root}: can't be read as CSV: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{root}: its lines have more cells than its header has columns")
    table.columns = table.columns.str.strip()
    for column in table:
        table[column] = table[column].str.strip().replace("", None)
    return table.dropna(how="all")  # blank lines; the index still counts them


def _absolute(base: Path, path: str) -> Path:
    # Not resolve(): a link's name is the name that people know.
    return Path(os.path.abspath(base / Path(path).expanduser()))


def _complain(root: Path, table: pd.DataFrame, wrong: pd.Series, what: str) -> None:
    """Raises InputError for the first row where `wrong` holds; the header is line 1."""
    if wrong.any():
        row = table[wrong].iloc[0]
        more = f" ({int(wrong.sum())} lines like that)" if wrong.sum() > 1 else ""
        raise InputError(f"{root}, line {row.name + 2}: {what.format(**row)}{more}")
