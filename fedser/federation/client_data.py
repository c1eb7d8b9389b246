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
from fedser.config.settings import Settings
from fedser.data import corpora
from fedser.data.arrays import Ragged
from fedser.data.partition import ClientSplit, partition, split, stratified
from fedser.data.store import FeatureStore, extract
from fedser.errors import InputError
from fedser.features.front_end import on_waveforms
from fedser.features.normalisation import Sums
from fedser.randomness import derive

STATES, WAVEFORMS = "states", "waveforms"  # forms of a clip beside its features


class ClientData:
    """One client's utterances: of the clips in `store` those that `split` says, which are all that it ever looks at.

    name: the client's, by default its speaker; number: its place among all clients.
    forms: the same clips in other forms, where there are any: "states" of a frozen network (`fedser.data.states`),
        "waveforms" that are augmented.
    """

    def __init__(self, store: FeatureStore, split: ClientSplit, forms: Mapping[str, FeatureStore] | None = None):
        self.name, self.number, self.split, self._forms = split.name, split.number, split, forms or {}
        self._frames, self._labels, self._lengths = store.frames, store.labels, store.lengths

    def form(self, name: str) -> "ClientData":
        """The same clips in another form, or as they are where there is none."""
        return ClientData(self._forms[name], self.split) if name in self._forms else self

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


class Simulated:
    """The clients of a simulation, which share one store."""

    def __init__(self, store: Path, settings: Settings, forms: Mapping[str, str] = MappingProxyType({})):
        self.store = FeatureStore.open(store)
        self.forms = {name: FeatureStore.open(folder) for name, folder in forms.items()}
        self._splits = partition(self.store.table, settings.partition, settings.seed)

    def client(self, number: int) -> ClientData:
        """The data of client `number`."""
        return ClientData(self.store, self._splits[number], self.forms)

    def everyone(self) -> list[ClientData]:
        """The data of all clients that train, for a training without federation."""
        return [ClientData(self.store, split, self.forms) for split in self._splits if split.seen]


class Own:
    """The one client that a machine of its own is: whatever the corpus at `dataset.root` holds, under this name."""

    def __init__(self, name: str, settings: Settings):
        corpus = corpora.load(settings.dataset, settings.partition.column)
        self.store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
        found = split(self.store.table, {name: np.arange(len(self.store))}, settings.partition, settings.seed)
        if [each.name for each in found] != [name]:
            raise InputError(
                f"partition/split={settings.partition.split.name} makes clients of their own of a machine's speakers: "
                "choose one that leaves clients as they are."
            )
        (self._split,) = found
        self._waveforms = waveforms(corpus, self.store, settings, Protocols.of(settings).attacks.values())

    def client(self, number: int) -> ClientData:
        """The data of this client, whatever its number among the others."""
        forms = {WAVEFORMS: self._waveforms} if self._waveforms else {}
        return ClientData(self.store, replace(self._split, number=number), forms)

    def everyone(self) -> list[ClientData]:
        """Raises InputError: a client has its own data alone."""
        raise InputError("strategy=centralised needs all clients' utterances in one place: only a simulation has them.")


def waveforms(
    corpus: corpora.Corpus, store: FeatureStore, settings: Settings, attacks: Iterable[Component]
) -> FeatureStore | None:
    """The waveforms of a store of log-Mels, row for row, where an augmentation, an attack or an objective changes them;
    else None."""
    components = (*settings.augment.values(), *attacks, *filter(None, [settings.defence.training]))
    changing = any(on_waveforms(component.build()) for component in components)
    if settings.features.ragged or not changing:
        return None
    table = store.table.drop(columns=["seconds", "frames"])  # without clips that were left out
    return extract(replace(corpus, table=table), settings.features.waveforms)


Clients = Simulated | Own  # that a process can be
