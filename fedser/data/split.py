"""Which of a client's utterances are trained on, select a model and test it: `partition/split=NAME`.

A split is a function (table, {client's name: row positions}, the partition's settings, seed, **options) -> {client's
name: `Parts`}. It may change who the clients are: one without training rows is *unseen*. She never trains, and what she
is tested on is reported apart from the others.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedser.config.schema import NonNegative
from fedser.config.settings import Partition
from fedser.errors import InputError
from fedser.randomness import derive

DRAWS = 20  # few, so that on a corpus of ten speakers other seeds hold out others
TRAIN, VALIDATION, TEST = "train", "validation", "test"
Rows = dict[str, np.ndarray]  # positions in the table, by the client's name


class Parts(NamedTuple):
    """A client's rows of the table, positions in any order; unseen without training rows."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def random(table: pd.DataFrame, rows: Rows, settings: Partition, *, seed: int) -> dict[str, Parts]:
    """At random inside of each client: `partition.test` of its utterances, then `partition.validation` of the others.

    Not stratified by emotion (Chang et al. 2022, §6.1 and code: 7,491 / 1,874 on DEMoS). Raises InputError naming a
    client with too few.
    """
    return {name: within(name, rows[name], settings, seed) for name in sorted(rows)}


def speaker(
    table: pd.DataFrame,
    rows: Rows,
    settings: Partition,
    *,
    seed: int,
    test: NonNegative,
    validation: NonNegative,
    column: str | None = None,
) -> dict[str, Parts]:
    """Speakers are held out, each a client of her own that never trains; the clients' other clips as in `random`.

    test, validation: how many speakers to test on and to select by; below 1 a share of all, at least one.
    column: of the table, with each speaker's part (train, validation or dev, test); the default draws them (`drawn`).

    Raises InputError where nobody is left to train on, and for a column that is not there or not the same in all clips
    of a speaker.
    """
    if (nobody := table["speaker"].isna()).any():
        raise InputError(f"partition/split=speaker: {nobody.sum()} of {len(table)} clips have no speaker to hold out.")
    dealt = np.sort(np.concatenate(list(rows.values())))
    known = table.iloc[dealt]
    held = _listed_speakers(known, column) if column else _draw_speakers(known, test, validation, seed)
    outside = table["speaker"].isin(held).to_numpy()
    left = {name: rows[name][~outside[rows[name]]] for name in sorted(rows)}
    found = {name: within(name, own, settings, seed) for name, own in left.items() if len(own)}
    for who, part in held.items():
        own, none = dealt[known["speaker"].to_numpy() == who], dealt[:0]
        name = str(who)
        while name in found:  # a client that is no speaker may have a speaker's name
            name = f"unseen {name}"
        found[name] = Parts(none, own, none) if part == VALIDATION else Parts(none, none, own)
    return found


def sentence(
    table: pd.DataFrame, rows: Rows, settings: Partition, *, seed: int, column: str = "text"
) -> dict[str, Parts]:
    """Whole sentences are tested on, the same at all clients: nobody trains on a text that anybody is tested on.

    `partition.test` of the sentences, at least one, are drawn (`drawn`). Of a client's other clips
    `partition.validation` are for validation, as in `random`. `column` of the table says what is said.

    Raises InputError where there is no such column, or but one sentence, and naming a client with less than two clips
    to train on.
    """
    texts = _filled(table, column).to_numpy()
    sentences = np.unique(texts[np.concatenate(list(rows.values()))])
    if len(sentences) < 2:
        raise InputError(f"partition/split=sentence: in column {column} there is but one sentence: '{sentences[0]}'.")
    clients = pd.Series({row: name for name, own in rows.items() for row in own})
    counted = [_counts(texts, table["label"].to_numpy(), sentences)]
    counted += [_counts(texts[clients.index], clients.to_numpy(), sentences)]
    size = min(max(1, round(settings.test * len(sentences))), len(sentences) - 1)
    tested, _ = drawn([size], np.zeros(len(sentences)), counted, _random(seed, "sentences"))
    outside = np.isin(texts, sentences[tested])
    return {name: _rest(name, rows[name], outside, settings, seed) for name in sorted(rows)}


def column(
    table: pd.DataFrame,
    rows: Rows,
    settings: Partition,
    *,
    seed: int,
    column: str = "split",
    train: str | Sequence[str] = TRAIN,
    validation: str | Sequence[str] = (VALIDATION, "dev"),
    test: str | Sequence[str] = TEST,
) -> dict[str, Parts]:
    """As a column of the table has it, whatever `partition.test` and `partition.validation` say.

    train, validation, test: its values for each of them. Raises InputError for a column that is not there, for other
    values, and naming a client without a clip to train on.
    """
    named = {TRAIN: train, VALIDATION: validation, TEST: test}
    parts = _parts_of(table, column, {value: part for part, values in named.items() for value in _several(values)})
    found = {name: Parts(*(rows[name][parts[rows[name]] == part] for part in named)) for name in sorted(rows)}
    if without := [name for name, own in found.items() if not len(own.train)]:
        raise InputError(
            f"partition.split.column={column} leaves {_first(without)} without clips to train on. Speakers that nobody "
            f"trains on are clients of another kind: partition/split=speaker partition.split.column={column}."
        )
    return found


def within(name: str, rows: np.ndarray, settings: Partition, seed: int) -> Parts:
    """One client's rows at random to training, validation and test. Raises InputError naming a client with too few."""
    tested = round(settings.test * len(rows))
    held_out = round(settings.validation * (len(rows) - tested))
    shuffled = _random(seed, "split", name).permutation(np.sort(rows))
    test, validation, train = np.split(shuffled, [tested, tested + held_out])
    if len(test) < 1 or len(train) < 2:
        raise InputError(
            f"Client '{name}' has {len(rows)} utterances, too few for a test share of {settings.test}: it would "
            f"keep {len(train)} to train on and {len(test)} to test on. Remove it or choose another partition=…"
        )
    return Parts(train, validation, test)


def drawn(
    sizes: Sequence[int], strata: np.ndarray, counted: Sequence[np.ndarray], random: np.random.Generator
) -> list[np.ndarray]:
    """Parts of so many of n things each, and the rest of them, whose make-up is about that of the whole.

    Of some random orders, in which each of the `strata` [n] is spread evenly, the one whose parts deviate least, added
    up over the parts and over what is `counted` of each thing, arrays [n, K] (of a speaker: her clips of each emotion).
    """
    orders = [spread(strata, random) for _ in range(DRAWS)]
    parts = [np.split(order, np.cumsum(sizes)) for order in orders]
    return min(parts, key=lambda each: round(sum(_deviation(part, counts) for part in each for counts in counted), 9))


def spread(strata: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random order of things [n] in which each of their strata lies evenly: any stretch has its share of each."""
    place = np.empty(len(strata))
    for stratum in np.unique(strata):
        of_it = random.permutation(np.flatnonzero(strata == stratum))
        place[of_it] = (np.arange(len(of_it)) + random.random()) / len(of_it)
    return np.argsort(place)


def _deviation(part: np.ndarray, counts: np.ndarray) -> float:
    """The distance of a part's shares from those of the whole: 0 where they are the same, at most 1."""
    own, whole = counts[part].sum(axis=0), counts.sum(axis=0)
    return 0.5 * float(np.abs(own / max(own.sum(), 1) - whole / whole.sum()).sum())


def _counts(things: np.ndarray, kinds: np.ndarray, names: np.ndarray) -> np.ndarray:
    """How many rows of each thing in `names` there are of each kind, [n, K]."""
    return pd.crosstab(things, kinds).reindex(names).to_numpy()


def _draw_speakers(table: pd.DataFrame, test: float, validation: float, seed: int) -> dict[str, str]:
    """The part of each speaker to hold out, spread over the sexes and balanced by the shares of classes and sexes."""
    names = np.unique(table["speaker"])
    sizes = [_held_out(TEST, test, len(names)), _held_out(VALIDATION, validation, len(names))]
    if sum(sizes) >= len(names):
        raise InputError(
            f"partition.split.test={test:g} and partition.split.validation={validation:g} hold out {sum(sizes)} of "
            f"{len(names)} speakers and leave none to train on."
        )
    sex = table["sex"] if "sex" in table else pd.Series(None, table.index, dtype=object)
    sexes = sex.fillna("").groupby(table["speaker"].to_numpy()).first().reindex(names).to_numpy()
    counted = [_counts(table["speaker"].to_numpy(), table["label"].to_numpy(), names), _counts(names, sexes, names)]
    parts = drawn(sizes, sexes, counted, _random(seed, "speakers"))
    return {names[place]: part for part, own in zip((TEST, VALIDATION), parts, strict=False) for place in own}


def _held_out(part: str, share: float, speakers: int) -> int:
    if share >= 1 and share != int(share):
        raise InputError(f"partition.split.{part}={share:g} must be a whole number of speakers, or a share below 1.")
    return int(share) if share >= 1 or not share else max(1, round(share * speakers))


def _listed_speakers(table: pd.DataFrame, column: str) -> dict[str, str]:
    """The part of each speaker that the column holds out."""
    parts = pd.Series(_parts_of(table, column, {TRAIN: TRAIN, VALIDATION: VALIDATION, "dev": VALIDATION, TEST: TEST}))
    of_each = parts.groupby(table["speaker"].to_numpy()).unique()
    if torn := [name for name, found in of_each.items() if len(found) > 1]:
        raise InputError(
            f"partition.split.column={column}: {_first(torn, 'speaker')} has {' and '.join(of_each[torn[0]])} clips, "
            "and must be wholly in one part. partition/split=column takes clips as they are."
        )
    held = {name: found[0] for name, found in of_each.items() if found[0] != TRAIN}
    if len(held) == len(of_each):
        raise InputError(f"partition.split.column={column} leaves no speaker to train on.")
    return held


def _parts_of(table: pd.DataFrame, column: str, known: dict[str, str]) -> np.ndarray:
    """The part of each row by a column with these values [n]."""
    values = _filled(table, column)
    wrong = values[~values.isin(known)]
    if len(wrong):
        raise InputError(
            f"partition.split.column={column}: {len(wrong)} of {len(table)} clips have other values than "
            f"{', '.join(known)}: {_first(dict.fromkeys(wrong), 'value')}."
        )
    return values.map(known).to_numpy()


def _filled(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of the table. Raises InputError where it is not there, or empty somewhere."""
    if column not in table:
        raise InputError(
            f"partition.split.column={column}: the corpus has no such column. It has {', '.join(map(str, table))}."
        )
    if empty := int(table[column].isna().sum()):
        raise InputError(f"partition.split.column={column}: {empty} of {len(table)} clips have nothing in it.")
    return table[column]


def _rest(name: str, rows: np.ndarray, outside: np.ndarray, settings: Partition, seed: int) -> Parts:
    """A client's rows: those `outside` to the test, the others at random to training and validation."""
    tested, others = rows[outside[rows]], np.sort(rows[~outside[rows]])
    shuffled = _random(seed, "split", name).permutation(others)
    validation, train = np.split(shuffled, [round(settings.validation * len(others))])
    if len(train) < 2:
        raise InputError(f"Client '{name}' keeps {len(train)} of {len(rows)} clips to train on, too few.")
    return Parts(train, validation, tested)


def _several(values: str | Iterable[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


def _first(names: Iterable, kind: str = "client") -> str:
    """`client 'a' (and 3 more)`"""
    first, *others = names
    return f"{kind} '{first}'" + (f" (and {len(others)} more)" if others else "")


def _random(seed: int, *keys: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", *keys))
