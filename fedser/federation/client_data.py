"""A client's data: its own utterances and nobody else's, behind one interface with two makers.

`Simulated` are the parts of one store that all simulated clients map; `Own` reads one client's own corpus.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fedser.config.components import Component
from fedser.config.protocol import Protocols
from fedser.config.settings import Features, Settings
from fedser.corruption.field import Field, Recorded
from fedser.data import corpora
from fedser.data.arrays import Ragged
from fedser.data.partition import ClientSplit, partition, split, stratified
from fedser.data.store import FeatureStore, extract
from fedser.errors import InputError
from fedser.evaluation import groups
from fedser.features.front_end import on_waveforms
from fedser.features.normalisation import Sums
from fedser.randomness import derive

STATES, WAVEFORMS = "states", "waveforms"  # forms of a clip beside its features


class ClientData:
    """One client's utterances: of the clips in `store` those that `split` says, which are all that it ever looks at.

    name: the client's, by default its speaker; number: its place among all clients.
    forms: the same clips in other forms, where there are any: "states" of a frozen network (`fedser.data.states`),
        "waveforms" that are augmented.
    labels: of all clips as the client has them [clips], where it has others than the store.
    """

    def __init__(
        self,
        store: FeatureStore,
        split: ClientSplit,
        forms: Mapping[str, FeatureStore] | None = None,
        labels: np.ndarray | None = None,
    ):
        self.name, self.number, self.split, self._forms = split.name, split.number, split, forms or {}
        self._labels = store.labels if labels is None else labels
        self._table, self._frames, self._lengths = store.table, store.frames, store.lengths

    def form(self, name: str) -> "ClientData":
        """The same clips in another form, or as they are where there is none."""
        return ClientData(self._forms[name], self.split, labels=self._labels) if name in self._forms else self

    def rows(self, part: str, fraction: float = 1.0, seed: int = 0) -> np.ndarray:
        """Positions of the training, validation or test utterances, or of a stratified fraction of them."""
        return stratified(self._labels, getattr(self.split, part), fraction, derive(seed, "subset", self.name))

    def frames(self, rows: np.ndarray) -> np.ndarray:
        """Features before normalisation, float32 [n, frames, …]: log-Mels, or clips padded to their longest."""
        return self._frames[rows]

    def sums(self, rows: np.ndarray) -> Sums:
        """Over all frames of these utterances."""
        return self._frames.sums(rows) if isinstance(self._frames, Ragged) else Sums.of(self.frames(rows))

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Classes, int64 [n]."""
        return self._labels[rows]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """How many frames of each are real, int64 [n]."""
        return self._lengths[rows]

    def groups(self, column: str, rows: np.ndarray) -> list[str]:
        """The value of a column of the corpus for each, empty where it is missing. Raises InputError without it."""
        if column not in self._table:
            raise InputError(f"evaluation.groups: its corpus has no column {column}.")
        return groups.values(self._table[column].iloc[rows])


class Simulated:
    """The clients of a simulation, which share one store."""

    def __init__(self, store: Path, settings: Settings, forms: Mapping[str, str] = MappingProxyType({})):
        self.store = FeatureStore.open(store)
        self.forms = {name: FeatureStore.open(folder) for name, folder in forms.items()}
        splits = partition(self.store.table, settings.partition, settings.seed)
        self._splits, self._labels = Field.of(settings, len(self.store.classes)).dealt(splits, self.store.labels)

    def client(self, number: int) -> ClientData:
        """The data of client `number`."""
        return ClientData(self.store, self._splits[number], self.forms, self._labels)

    def everyone(self) -> list[ClientData]:
        """The data of all clients that train, for a training without federation."""
        return [self.client(split.number) for split in self._splits if split.seen]


class Own:
    """The one client that a machine of its own is: its clips of the corpus at `dataset.root`, all where nobody says
    whose they are."""

    def __init__(self, name: str, settings: Settings):
        corpus = of_client(corpora.load(settings.dataset, settings.partition.column, *settings.evaluation.groups), name)
        self.store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
        found = split(self.store.table, {name: np.arange(len(self.store))}, settings.partition, settings.seed)
        if [each.name for each in found] != [name]:
            raise InputError(
                f"partition/split={settings.partition.split.name} makes clients of their own of a machine's speakers: "
                "choose one that leaves clients as they are."
            )
        field = Field.of(settings, len(corpus.classes))
        (self._split,), self._labels = field.dealt(found, self.store.labels)
        recorded, attacks = field.recorded([self._split]), Protocols.of(settings).attacks.values()
        self._waveforms = waveforms(corpus, self.store, settings, attacks, recorded)
        self.store = again(corpus, self.store, settings.features, recorded) if recorded else self.store

    def client(self, number: int) -> ClientData:
        """The data of this client, whatever its number among the others."""
        forms = {WAVEFORMS: self._waveforms} if self._waveforms else {}
        return ClientData(self.store, replace(self._split, number=number), forms, self._labels)

    def everyone(self) -> list[ClientData]:
        """Raises InputError: a client has its own data alone."""
        raise InputError("strategy=centralised needs all clients' utterances in one place: only a simulation has them.")


def of_client(corpus: corpora.Corpus, name: str) -> corpora.Corpus:
    """The clips of one client, in a corpus that has others' too or does not say whose they are. Raises InputError where
    it has none."""
    whose = corpus.table["client"]
    if whose.isna().all():
        return corpus
    if not (own := whose.astype(str) == name).any():
        known = ", ".join(map(str, whose.dropna().unique()[:10]))
        raise InputError(f"there is no clip of '{name}' in this folder; it has clips of {known}.")
    return replace(corpus, table=corpus.table[own].reset_index(drop=True))


def waveforms(
    corpus: corpora.Corpus,
    store: FeatureStore,
    settings: Settings,
    attacks: Iterable[Component],
    recorded: Recorded | None = None,
) -> FeatureStore | None:
    """The waveforms of a store of log-Mels, row for row, where an augmentation, an attack or an objective changes them;
    else None."""
    components = (*settings.augment.values(), *attacks, *filter(None, [settings.defence.training]))
    changing = any(on_waveforms(component.build()) for component in components)
    if settings.features.ragged or not changing:
        return None
    return again(corpus, store, settings.features.waveforms, recorded)


def again(
    corpus: corpora.Corpus, store: FeatureStore, features: Features, recorded: Recorded | None = None
) -> FeatureStore:
    """Other features of a store's clips, row for row; `recorded` says what a row's waveform is really like."""
    table = store.table.drop(columns=["seconds", "frames"])  # without clips that were left out
    return extract(replace(corpus, table=table), features, recorded=recorded)


Clients = Simulated | Own  # that a process can be
