"""Several corpora at once, over the emotions that all of them have: their speakers are the clients of one federation.

fedser dataset=mixed dataset.parts=[emodb,ravdess] dataset.corpora.emodb.root=DIR
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fedser.config.schema import parse
from fedser.config.settings import Dataset
from fedser.data.corpora import SENTENCE, as_table, load, warn_left_out
from fedser.errors import InputError

log = logging.getLogger(__name__)


def read(root: Path | None = None, *, parts: tuple[str, ...], corpora: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The utterances of all `parts` in their common emotions, with the column corpus.

    Speakers, and what is said, have their corpus's name before them ("emodb/03"). `corpora` are the settings of each
    part by its name. Raises InputError as the parts' readers do, and where they have less than two emotions in common.
    """
    if root is not None:
        raise InputError("dataset.root: mixed corpora have a folder each, dataset.corpora.emodb.root=…")
    if len(set(parts)) < max(2, len(parts)):
        raise InputError(f"dataset.parts=[{','.join(parts)}] must be two corpora or more, each named once")
    tables = {name: _part(name, corpora[name]) for name in parts}
    emotions = {name: set(table["emotion"]) for name, table in tables.items()}
    common = set.intersection(*emotions.values())
    if len(common) < 2:
        each = "; ".join(f"{name} has {', '.join(sorted(found))}" for name, found in emotions.items())
        raise InputError(f"dataset.parts: less than two emotions in common: {each}. Choose other corpora.")
    for name, table in tables.items():
        outside = ~table["emotion"].isin(common)
        strange = ", ".join(sorted(set(table["emotion"][outside])))
        warn_left_out(name, int(outside.sum()), f"of {strange}, which other corpora of dataset.parts have not")
        tables[name] = table[~outside]
    return as_table(pd.concat(tables.values()).to_dict("records"))


def _part(name: str, node: dict[str, Any]) -> pd.DataFrame:
    key = f"dataset.corpora.{name}"
    dataset = parse(Dataset, Dataset.opened(node), f"{key}.")
    dataset = dataset.model_copy(update={"component": replace(dataset.component, key=key)})
    dataset.component.check()
    table = load(dataset).table.drop(columns=["label", "client"]).assign(corpus=name)
    for column in table.columns.intersection(["speaker", SENTENCE]):
        table[column] = (name + "/" + table[column]).where(table[column].notna(), None)
    return table
