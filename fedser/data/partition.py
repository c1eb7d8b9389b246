"""Who holds which utterances: a table of utterances → per client its training, validation and test rows.

Every assignment is a function (table, seed, **options) -> {client name: row positions}; the split into training and
test rows happens afterwards, inside each client, so that any assignment keeps the paper's 80/20 per client.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedser.config.compose import build
from fedser.errors import InputError
from fedser.randomness import derive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """One client's rows of the table (positions, ascending); `number` is its place among all clients."""

    number: int
    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def partition(table: pd.DataFrame, settings: dict, seed: int) -> list[Share]:
    """The clients' shares, in the order of their names, under `settings["partition"]`-shaped settings.

    `table` has the columns `client` and `label`. Of each client's n utterances round(test·n) go to its test set, not
    stratified by emotion (Chang et al. 2022, §6.1 and code: 7,491 / 1,874 on DEMoS).
    Raises InputError naming a client that is left without training or test utterances.
    """
    hands = build(settings["assign"])(table, seed=seed)
    shares = [_split(number, name, hands[name], settings, seed) for number, name in enumerate(sorted(hands))]
    if not shares:
        raise InputError("The corpus has no utterances to deal to clients.")
    return shares


def by_client(table: pd.DataFrame, *, seed: int) -> dict[str, np.ndarray]:
    """Each value of the `client` column is one client; by default its speaker."""
    return {str(name): np.sort(rows) for name, rows in table.reset_index(drop=True).groupby("client").indices.items()}


def iid(table: pd.DataFrame, *, seed: int, clients: int | None = None) -> dict[str, np.ndarray]:
    """Deals the shuffled utterances evenly."""
    count = _client_count(table, clients)
    return _named(np.array_split(_random(seed, "iid").permutation(len(table)), count))


def dirichlet(table: pd.DataFrame, *, seed: int, alpha: float, clients: int | None = None) -> dict[str, np.ndarray]:
    """Deals each class in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv:1909.06335).

    Clients whom the draw leaves fewer than `len(table) // (4 * clients)` utterances (at least 5) take the difference
    from the largest client, one by one: an empty client could neither train nor be evaluated.
    """
    if not alpha > 0:
        raise InputError(f"partition.alpha={alpha} must be greater than 0.")
    count = _client_count(table, clients)
    random = _random(seed, "dirichlet")
    hands: list[list[int]] = [[] for _ in range(count)]
    for label in np.unique(table["label"]):
        rows = random.permutation(np.flatnonzero(table["label"].to_numpy() == label))
        cuts = np.cumsum(random.dirichlet(np.full(count, alpha)))[:-1] * len(rows)
        for hand, part in zip(hands, np.split(rows, cuts.astype(int)), strict=True):
            hand.extend(part.tolist())
    least = min(max(5, len(table) // (4 * count)), len(table) // count)
    for hand in hands:
        while len(hand) < least:
            hand.append(max(hands, key=len).pop())
    return _named([np.array(hand, dtype=int) for hand in hands])


def shards(table: pd.DataFrame, *, seed: int, k: int, clients: int | None = None) -> dict[str, np.ndarray]:
    """Sorts by class, cuts into k shards per client, deals k to each (McMahan et al. 2017, §3)."""
    if not (isinstance(k, int) and k >= 1):
        raise InputError(f"partition.k={k} must be a whole number of at least 1.")
    count = _client_count(table, clients)
    random = _random(seed, "shards")
    shuffled = random.permutation(len(table))
    by_class = shuffled[np.argsort(table["label"].to_numpy()[shuffled], kind="stable")]
    pieces = np.array_split(by_class, count * k)
    hands = random.permutation(count * k).reshape(count, k)
    return _named([np.concatenate([pieces[piece] for piece in hand]) for hand in hands])


def stratified(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """`fraction` of these rows, of each class rounded and at least one; the same for the same seed, ascending."""
    random = _random(seed, "subset")
    chosen = []
    for label in np.unique(labels[rows]):
        of_class = random.permutation(np.sort(rows[labels[rows] == label]))
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return np.sort(np.concatenate(chosen))


def warn_of_gaps(table: pd.DataFrame, shares: list[Share], classes: list[str]) -> None:
    """Logs which clients never see a class, and which classes the pooled test set lacks (UAR leaves those out)."""
    labels = table["label"].to_numpy()
    for index, emotion in enumerate(classes):
        without = [share.name for share in shares if not (labels[_all(share)] == index).any()]
        if without:
            shown = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            log.warning("%d of %d clients have no utterance of %s: %s", len(without), len(shares), emotion, shown)
        if not any((labels[share.test] == index).any() for share in shares):
            log.warning("No test utterance of %s: its recall is undefined and UAR leaves it out.", emotion)


def _split(number: int, name: str, rows: np.ndarray, settings: dict, seed: int) -> Share:
    tested = round(settings["test"] * len(rows))
    held_out = round(settings["validation"] * (len(rows) - tested))
    shuffled = _random(seed, "split", name).permutation(np.sort(rows))
    test, validation, train = np.split(shuffled, [tested, tested + held_out])
    if len(test) < 1 or len(train) < 2:
        raise InputError(
            f"Client '{name}' has {len(rows)} utterances, too few for a test share of {settings['test']}: it would "
            f"keep {len(train)} to train on and {len(test)} to test on. Remove it or choose another partition=…"
        )
    return Share(number, name, np.sort(train), np.sort(validation), np.sort(test))


def _client_count(table: pd.DataFrame, clients: int | None) -> int:
    count = table["client"].nunique() if clients is None else clients
    if not (isinstance(count, int) and 1 <= count <= len(table)):
        raise InputError(f"partition.clients={count} must lie between 1 and the {len(table)} utterances.")
    return count


def _named(hands) -> dict[str, np.ndarray]:
    width = len(str(len(hands) - 1))
    return {f"client-{index:0{width}d}": np.sort(rows) for index, rows in enumerate(hands)}


def _random(seed: int, *keys: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "partition", *keys))


def _all(share: Share) -> np.ndarray:
    return np.concatenate([share.train, share.validation, share.test])
