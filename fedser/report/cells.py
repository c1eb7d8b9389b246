"""A table, the cells that it is made of, and numbers as people read them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

MISSING = "–"
LONG = 18  # rows


@dataclass(frozen=True)
class Cell:
    """What stands in one place: a text, smaller notes below it, and what it is sorted by."""

    text: str
    notes: tuple[str, ...] = ()
    value: float | None = None
    shade: float | None = None  # 0 … 1: how dark the cell's ground is on the page
    kind: str = ""  # its class on the page

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
    data: pd.DataFrame
    groups: Sequence[tuple[str, int]] = ()  # headings over so many columns each; none: no such line
    words: int = 1  # the first so many columns are words, the others numbers
    notes: Sequence[str] = ()
    marks: Mapping[int, str] = field(default_factory=dict)  # the class of some rows on the page
    wrapped: Sequence[int] = ()  # columns of sentences, whose lines are broken

    @property
    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    @property
    def over(self) -> list[str]:
        """The group of each column."""
        return [name for name, span in self.groups for _ in range(span)] or [""] * len(self.columns)

    @property
    def long(self) -> bool:
        return len(self.rows) > LONG

    def __bool__(self) -> bool:
        return bool(self.rows)


def percent(value: float | None, digits: int = 1) -> str:
    """`0.8125` → `81.2`."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    """Percentage points with their sign."""
    if math.isnan(value):
        return MISSING
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}".replace("-", "−")


def between(low: float, high: float, form=percent) -> str:
    """`[76.0, 85.1]`, or nothing where the data cannot say."""
    return "" if math.isnan(low) else f"[{form(low)}, {form(high)}]"


def number(value: Any, form: str = ".3g") -> str:
    """Any number in few digits; null, NaN and infinity as signs."""
    if value is None or math.isnan(value):
        return MISSING
    return ("−∞" if value < 0 else "∞") if math.isinf(value) else f"{value:{form}}"


def p_text(p: float, at_most: bool = False) -> str:
    """A p-value; `at_most` where so many resamples can show no smaller one."""
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{'≤ ' * at_most}{p:.3f}"
