"""Groups of a client's utterances, by any column of its corpus: what it tells of them, none of so few that it would be
about somebody."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from fedser.errors import InputError
from fedser.evaluation.metrics import confusion

if TYPE_CHECKING:  # the report imports this, and does without torch
    from torch import Tensor

SEXES = {"f": "female", "m": "male"}  # a corpus's table has letters


def check(table: pd.DataFrame, column: str, key: str = "groups") -> None:
    """Raises InputError naming a column that is not in a corpus's table, or that has the same value everywhere."""
    if column not in table:
        raise InputError(f"{key}: the corpus's table has no column {column} ({', '.join(map(str, table))})")
    known = sorted(set(table[column].dropna().astype(str)))
    if len(known) < 2:
        raise InputError(f"{key}: {column} tells no groups apart, its values are: {', '.join(known) or 'none'}")


def values(column: pd.Series) -> list[str]:
    """The group of each utterance; empty where it is not known."""
    known = column.map(SEXES).fillna(column) if column.name == "sex" else column
    return known.astype(object).where(known.notna(), "").astype(str).tolist()


def large_enough(groups: Sequence[str], min_support: int) -> list[str]:
    """The groups with so many utterances or more, of the group of each.

    All utterances' counts, which a client tells too, less those of these groups are those of the others: where that
    would be some, and fewer than `min_support`, the smallest of these groups goes unsaid as well.
    """
    sizes = Counter(filter(None, groups))
    kept = sorted((name for name, size in sizes.items() if size >= min_support), key=lambda name: (-sizes[name], name))
    while kept and 0 < len(groups) - sum(sizes[name] for name in kept) < min_support:
        kept.pop()
    return sorted(kept)


def counts(
    predictions: "Mapping[str, Tensor]", y: "Tensor", groups: Sequence[str], classes: int, min_support: int
) -> dict[str, dict[str, list]]:
    """Per group that is large enough, and condition, the counts [classes, classes] of the utterances with labels y [n],
    of the predictions [draws, n] added up over draws."""
    told = {}
    for name in large_enough(groups, min_support):
        rows = [row for row, group in enumerate(groups) if group == name]
        told[name] = {
            condition: sum(confusion(y[rows], each[rows], classes) for each in draws).tolist()
            for condition, draws in predictions.items()
        }
    return told
