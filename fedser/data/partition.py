"""Which client has which utterances: a table of utterances → per client its training, validation and test rows.

Every assignment is a function (table, seed, **options) -> {client name: row positions}; the split into training and
test rows happens afterwards, inside each client, so that any assignment keeps the paper's 80/20 per client.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedser.config.schema import Count, Positive
from fedser.config.settings import Partition
from fedser.errors import InputError
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


def partition(table: pd.DataFrame, settings: Partition, seed: int) -> list[ClientSplit]:
    """The clients' splits, in the order of their names.

    `table` has the columns `client` and `label`. Of each client's n utterances round(test·n) go to its test set, not
    stratified by emotion (Chang et al. 2022, §6.1 and code: 7,491 / 1,874 on DEMoS).
    Raises InputError naming a client that is left without training or test utterances.
    """
    rows = settings.component.build(table, seed=seed)
    _check(rows, len(table), settings.name)
    return [split_rows(number, name, rows[name], settings, seed) for number, name in enumerate(sorted(rows))]


def _check(rows: dict[str, np.ndarray], utterances: int, name: str) -> None:
    """Raises InputError unless a partition gives each client positions in the table, and none to two of them."""
    if not isinstance(rows, dict):
        raise InputError(f"partition={name} must return {{client's name: row positions}}, not {type(rows).__name__}.")
    if not rows:
        raise InputError("The corpus has no utterances to deal to clients.")
    dealt = np.concatenate([np.asarray(part, dtype=np.int64) for part in rows.values()])
    if len(np.unique(dealt)) < len(dealt) or not np.isin(dealt, np.arange(utterances)).all():
        raise InputError(f"partition={name} deals an utterance twice, or one that the corpus has not.")


def by_client(table: pd.DataFrame, *, seed: int) -> dict[str, np.ndarray]:
    """Each value of the `client` column is one client; by default its speaker."""
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
    random = np.random.default_rng(seed)
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        of_class = random.permutation(np.flatnonzero(labels[rows] == label))
        place[of_class] = (np.arange(len(of_class)) + random.random()) / len(of_class)
    return np.sort(rows[np.argsort(place)[: max(1, round(fraction * len(rows)))]])


def warn_of_gaps(table: pd.DataFrame, splits: list[ClientSplit], classes: list[str]) -> None:
    """Logs which clients never see a class, and which classes the pooled test set lacks (UAR leaves those out)."""
    labels = table["label"].to_numpy()
    has = {split.name: labels[np.concatenate([split.train, split.validation, split.test])] for split in splits}
    for index, emotion in enumerate(classes):
        without = [name for name, own in has.items() if index not in own]
        if without:
            shown = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            log.warning("%d of %d clients have no utterance of %s: %s", len(without), len(splits), emotion, shown)
        if not any(index in labels[split.test] for split in splits):
            log.warning("No test utterance of %s: its recall is undefined and UAR leaves it out.", emotion)


def split_rows(number: int, name: str, rows: np.ndarray, settings: Partition, seed: int) -> ClientSplit:
    """One client's rows dealt to training, validation and test. Raises InputError naming a client with too few."""
    tested = round(settings.test * len(rows))
    held_out = round(settings.validation * (len(rows) - tested))
    shuffled = _random(seed, "split", name).permutation(np.sort(rows))
    test, validation, train = np.split(shuffled, [tested, tested + held_out])
    if len(test) < 1 or len(train) < 2:
        raise InputError(
            f"Client '{name}' has {len(rows)} utterances, too few for a test share of {settings.test}: it would "
            f"keep {len(train)} to train on and {len(test)} to test on. Remove it or choose another partition=…"
        )
    return ClientSplit(number, name, np.sort(train), np.sort(validation), np.sort(test))


def _client_count(table: pd.DataFrame, clients: int | None) -> int:
    count = table["client"].nunique() if clients is None else clients
    if not (isinstance(count, int) and 1 <= count <= len(table)):
        raise InputError(f"partition.clients={count} must lie between 1 and the {len(table)} utterances.")
    return count


def _named(dealt) -> dict[str, np.ndarray]:
    width = len(str(len(dealt) - 1))
    return {f"client-{index:0{width}d}": np.sort(rows) for index, rows in enumerate(dealt)}


def _random(seed: int, *keys: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", *keys))
