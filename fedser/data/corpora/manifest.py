"""Any corpus, listed in a CSV file with a header: path, speaker, emotion, and optionally sex (or gender) and others.

    path,speaker,emotion,sex
    wav/first.wav,01,anger,f

Paths are absolute or relative to the CSV. Cells are separated by commas, tabs or semicolons. Everything is text:
speaker 01 stays "01". Without a column speaker nobody is known, as of machines or places: clients are then dealt
(partition=iid, dirichlet or shards) or a column of the list (dataset.client).
"""

import os
from pathlib import Path

import pandas as pd

from fedser.data.corpora import REQUIRED, as_table
from fedser.data.corpora.cells import SEXES, read_cells
from fedser.errors import InputError


def read(root: Path) -> pd.DataFrame:
    """The utterances that the CSV `root` lists. Raises InputError naming the line of what is wrong in it."""
    if not root.is_file():
        raise InputError(f"manifest: there is no file {root}; give the CSV that lists the clips: dataset.root=…")
    table = read_cells(root, ("path", "emotion"))
    for column in REQUIRED:
        if column in table:
            _complain(root, table, table[column].isna(), f"has no {column}")
    if "speaker" not in table:
        table = table.assign(speaker=None)
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


def _absolute(base: Path, path: str) -> Path:
    # Not resolve(): a link's name is the name that people know.
    return Path(os.path.abspath(base / Path(path).expanduser()))


def _complain(root: Path, table: pd.DataFrame, wrong: pd.Series, what: str) -> None:
    """Raises InputError for the first row where `wrong` holds; the header is line 1."""
    if wrong.any():
        row = table[wrong].iloc[0]
        more = f" ({int(wrong.sum())} lines like that)" if wrong.sum() > 1 else ""
        raise InputError(f"{root}, line {row.name + 2}: {what.format(**row)}{more}")
