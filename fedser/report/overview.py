"""The table of all runs: as a DataFrame, on the page and in the terminal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text  # and not strings, since names may hold [brackets]

from fedser.report.analysis.conditions import CLEAN, in_order, title
from fedser.report.analysis.models import Corpus
from fedser.report.analysis.naming import numbered
from fedser.report.analysis.runs import Run
from fedser.report.cells import MISSING, Cell, Table, percent
from fedser.report.text import prose

# Where a run's config says what stands in which column.
SETTINGS = {
    "dataset": "dataset.name",
    "model": "model.name",
    "defence": "defence.name",
    "attack": "attack.name",
    "eps": "attack.eps",
    "strategy": "strategy.name",
    "seed": "seed",
}


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: name, settings, rounds done and planned, status, `uar/<condition>` as fractions, folder."""
    columns = {"name": numbered(run.name for run in runs)}
    columns |= {column: [run.setting(key) for run in runs] for column, key in SETTINGS.items()}
    columns |= {"rounds": [run.rounds for run in runs], "rounds_planned": [run.setting("rounds") for run in runs]}
    columns |= {"status": [run.status for run in runs]}
    uars = {f"uar/{name}": name for name in in_order(condition for run in runs for condition in run.uar)}
    columns |= {column: [run.uar.get(name, math.nan) for run in runs] for column, name in uars.items()}
    frame = pd.DataFrame(columns | {"folder": [str(run.folder) for run in runs]}, dtype=object)
    kinds = dict.fromkeys(("seed", "rounds", "rounds_planned"), "Int64") | dict.fromkeys(("eps", *uars), "float")
    for column, kind in kinds.items():
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(kind)
    return frame


def for_people(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table as strings: UAR in per cent with one decimal, `5 / 20` rounds where some are not done."""

    def cells(column: str, form: Callable[[Any], str] = str) -> list[str]:
        return [MISSING if pd.isna(value) else form(value) for value in frame[column]]

    done, planned = cells("rounds"), cells("rounds_planned")
    shown = {"name": cells("name")}
    for column in SETTINGS:
        shown["ε" if column == "eps" else column] = cells(column, "{:g}".format if column == "eps" else str)
    shown["rounds"] = [d if p in (d, MISSING) else f"{d} / {p}" for d, p in zip(done, planned, strict=True)]
    shown["status"] = cells("status")
    for column in frame.columns:
        if column.startswith("uar/"):
            shown[title(column.removeprefix("uar/"))] = cells(column, percent)
    return pd.DataFrame(shown)


def runs_table(corpora: Sequence[Corpus]) -> Table:
    """All runs for the page, each with the model that it belongs to; what they have in common stands in the caption."""
    runs = [run for corpus in corpora for run in corpus.runs]
    models = {run: model.label for corpus in corpora for model in corpus.models for run in model.runs}
    data = table(runs)
    shown = for_people(data).rename(columns={"name": "run", "model": "network"})
    shown.insert(0, "model", [models.get(run, MISSING) for run in runs])
    data.insert(1, "trained_as", [models.get(run, "") for run in runs])
    words = ("dataset", "network", "defence", "attack", "strategy")
    common = {column: shown[column][0] for column in words if len(runs) > 1 and shown[column].nunique() == 1}
    first = ["model", "status", *(column for column in words if column not in common)]
    kept = [*first, "seed", "rounds", *(column for column in CLEAN if column in shown), "run"]
    rows = [
        [Cell(row[name], kind=row[name] if name == "status" else "") for name in kept]
        for row in shown.to_dict("records")
    ]
    return Table("runs", *prose("runs", common=common), kept, rows, data, words=len(first))


def errors(runs: Sequence[Run]) -> list[str]:
    """One line for every run that says why it did not finish."""
    names = numbered(run.name for run in runs)
    return [f"{name}: {run.error}" for name, run in zip(names, runs, strict=True) if run.error]


def show(runs: Sequence[Run]) -> None:
    """Prints the table, settings that all runs share above it; where it does not fit the terminal, attack by attack."""
    shown = for_people(table(runs))
    last_setting = shown.columns.get_loc("status")
    common = [column for column in shown.columns[1:last_setting] if shown[column].nunique() == 1]
    varying = [column for column in shown.columns[: last_setting + 1] if column not in common]
    uar = list(shown.columns[last_setting + 1 :])
    console = Console(highlight=False)
    whole = _grid(shown[varying + uar], uar)
    width = console.measure(whole, options=console.options.update(width=10_000)).maximum
    if not console.is_terminal:
        console.width = max(console.width, width)  # a file or a pipe is as wide as need be
    grids = [whole]
    if width > console.width:
        attacks = list(dict.fromkeys(column.partition(" · ")[2] for column in uar))
        groups = [[column for column in uar if column.partition(" · ")[2] == attack] for attack in attacks]
        grids = [_grid(shown[(["name"] if number else varying) + g], g) for number, g in enumerate(groups)]
    console.print(Text("UAR in %" + "".join(f" · {column} {shown[column].iloc[0]}" for column in common)))
    for grid in grids:
        console.print(grid)
    for note in errors(runs):
        console.print(Text(note, style="red"))


def _grid(shown: pd.DataFrame, uar: Sequence[str]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown.columns:
        if column in uar:
            grid.add_column(Text(column.replace(" · ", " ").replace(" ", "\n")), justify="right", no_wrap=True)
        else:
            grid.add_column(Text(column), overflow="fold", min_width=10 if column == "name" else None)
    for row in shown.values.tolist():
        grid.add_row(*(Text(cell, style="red" if cell == "failed" else "") for cell in row))
    return grid
