"""Who speaks, and of which sex: inferred from a trained network's embeddings of clips, beside the clips' own log-Mels.

The network is the global one, normalisers are the clients' own. A probe never hears a speaker's sex whom it has learnt
from, nor, where the corpus knows sentences, a speaker in a sentence that she was learnt from in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fedser.attacks import undisturbed
from fedser.config.settings import Settings
from fedser.config.validation import validate
from fedser.data.corpora import SENTENCE
from fedser.errors import InputError
from fedser.features.front_end import LogMel
from fedser.features.normalisation import Normaliser, Sums, of_unknown
from fedser.federation import transport
from fedser.federation.client_data import STATES, ClientData
from fedser.models.embedding import check_embed, described
from fedser.models.lengths import as_inputs
from fedser.preparation import Preparation, prepare
from fedser.privacy import probe
from fedser.privacy.findings import Finding, of_classes, of_pairs, of_speakers
from fedser.runs.folder import RunFolder

LEAST = 5  # clips of a speaker who is to be recognised
BATCH = 32


@dataclass(frozen=True)
class Subject:
    """A finished run that is studied, prepared as for its training."""

    folder: Path
    settings: Settings
    summary: dict
    prepared: Preparation

    @classmethod
    def of(cls, folder: Path) -> "Subject":
        """Raises InputError where there is no finished run, or its data have changed since."""
        place = RunFolder(folder)
        if (summary := place.summary()) is None or summary["status"] != "finished":
            state = "holds no run" if summary is None else f"is {summary['status']}"
            raise InputError(f"{folder} {state}: fedser-privacy takes the folders of finished runs.")
        settings = validate(place.config())
        prepared = prepare(settings)
        if prepared.data != summary.get("data"):
            raise InputError(f"{folder} was trained on other data than dataset.root={settings.dataset.root} has now.")
        return cls(folder, settings, summary, prepared)

    @property
    def clips(self) -> pd.DataFrame:
        """The corpus's table, with who is `seen`: whose client trains."""
        table = self.prepared.store.table.copy()
        table["seen"] = False
        for split in self.prepared.splits:
            table.iloc[self._rows(split), table.columns.get_loc("seen")] = split.seen
        return table

    def values(self, column: str) -> np.ndarray:
        """The column's value of each clip [n], "" where it is not known. Raises InputError where it is missing, has one
        value, or is not the same in all clips of a speaker."""
        table = self.prepared.store.table
        if column not in table:
            raise InputError(f"{self.folder}: its corpus has no column '{column}' (there are {', '.join(table)}).")
        known = table[[column, "speaker"]].dropna()
        if known[column].nunique() < 2:
            only = ", ".join(map(str, known[column].unique())) or "none"
            raise InputError(f"{self.folder}: there is nothing to infer from '{column}', whose values are: {only}.")
        several = known.groupby("speaker")[column].nunique()
        if (several > 1).any():
            raise InputError(f"{self.folder}: '{column}' is not the same in all clips of speaker {several.idxmax()}.")
        return table[column].fillna("").astype(str).to_numpy()

    def embeddings(self) -> np.ndarray:
        """What the global model's last layer is given for each clip, float64 [n, D]. Raises InputError for a network
        without `embed`."""
        model = self.prepared.model
        weights = RunFolder(self.folder).weights(self.summary["rounds"])
        transport.unpack({key: weights[key] for key in transport.KEYS}, model)
        sums = [self._data(split).sums(split.train) for split in self.prepared.splits if split.seen]
        everyone, found = sum(sums[1:], sums[0]), {}
        with torch.no_grad(), undisturbed(model, torch.device("cpu"), 0):
            for split in self.prepared.splits:
                data, rows = self._data(split).form(STATES), self._rows(split)
                normalise = self._normaliser(split, everyone)
                for part in np.array_split(rows, -(-len(rows) // BATCH)) if len(rows) else ():
                    x = as_inputs(torch.from_numpy(normalise(data.frames(part))))
                    lengths = torch.from_numpy(data.lengths(part))
                    if not found:
                        check_embed(model, x[:2], lengths[:2])
                    found |= zip(part.tolist(), described(model, x, lengths)[1].double().numpy(), strict=True)
        return np.array([found[row] for row in range(len(self.prepared.store))])

    def log_mels(self) -> np.ndarray:
        """Mean and deviation over each clip's real frames, of each mel bin before normalisation, float64 [n, 2 · mels];
        of waveforms those of the default front end."""
        store, features = self.prepared.store, self.settings.features
        make = _of_waveform(features.sample_rate) if features.ragged else np.asarray
        each = ((store.frames[np.array([row])][0], real) for row, real in enumerate(store.lengths))
        clips = (make(frames[:real]).astype(np.float64) for frames, real in each)
        return np.array([np.concatenate([clip.mean(0), clip.std(0)]) for clip in clips])

    def _data(self, split) -> ClientData:
        return ClientData(self.prepared.store, split, self.prepared.forms)

    @staticmethod
    def _rows(split) -> np.ndarray:
        return np.sort(np.concatenate([split.train, split.validation, split.test]).astype(int))

    def _normaliser(self, split, everyone: Sums) -> Normaliser:
        """As the client itself would make it."""
        make = self.settings.features.normalisation.build()
        data = self._data(split)
        return make(data.frames(split.train), everyone) if split.seen else of_unknown(make, everyone)


def findings(subject: Subject, column: str = "sex") -> list[Finding]:
    """What is inferred of this column and of the speaker. Raises InputError as `Subject.values` and for too few
    speakers."""
    values, table = subject.values(column), subject.clips
    known = ((values != "") & table["speaker"].notna()).to_numpy()
    table, values = table[known], values[known]
    # The fewest speakers are complained about before anything is computed.
    folds = probe.by_group(table["speaker"].to_numpy(str), values)
    sources = {"embeddings": subject.embeddings(), "log-Mel statistics": subject.log_mels()}
    found = []
    for source, x in sources.items():
        found += _of_column(x[known], values, folds, table, what=column, source=source)
        found += _of_speaker(x[known], values, table, source, column)
    return found


def _of_waveform(sample_rate: int) -> Callable[[np.ndarray], np.ndarray]:
    """Samples [n, 1] → log-Mels [frames, mels]; a clip shorter than a window is filled up with zeros."""
    log_mel = LogMel(sample_rate, fmax=sample_rate / 2)

    def made(samples: np.ndarray) -> np.ndarray:
        waveform = torch.from_numpy(np.array(samples, np.float32))[:, 0]
        missing = max(len(log_mel.window) - len(waveform), 0)
        return log_mel(torch.nn.functional.pad(waveform, (0, missing))).numpy()

    return made


def _groups(table: pd.DataFrame):
    seen = table["seen"].to_numpy(bool)
    return (("seen", seen), ("unseen", ~seen))


def _of_column(x: np.ndarray, values: np.ndarray, folds: np.ndarray, table: pd.DataFrame, **more) -> list[Finding]:
    names, y = np.unique(values, return_inverse=True)
    right = probe.cross_validated(x, y, folds) == y
    more["protocol"] = (
        f"logistic regression, {len(np.unique(folds))} folds, tested on speakers whom it has not heard, {len(names)} "
        "kinds of equal weight"
    )
    speakers = table["speaker"].to_numpy(str)
    return [each for whose, own in _groups(table) for each in of_classes(right, y, speakers, own, whose=whose, **more)]


def _of_speaker(x: np.ndarray, values: np.ndarray, table: pd.DataFrame, source: str, column: str) -> list[Finding]:
    """Recognition among all speakers, and verification of speakers of whom nothing was learnt."""
    speakers = table["speaker"].to_numpy(str)
    who = np.unique(speakers, return_inverse=True)[1]
    sentences = SENTENCE in table and table[SENTENCE].notna().all() and table[SENTENCE].nunique() > 1
    said = table[SENTENCE].to_numpy(str) if sentences else np.arange(len(table)).astype(str)
    folds = _by_sentence(said) if sentences else _in_turn(who)
    apart = "sentences" if sentences else "clips"
    enough = np.bincount(who)[who] >= LEAST
    more = {"what": "speaker", "source": source}
    right = np.zeros(len(who), bool)
    names, candidates = np.unique(who[enough], return_inverse=True)
    if len(names) > 1:
        right[enough] = probe.cross_validated(x[enough], candidates, folds[enough]) == candidates
    line = f"logistic regression among all speakers, {len(np.unique(folds))} folds of {apart}"
    pairs = f"cosine similarity of two clips, of different {apart}, whitened as learnt from other speakers"
    halves = np.where(table["seen"], probe.by_group(speakers, values, most=2, least=1), 2)
    z = probe.whitened(x, speakers, halves)
    found = []
    for whose, own in _groups(table):
        known = own & enough & (len(names) > 1)
        found += of_speakers(right, speakers, known, len(names), whose=whose, protocol=line, **more)
        kinds = {"eer": [halves[own]], f"eer_within_{column}": [halves[own], values[own]]}
        for metric, alike in kinds.items() if own.any() else ():
            rate = probe.equal_error(z[own], speakers[own], said[own], alike)
            found += of_pairs(metric, rate, speakers[own], whose=whose, protocol=pairs, **more)
    return found


def _by_sentence(said: np.ndarray) -> np.ndarray:
    """Up to five folds of sentences [n]."""
    names, which = np.unique(said, return_inverse=True)
    return which % min(5, len(names))


def _in_turn(who: np.ndarray) -> np.ndarray:
    """Five folds of each speaker's clips [n]."""
    return pd.Series(who).groupby(who).cumcount().to_numpy() % 5
