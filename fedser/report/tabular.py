"""A table as Markdown and as HTML; `latex` has the form for papers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedser.report.html import Markup, tag

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
LONG = 18  # rows


@dataclass(frozen=True)
class Cell:
    """What stands in one place: a text, smaller notes below it, and what it is sorted by."""

    text: str
    notes: tuple[str, ...] = ()
    value: float | None = None
    shade: float | None = None  # 0 … 1: how dark the HTML cell's ground is
    kind: str = ""  # the HTML cell's class

    def plain(self) -> str:
        return " ".join([self.text, *self.notes])


@dataclass(frozen=True, eq=False)
class Table:
    """`rows` as people read them, `data` the same numbers for programs (fractions, not per cent)."""

    name: str  # of its files
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    data: "pd.DataFrame"
    groups: Sequence[tuple[str, int]] = ()  # headings over so many columns each; none: no such line
    words: int = 1  # the first so many columns are words, the others numbers
    notes: list[str] = field(default_factory=list)
    marks: Mapping[int, str] = field(default_factory=dict)  # the class of some HTML rows
    searched: bool = False  # has a filter on the page even if it is short
    wrapped: Sequence[int] = ()  # columns of sentences, whose lines are broken

    @property
    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def __bool__(self) -> bool:
        return bool(self.rows)


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """A Markdown document with this table."""
    head = _headings(table)
    rule = ["---"] * table.words + ["---:"] * (len(head) - table.words)
    rows = [head, rule, *(map(_markdown_cell, row) for row in table.cells)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    notes = "".join(f"\n- {note}" for note in table.notes)
    return f"**{table.title}.** {table.caption}\n\n" + "\n".join(lines) + "\n" + (f"{notes}\n" if notes else "")


def _markdown_cell(cell: Cell) -> str:
    return f"**{cell.plain()}**" if cell.kind == "significant" else cell.plain()


def _headings(table: Table) -> list[str]:
    """One line of headings, since Markdown has no place for two."""
    groups = [name for name, span in table.groups for _ in range(span)] or [""] * len(table.columns)
    return [f"{group} {column}".strip() for group, column in zip(groups, table.columns, strict=True)]


# --- HTML ------------------------------------------------------------------------------------------------------------


def html(table: Table) -> Markup:
    """The table in a box that scrolls by itself; a click on a heading sorts by it where no headings are grouped.

    A long one has a box to type into that filters its rows, and about 15 of them in sight.
    """
    long = len(table.rows) > LONG
    sortable = not table.groups
    shades = " The darker, the higher." if any(cell.shade is not None for row in table.cells for cell in row) else ""
    caption = tag("figcaption", tag("strong", f"{table.title}. "), table.caption + shades)
    search = tag("input", type="search", class_="filter", placeholder="Filter rows…", aria_label="Filter rows")
    rows = enumerate(table.cells)
    body = tag("tbody", [tag("tr", _html_cells(row, table), class_=table.marks.get(n)) for n, row in rows])
    named = table.words > 1 and 1 not in table.wrapped  # by two columns, which stay in sight on narrow screens
    kinds = ("sortable" if sortable else "grouped") + (" named" if named else "")
    grid = tag("table", tag("thead", _html_heads(table, sortable)), body, class_=kinds)
    notes = tag("ul", [tag("li", note) for note in table.notes], class_="notes") if table.notes else None
    files = tag("p", "Files: ", _links(table.name), class_="files")
    box = tag(
        "div", grid, class_="scroll tall" if long else "scroll", tabindex="0", role="region", aria_label=table.title
    )
    return tag(
        "figure",
        caption,
        search if long or table.searched else None,
        box,
        notes,
        files,
        class_="table",
        id=f"{table.name}-table",
    )


def _links(name: str) -> list:
    paths = [f"tables/{name}.{form}" for form in ("csv", "md", "tex")]
    return [[" · " if number else "", tag("a", path, href=path)] for number, path in enumerate(paths)]


def _html_heads(table: Table, sortable: bool) -> list[Markup]:
    lines = []
    if table.groups:
        lines.append(tag("tr", [tag("th", name, colspan=span, class_="group") for name, span in table.groups]))
    heads = [
        tag("th", tag("button", name, type="button") if sortable else name, scope="col", class_=_kind(n, table.words))
        for n, name in enumerate(table.columns)
    ]
    return [*lines, tag("tr", heads)]


def _kind(column: int, words: int) -> str:
    return "word" if column < words else "number"


def _html_cells(row: Sequence[Cell], table: Table) -> list[Markup]:
    cells = []
    for column, cell in enumerate(row):
        notes = [tag("small", note) for note in cell.notes]
        ground = None if cell.shade is None else f"--shade:{min(max(cell.shade, 0), 1):.2f}"
        wrap = "wrap" if column in table.wrapped else ""
        kinds = " ".join(filter(None, [_kind(column, table.words), wrap, "shaded" if ground else "", cell.kind]))
        value = None if cell.value is None else f"{cell.value:.6g}"
        cells.append(tag("td", cell.text, notes, class_=kinds, style=ground, data_value=value))
    return cells
