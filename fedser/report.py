"""Finished runs → a table, UAR curves and confusion matrices, on screen and in a folder.

    fedser-report outputs/emodb-pgd                 # one run
    fedser-report multirun/a multirun/b -o tables   # every run found under these folders

>>> from fedser import report
>>> runs = report.load(["outputs"])
>>> report.table(runs)                              # a pandas.DataFrame, one row per run
>>> report.write(runs, "report")                    # table.csv, table.md, uar-curves.png, confusion-<run>.png

A *condition* is what a model was tested on: `original`, `randomised`, `adversarial/<attack>` or
`randomised_adversarial/<attack>`. UARs are fractions in [0, 1] in Python and in CSV, per cent where people read them.
"""

import argparse
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedser.errors import FedserError, InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

log = logging.getLogger(__name__)

KINDS = ("original", "randomised", "adversarial", "randomised_adversarial")  # the order of the paper's Table 3
MISSING = "–"

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

# Okabe & Ito's palette without its yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))  # one per attack
MARKERS = "osD^vP"  # likewise, since a run evaluated once has no line to see
CHANCE_STYLE = {"color": "#999999", "linewidth": 0.9, "linestyle": (0, (2, 2))}
PLOT_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "text.parse_math": False,  # class and run names are text, also with a $ in them
}


# --- Loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a run left in its folder; parts that it never wrote are empty, `confusion` is None."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]  # one record per round, in order
    confusion: dict[str, Any] | None

    @property
    def name(self) -> str:
        return str(self.summary.get("name") or self.folder.name)

    @property
    def status(self) -> str:
        return str(self.summary.get("status") or "unknown")

    @property
    def uar(self) -> dict[str, float]:
        """Final UAR per condition, as a fraction; of an unfinished run what its last evaluated round had."""
        for record in [self.summary, *reversed(self.history)]:
            found = {key.removeprefix("uar/"): _number(v) for key, v in record.items() if key.startswith("uar/")}
            if found:
                return found
        return {}

    @property
    def rounds(self) -> int | None:
        """Rounds done."""
        return self.history[-1]["round"] if self.history else self.summary.get("rounds")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the confusion matrices' rows; empty if the run left none."""
        return tuple(self.confusion["classes"]) if self.confusion else ()

    def setting(self, key: str) -> Any:
        """The config's value under a dotted key, None if there is none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def curve(self, condition: str) -> tuple[list[int], list[float]]:
        """Evaluated rounds and the UAR (fraction) in each; rounds without a number are left out."""
        pairs = [(record["round"], _number(record.get(f"uar/{condition}"))) for record in self.history]
        kept = [(round_, uar) for round_, uar in pairs if not math.isnan(uar)]
        return [round_ for round_, _ in kept], [uar for _, uar in kept]


def load(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in these folders and below them, in the order given, none twice.

    Raises `InputError` for a path that holds no run and for a file that cannot be read, naming file and line.
    """
    folders = dict.fromkeys(folder.resolve() for path in paths for folder in _run_folders(Path(path)))
    runs = [_load_run(folder) for folder in folders]
    _warn_if_incomparable(runs)
    return runs


def _run_folders(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    if not path.is_dir():
        raise InputError(f"{path}: is a file; give the run's folder")
    if (path / "summary.json").is_file():
        return [path]
    found = [summary.parent for summary in path.rglob("summary.json") if summary.is_file()]
    if not found:
        raise InputError(f"{path}: holds no run (no summary.json in it or below it)")
    # Hydra numbers the jobs of a sweep 0, 1, …, 10: in that order, not 0, 1, 10, 2.
    return sorted(found, key=lambda folder: re.sub(r"\d+", lambda digits: digits[0].zfill(12), str(folder)))


def _load_run(folder: Path) -> Run:
    summary = _json_object(folder / "summary.json", _text(folder / "summary.json"))
    _check_numbers(folder / "summary.json", summary)
    history = _history(folder / "history.jsonl", finished=summary.get("status") == "finished")
    return Run(folder, summary, _config(folder / "config.yaml"), history, _confusion(folder / "confusion.json"))


def _text(path: Path) -> str:
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
    return value


def _check_numbers(path: Path, record: dict[str, Any], line: int = 1) -> None:
    for key, value in record.items():
        if key.startswith("uar/") and value is not None and type(value) not in (int, float):
            raise InputError(f"{path}:{line}: {key} is {value!r}, not a number")


def _history(path: Path, finished: bool) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = _text(path).splitlines(keepends=True)
    if lines and not finished and not lines[-1].endswith("\n"):
        lines.pop()  # the run was killed, or is just now writing, in the middle of this line
    records = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _json_object(path, line, number)
            if type(record.get("round")) is not int:
                raise InputError(f"{path}:{number}: has no round")
            _check_numbers(path, record, number)
            records[record["round"]] = record  # a resumed run may have repeated a round: the later one counts
    return [records[round_] for round_ in sorted(records)]


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        log.warning("%s: missing, so the table does not know this run's settings", path)
        return {}
    from omegaconf import OmegaConf  # and not plain YAML, which takes 1e-05 for a string

    text = _text(path)
    try:
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # PyYAML's and OmegaConf's errors share no base class
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise InputError(f"{place}: not a config ({problem or type(error).__name__})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a config (no mapping)")
    return config


def _confusion(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    confusion = _json_object(path, _text(path))
    classes, conditions = confusion.get("classes"), confusion.get("conditions")
    if not isinstance(classes, list) or not isinstance(conditions, dict):
        raise InputError(f"{path}: lacks classes or conditions")
    for condition, matrix in conditions.items():
        rows = matrix if isinstance(matrix, list) else []
        widths = [len(row) if isinstance(row, list) else 0 for row in rows]
        if not classes or widths != [len(classes)] * len(classes):
            raise InputError(f"{path}: {condition} is not a {len(classes)} × {len(classes)} matrix")
        if not all(type(count) in (int, float) and count >= 0 for row in rows for count in row):
            raise InputError(f"{path}: {condition} holds something that is not a count")
    return confusion


def _warn_if_incomparable(runs: Sequence[Run]) -> None:
    corpora = sorted({str(run.setting("dataset.name")) for run in runs if run.setting("dataset.name")})
    classes = {run.classes for run in runs if run.classes}
    if len(corpora) > 1:
        log.warning("the runs are of different corpora (%s): their UARs do not compare", ", ".join(corpora))
    elif len(classes) > 1:
        sets = "; ".join(sorted(", ".join(names) for names in classes))
        log.warning("the runs have different classes (%s): their UARs do not compare", sets)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# --- Names and order -------------------------------------------------------------------------------------------------


def labels(runs: Sequence[Run]) -> list[str]:
    """One distinct name per run: its own, numbered where several share it."""
    return _distinct([run.name for run in runs], " #")


def _distinct(names: Sequence[str], separator: str) -> list[str]:
    taken: dict[str, None] = {}
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}{separator}{number}"
        taken[candidate] = None
    return list(taken)


def in_order(conditions: Iterable[str]) -> list[str]:
    """Distinct conditions as people read them: without attack first, then attack by attack as they first appear."""
    distinct = list(dict.fromkeys(conditions))
    attacks = list(dict.fromkeys(attack for _, attack in map(_split, distinct) if attack))

    def rank(condition: str) -> tuple[int, int]:
        kind, attack = _split(condition)
        return (attacks.index(attack) if attack else -1, KINDS.index(kind) if kind in KINDS else len(KINDS))

    return sorted(distinct, key=rank)


def _split(condition: str) -> tuple[str, str]:
    kind, _, attack = condition.partition("/")
    return kind, attack


def title(condition: str) -> str:
    """`randomised_adversarial/pgd` → `randomised adversarial · pgd`."""
    kind, attack = _split(condition)
    return f"{kind.replace('_', ' ')} · {attack}" if attack else kind.replace("_", " ")


# --- Table -----------------------------------------------------------------------------------------------------------


def table(runs: Sequence[Run]) -> "pd.DataFrame":
    """One row per run: name, settings, rounds done and planned, status, `uar/<condition>` as fractions, folder."""
    import pandas as pd

    conditions = in_order(condition for run in runs for condition in run.uar)
    rows = []
    for label, run in zip(labels(runs), runs, strict=True):
        settings = {column: run.setting(key) for column, key in SETTINGS.items()}
        rounds = {"rounds": run.rounds, "rounds_planned": run.setting("rounds"), "status": run.status}
        uar = {f"uar/{condition}": run.uar.get(condition, math.nan) for condition in conditions}
        rows.append({"name": label, **settings, **rounds, **uar, "folder": str(run.folder)})
    columns = ["name", *SETTINGS, "rounds", "rounds_planned", "status", *(f"uar/{c}" for c in conditions), "folder"]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    for column in ("seed", "rounds", "rounds_planned"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("Int64")
    for column in ("eps", *(f"uar/{condition}" for condition in conditions)):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    return frame


def for_people(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The same table as strings: UAR in per cent with one decimal, `5 / 20` rounds where some are not done."""
    import pandas as pd

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
            shown[title(column.removeprefix("uar/"))] = cells(column, lambda uar: f"{100 * uar:.1f}")
    return pd.DataFrame(shown)


def markdown(runs: Sequence[Run]) -> str:
    """The table for people as a Markdown document; below it, why runs failed."""
    shown = for_people(table(runs))
    text_columns = shown.columns.get_loc("status") + 1
    rule = ["---"] * text_columns + ["---:"] * (len(shown.columns) - text_columns)
    rows = [list(shown.columns), rule, *shown.values.tolist()]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    parts = ["UAR in %.", "\n".join(lines)]
    if notes := errors(runs):
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def errors(runs: Sequence[Run]) -> list[str]:
    """One line for every run that says why it did not finish."""
    reasons = [str(run.summary.get("error") or "").strip().split("\n")[0] for run in runs]
    return [f"{label}: {reason}" for label, reason in zip(labels(runs), reasons, strict=True) if reason]


def show(runs: Sequence[Run]) -> None:
    """Prints the table; settings that all runs share stand above it, so that the rest fits a terminal.

    Where it still does not fit, it is printed attack by attack.
    """
    from rich.console import Console
    from rich.text import Text

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


def _grid(shown: "pd.DataFrame", uar: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text  # and not strings, since names may hold [brackets]

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown.columns:
        if column in uar:
            grid.add_column(Text(column.replace(" · ", " ").replace(" ", "\n")), justify="right", no_wrap=True)
        else:
            grid.add_column(Text(column), overflow="fold", min_width=10 if column == "name" else None)
    for row in shown.values.tolist():
        grid.add_row(*(Text(cell, style="red" if cell == "failed" else "") for cell in row))
    return grid


# --- Figures ---------------------------------------------------------------------------------------------------------


def curves(runs: Sequence[Run]) -> "Figure | None":
    """UAR (%) against round: a panel per kind of condition, a colour per run, a dash pattern per attack.

    None if no run has an evaluated round.
    """
    keys = (key for run in runs for record in run.history for key in record)
    conditions = in_order(key.removeprefix("uar/") for key in keys if key.startswith("uar/"))
    drawn = [condition for condition in conditions if any(run.curve(condition)[0] for run in runs)]
    if not drawn:
        return None
    kinds = sorted(dict.fromkeys(_split(c)[0] for c in drawn), key=lambda k: KINDS.index(k) if k in KINDS else 99)
    attacks = list(dict.fromkeys(attack for _, attack in map(_split, drawn) if attack))
    legend, columns = _curve_legend(runs, attacks)
    height = 0.5 + 0.2 * math.ceil(len(legend) / columns)
    figure, panels = _panels(len(kinds), width=3.9, height=2.5, extra=height)
    for axes, kind in zip(panels, kinds, strict=True):
        axes.set_title(title(f"{kind}/{attacks[0]}" if len(attacks) == 1 and "adversarial" in kind else kind))
        for number, run in enumerate(runs):
            for condition in (c for c in drawn if _split(c)[0] == kind):
                rounds, uar = run.curve(condition)
                attack = _split(condition)[1]
                style = _line_style(number, attacks.index(attack) if attack else 0)
                axes.plot(rounds, [100 * value for value in uar], markevery=max(1, len(rounds) // 25), **style)
    _frame_curves(panels, _chance(runs))
    figure.legend(handles=legend, loc="outside lower center", ncols=columns, fontsize=8.5)
    return figure


def _line_style(run: int, attack: int) -> dict[str, Any]:
    colour = COLOURS[run % len(COLOURS)]
    return {
        "color": colour,
        "marker": MARKERS[attack % len(MARKERS)],
        "markerfacecolor": "white" if run // len(COLOURS) % 2 else colour,  # hollow: the colours' second turn
        "linestyle": LINES[attack % len(LINES)],
        "linewidth": 1.5,
        "markersize": 3.8,
        "alpha": 0.9,
    }


def _curve_legend(runs: Sequence[Run], attacks: Sequence[str]) -> tuple[list[Any], int]:
    """Handles, and how many of them fit beside each other under a figure of two panels."""
    from matplotlib.lines import Line2D

    names = enumerate(brief(labels(runs), 42))
    handles = [Line2D([], [], label=name, **_line_style(number, 0)) for number, name in names]
    if len(attacks) > 1:
        grey = {"color": "#777777", "markerfacecolor": "#777777"}
        handles += [Line2D([], [], label=name, **_line_style(0, i) | grey) for i, name in enumerate(attacks)]
    if chance := _chance(runs):
        handles.append(Line2D([], [], label=f"chance ({chance:.1f} %)", **CHANCE_STYLE))
    longest = max(len(str(handle.get_label())) for handle in handles)
    return handles, max(1, min(len(handles), 100 // (longest + 7)))


def _chance(runs: Sequence[Run]) -> float | None:
    """The UAR (%) of guessing, if the runs agree on the number of classes."""
    counts = {len(run.classes) for run in runs if run.classes}
    return 100 / counts.pop() if len(counts) == 1 else None


def _frame_curves(panels: Sequence["Axes"], chance: float | None) -> None:
    """The same limits in all panels, taken from the lines and the chance level."""
    from matplotlib.ticker import MaxNLocator

    lines = [line for axes in panels for line in axes.get_lines()]
    rounds = [x for line in lines for x in line.get_xdata()]
    uar = [y for line in lines for y in line.get_ydata()] + ([chance] if chance else [])
    pad_x, pad_y = max(0.5, 0.02 * (max(rounds) - min(rounds))), max(5.0, 0.06 * (max(uar) - min(uar)))
    _label_outer(panels, "round", "UAR (%)")
    for axes in panels:
        axes.set_xlim(min(rounds) - pad_x, max(rounds) + pad_x)
        axes.set_ylim(max(-1.0, min(uar) - pad_y), min(101.0, max(uar) + pad_y))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.grid(True)
        if chance:
            axes.axhline(chance, zorder=1, **CHANCE_STYLE)


def confusion(run: Run) -> "Figure | None":
    """A panel per condition: rows are true classes; recall (%) as colour and number, the count below it.

    None if the run has no confusion matrices.
    """
    import numpy as np

    if not run.confusion or not run.confusion["conditions"]:
        return None
    conditions = in_order(run.confusion["conditions"])
    side = max(2.4, 0.43 * len(run.classes))
    figure, panels = _panels(len(conditions), width=side + 0.2, height=side + 0.5, extra=1.2)
    for axes, condition in zip(panels, conditions, strict=True):
        _draw_matrix(axes, np.asarray(run.confusion["conditions"][condition], float), run.classes)
        uar = run.uar.get(condition, math.nan)
        axes.set_title(title(condition) + ("" if math.isnan(uar) else f"\nUAR {100 * uar:.1f} %"))
    _label_outer(panels, "predicted", "true")
    rounds = run.confusion.get("rounds")
    figure.suptitle(brief([run.name], 50)[0] + (f", round {rounds}" if rounds else ""), fontsize=10.5)
    figure.supxlabel("recall in %, number of utterances below it", fontsize=8, color="#666666")
    return figure


def _draw_matrix(axes: "Axes", counts: "np.ndarray", classes: Sequence[str]) -> None:
    import numpy as np

    totals = counts.sum(axis=1, keepdims=True)
    recall = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    axes.imshow(recall, cmap="Blues", vmin=0, vmax=100)
    names = [shorten(str(name), 14) for name in classes]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, fontsize=8, **slanted)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.ndindex(counts.shape):
        if not totals[row, 0] or not counts[row, column]:
            continue  # a zero in every empty cell would hide the others
        colour = "white" if recall[row, column] > 55 else "#222222"
        at = {"ha": "center", "color": colour}
        axes.text(column, row + 0.1, f"{recall[row, column]:.0f}", va="bottom", fontsize=7.5, **at)
        axes.text(column, row + 0.14, f"{counts[row, column]:.0f}", va="top", fontsize=5.5, **at)


def _panels(count: int, width: float, height: float, extra: float) -> tuple["Figure", list["Axes"]]:
    """A figure of `count` panels in two columns, each so many inches wide and high, and `extra` inches of height.

    Two columns, since a README shows an image about as wide as two readable panels.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, always Agg for a PNG

    columns = min(2, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.6, columns * width + 0.5), rows * height + extra), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _label_outer(panels: Sequence["Axes"], x: str, y: str) -> None:
    """Names and tick labels at the left and at the bottom of the figure, also above an empty place."""
    columns = min(2, len(panels))
    for place, axes in enumerate(panels):
        left, bottom = place % columns == 0, place + columns >= len(panels)
        axes.set(xlabel=x if bottom else "", ylabel=y if left else "")
        axes.tick_params(labelleft=left, labelbottom=bottom)


def shorten(text: str, length: int) -> str:
    """At most `length` characters; what is too much is taken from the middle, where sweeps' names differ least."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def brief(names: Sequence[str], length: int) -> list[str]:
    """The names in at most `length` characters.

    A run's hash goes if the names differ without it; then those of a sweep lose what all share at either end, but for
    a little.
    """
    plain = [re.sub(r"-[0-9a-f]{8,}$", "", name) for name in names]
    names = plain if len(set(plain)) == len(plain) else names
    if len(names) > 1 and max(map(len, names)) > length:
        start = _shared_start(names)
        shared = _shared_start([name[start:][::-1] for name in names])
        head, tail = max(0, start - length // 3), max(0, shared - length // 6)
        names = [("…" if head else "") + name[head : len(name) - tail] + ("…" if tail else "") for name in names]
    return [shorten(name, length) for name in names]


def _shared_start(names: Sequence[str]) -> int:
    """How many characters all names begin with alike."""
    columns = zip(*names, strict=False)
    return sum(1 for _ in takewhile(lambda characters: len(set(characters)) == 1, columns))


# --- Writing ---------------------------------------------------------------------------------------------------------


def write(runs: Sequence[Run], folder: str | Path) -> list[Path]:
    """Writes table.csv (fractions), table.md (%), uar-curves.png and a confusion-<run>.png per run; returns the paths.

    Raises `InputError` if the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table(runs).to_csv(folder / "table.csv", index=False)
        (folder / "table.md").write_text(markdown(runs), encoding="utf-8")
        return [folder / "table.csv", folder / "table.md", *_write_figures(runs, folder)]
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written to ({reason}); choose another --output") from error


def _write_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    import matplotlib

    files = _distinct([re.sub(r"[^\w.=,+-]+", "-", shorten(run.name, 100)).strip("-.") or "run" for run in runs], "-")
    written = []
    with matplotlib.rc_context(PLOT_STYLE):
        if figure := curves(runs):
            written.append(_save(figure, folder / "uar-curves.png"))
        else:
            log.warning("no run has an evaluated round: no curves to draw")
        for run, file in zip(runs, files, strict=True):
            if figure := confusion(run):
                written.append(_save(figure, folder / f"confusion-{file}.png"))
            else:
                log.warning("%s: has no confusion matrices to draw", run.name)
    return written


def _save(figure: "Figure", path: Path) -> Path:
    figure.savefig(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command `fedser-report`; returns the exit code."""
    what = "A table, UAR curves and confusion matrices of runs."
    parser = argparse.ArgumentParser(prog="fedser-report", description=what)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a folder with runs below it")
    parser.add_argument("-o", "--output", default="report", metavar="FOLDER", help="default: ./%(default)s")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        runs = load(options.runs)
        written = write(runs, options.output)
        show(runs)
    except FedserError as error:
        print(f"fedser-report: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    more = f" and {len(written) - 4} more" if len(written) > 4 else ""
    print(f"written to {options.output}: " + ", ".join(path.name for path in written[:4]) + more)
    return 0
