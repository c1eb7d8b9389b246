"""Which client has which utterances: a table of utterances → per client its training, validation and test rows.

Every assignment is a function (table, seed, **options) -> {client name: row positions}; the split into training and
test rows happens afterwards (`fedser.data.split`), so that any assignment goes with any split.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedser.config.components import Component
from fedser.config.schema import Count, Positive
from fedser.config.settings import Partition
from fedser.data.corpora import SENTENCE
from fedser.data.split import Rows, spread
from fedser.errors import FedserError, InputError
from fedser.randomness import derive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientSplit:
    """One client's rows of the table (positions, ascending); `number` is its place among all clients."""

    number: int
    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def seen(self) -> bool:
        """Whether it trains; one that does not is only evaluated."""
        return len(self.train) > 0


def partition(table: pd.DataFrame, settings: Partition, seed: int) -> list[ClientSplit]:
    """The clients' splits, in the order of their names.

    `table` has the columns `client` and `label`, and what else the assignment and the split need. Raises InputError
    naming a client that is left with too few utterances.
    """
    rows = _returned(settings.component, table, seed=seed)
    return split(table, _checked(rows, len(table), settings.name), settings, seed)


def split(table: pd.DataFrame, rows: Rows, settings: Partition, seed: int) -> list[ClientSplit]:
    """The splits of clients with these rows, in the order of their names. Raises InputError as `partition` does."""
    found = _returned(settings.split, table, rows, settings, seed=seed)
    parts = _checked_parts(found, rows, settings.split.name)
    return [ClientSplit(number, name, *map(np.sort, parts[name])) for number, name in enumerate(sorted(parts))]


def _returned(component: Component, *arguments: Any, seed: int) -> Any:
    """What a partition or split returns. Raises InputError naming it for whatever goes wrong in one from outside."""
    try:
        return component.build(*arguments, seed=seed)
    except FedserError:
        raise
    except Exception as error:
        raise InputError(f"{component.key}={component.name}: {type(error).__name__}: {error}") from error


def _checked(rows: Any, utterances: int, name: str) -> Rows:
    """What a partition returned, as arrays. Raises InputError unless each client has rows, and no row two clients."""
    told = f"partition={name} must return {{client's name: row positions}}"
    if not isinstance(rows, dict):
        raise InputError(f"{told}, not {type(rows).__name__}.")
    if not rows:
        raise InputError("The corpus has no utterances to deal to clients.")
    found = {client: _positions(own, told) for client, own in rows.items()}
    if not _apart(found.values(), np.arange(utterances)):
        raise InputError(f"partition={name} deals an utterance twice, or one that the corpus has not.")
    return found


def _checked_parts(found: Any, rows: Rows, name: str) -> dict[str, list[np.ndarray]]:
    """What a split returned, as arrays. Raises InputError unless each row has one use, and who trains is tested."""
    told = f"partition/split={name} must return {{client's name: training, validation, test rows}}"
    if not isinstance(found, dict):
        raise InputError(f"{told}, not {type(found).__name__}.")
    if wrong := [client for client, own in found.items() if not (isinstance(own, tuple | list) and len(own) == 3)]:
        raise InputError(f"{told}; client '{wrong[0]}' has not three parts.")
    parts = {client: [_positions(part, told) for part in own] for client, own in found.items()}
    if not _apart([part for own in parts.values() for part in own], np.concatenate(list(rows.values()))):
        raise InputError(f"partition/split={name} uses an utterance twice, or one that no client has.")
    for client, (train, _, _) in parts.items():
        if len(train) == 1:
            raise InputError(f"partition/split={name} leaves client '{client}' one clip to train on, too few.")
    seen = [own for own in parts.values() if len(own[0])]
    if not any(len(test) for _, _, test in seen):
        raise InputError(
            f"partition/split={name} leaves no {'test clip of a client that trains' if seen else 'client to train'}."
        )
    return parts


def _positions(rows: Any, told: str) -> np.ndarray:
    """Positions in the table. Raises InputError, `told` and why, for anything else."""
    try:
        found = np.asarray(rows)
    except ValueError:  # lists of several lengths
        found = np.array(None)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise InputError(f"{told}, positions in the table as whole numbers, not {found.dtype}.")
    return found.astype(np.int64)


def _apart(parts: Iterable[np.ndarray], known: np.ndarray) -> bool:
    """Whether no position is in two parts, and all are among those that are known."""
    used = np.concatenate([*parts, known[:0]])
    return len(np.unique(used)) == len(used) and bool(np.isin(used, known).all())


def by_client(table: pd.DataFrame, *, seed: int) -> dict[str, np.ndarray]:
    """Each value of the `client` column is one client; by default its speaker. Raises InputError for a clip without."""
    if (nobody := table["client"].isna()).any():
        raise InputError(
            f"partition=speaker: {table['path'][nobody].iloc[0]} has no speaker ({nobody.sum()} of {len(table)} clips "
            "like that): set partition=iid partition.clients=10 (or dirichlet, shards), or dataset.client=COLUMN."
        )
    return {str(name): np.sort(rows) for name, rows in table.reset_index(drop=True).groupby("client").indices.items()}


def iid(table: pd.DataFrame, *, seed: int, clients: Count | None = None) -> dict[str, np.ndarray]:
    """Deals the shuffled utterances evenly."""
    count = _client_count(table, clients)
    return _named(np.array_split(_random(seed, "iid").permutation(len(table)), count))


def dirichlet(
    table: pd.DataFrame, *, seed: int, alpha: Positive, clients: Count | None = None
) -> dict[str, np.ndarray]:
    """Deals each class in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv:1909.06335).

    Clients whom the draw leaves fewer than `len(table) // (4 * clients)` utterances (at least 5) take the difference
    from the largest client, one by one: an empty client could neither train nor be evaluated.
    """
    count = _client_count(table, clients)
    random = _random(seed, "dirichlet")
    dealt: list[list[int]] = [[] for _ in range(count)]
    for label in np.unique(table["label"]):
        rows = random.permutation(np.flatnonzero(table["label"].to_numpy() == label))
        cuts = np.cumsum(random.dirichlet(np.full(count, alpha)))[:-1] * len(rows)
        for own, part in zip(dealt, np.split(rows, cuts.astype(int)), strict=True):
            own.extend(part.tolist())
    least = min(max(5, len(table) // (4 * count)), len(table) // count)
    for own in dealt:
        while len(own) < least:
            own.append(max(dealt, key=len).pop())
    return _named([np.array(own, dtype=int) for own in dealt])


def shards(table: pd.DataFrame, *, seed: int, k: Count, clients: Count | None = None) -> dict[str, np.ndarray]:
    """Sorts by class, cuts into k shards per client, deals k to each (McMahan et al. 2017, §3)."""
    count = _client_count(table, clients)
    random = _random(seed, "shards")
    shuffled = random.permutation(len(table))
    by_class = shuffled[np.argsort(table["label"].to_numpy()[shuffled], kind="stable")]
    pieces = np.array_split(by_class, count * k)
    dealt = random.permutation(count * k).reshape(count, k)
    return _named([np.concatenate([pieces[piece] for piece in own]) for own in dealt])


def stratified(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """`fraction` of one client's rows, rounded and at least one, each class in proportion; ascending.

    Systematic sampling: the rows of a class lie evenly on a line from a random start, and the first are taken. A client
    knows nobody's labels but its own, so the fraction is taken within each.
    """
    if fraction == 1 or not len(rows):
        return rows
    order = spread(labels[rows], np.random.default_rng(seed))
    return np.sort(rows[order[: max(1, round(fraction * len(rows)))]])


def warn_of_gaps(table: pd.DataFrame, splits: list[ClientSplit], classes: list[str]) -> None:
    """Logs which clients never see a class, and which classes the pooled test set lacks (UAR leaves those out)."""
    labels = table["label"].to_numpy()
    has = {split.name: labels[np.concatenate([split.train, split.validation, split.test])] for split in splits}
    for index, emotion in enumerate(classes):
        without = [name for name, own in has.items() if index not in own]
        if without:
            shown = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            log.warning("%d of %d clients have no utterance of %s: %s", len(without), len(splits), emotion, shown)
        if not any(index in labels[split.test] for split in splits if split.seen):
            log.warning("No test utterance of %s: its recall is undefined and UAR leaves it out.", emotion)
    if untested := [split.name for split in splits if split.seen and not len(split.test)]:
        log.warning("%d of %d clients have no test utterance: %s", len(untested), len(splits), ", ".join(untested[:5]))


def repeated(table: pd.DataFrame, splits: list[ClientSplit]) -> dict[str, int] | None:
    """How many test clips of clients that train there are, and of how many of them the `sentence`, by anybody or by the
    same `speaker`, is trained on too; None for a corpus that does not say what is said (column `text`)."""
    if SENTENCE not in table:
        return None
    seen = [split for split in splits if split.seen]
    train, test = (np.concatenate([getattr(split, part) for split in seen]) for part in ("train", "test"))
    both = pd.MultiIndex.from_frame(table[["speaker", SENTENCE]])
    of_anybody = table[SENTENCE].iloc[test].isin(table[SENTENCE].iloc[train].dropna()).sum()
    spoken = both[test].isin(both[train]) & table[["speaker", SENTENCE]].notna().all(axis=1).to_numpy()[test]
    return {"test": len(test), "speaker": int(spoken.sum()), "sentence": int(of_anybody)}


def _client_count(table: pd.DataFrame, clients: int | None) -> int:
    count = table["client"].nunique() if clients is None else clients
    if not count:
        raise InputError("partition.clients must be set: the corpus names no speakers, to be as many as there are.")
    if not (isinstance(count, int) and 1 <= count <= len(table)):
        raise InputError(f"partition.clients={count} must lie between 1 and the {len(table)} utterances.")
    return count


def _named(dealt) -> dict[str, np.ndarray]:
    width = len(str(len(dealt) - 1))
    return {f"client-{index:0{width}d}": np.sort(rows) for index, rows in enumerate(dealt)}


def _random(seed: int, *keys: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", *keys))
