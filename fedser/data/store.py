"""Features: a store that extracts a corpus once and maps it from disk.

The store is a folder in the cache, named by the hash of everything that made it:

    frames.npy   float32 [clips, frames, mels], before normalisation; all processes share its pages. Of clips that are
                 as long as they are [all frames, …], one after the other (`fedser.data.arrays.Ragged`)
    index.csv    the corpus's table, row for row, with `label`, `client`, `seconds`, and how many `frames` are real
    store.json   classes, settings, clips left out, and what it takes to notice damage
"""

import hashlib
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser.config.settings import Features
from fedser.data.arrays import Growing, Ragged
from fedser.data.corpora import Corpus
from fedser.errors import InputError, RunError
from fedser.features import audio
from fedser.features.front_end import front_end
from fedser.runs import cache

if TYPE_CHECKING:
    from fedser.corruption.field import Recorded

log = logging.getLogger(__name__)

VERSION = 2  # of the numbers and of the folder's layout: raise it when either changes
DTYPES = {"label": "int64", "seconds": "float64", "frames": "int64"}  # of the index; everything else is text


class DamagedStore(RunError):
    """A cache entry that is not what was written; the message names the folder to delete."""


class FeatureStore:
    """Features of a corpus on disk: `frames` [clips, frames, mels] is mapped, not loaded; `table` has the same rows.

    Where clips are as long as they are, `frames` is `Ragged`, and gives those it is asked for padded with zeros.
    """

    def __init__(self, folder: Path, frames: np.ndarray | Ragged, table: pd.DataFrame, notes: Mapping[str, Any]):
        self.folder = folder
        self.frames = frames
        self.table = table
        self.base: str = notes["base"]  # the clips' common folder
        self.classes: list[str] = notes["classes"]
        self.skipped: list[str] = notes["skipped"]  # what was wrong with the clips left out (`on_bad_audio=skip`)

    def __len__(self) -> int:
        return len(self.frames)

    def __reduce__(self):
        return FeatureStore.open, (self.folder,)  # workers map the file; pickling a mapped array copies it

    @property
    def labels(self) -> np.ndarray:
        """The class of each clip, int64 [clips]."""
        return self.table["label"].to_numpy()

    @property
    def lengths(self) -> np.ndarray:
        """How many frames of each clip are real and no repetition, int64 [clips]."""
        return self.table["frames"].to_numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the longest clip: frames, and what each has."""
        ragged = isinstance(self.frames, Ragged)
        return (int(self.lengths.max()), *self.frames.flat.shape[1:]) if ragged else self.frames.shape[1:]

    def take(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """A copy of these rows, float32 [len(rows), frames, …]."""
        return torch.from_numpy(np.array(self.frames[np.asarray(rows, dtype=np.int64)]))

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureStore":
        """The store in `folder`. Raises DamagedStore if it is not whole."""
        folder = Path(folder)
        try:
            notes = json.loads((folder / "store.json").read_text())
            index = (folder / "index.csv").read_bytes()
            frames = np.load(folder / "frames.npy", mmap_mode="r")
            if _digest(index) != notes["index"]:
                raise ValueError("index.csv has changed")
            dtype = notes.get("dtype", "float32")
            if list(frames.shape) != notes["shape"] or frames.dtype != dtype:
                raise ValueError(f"frames.npy holds {frames.dtype} {list(frames.shape)}, not {dtype} {notes['shape']}")
            table = _parse_index(index)
            lengths = table["frames"].to_numpy()
            if (rows := int(lengths.sum()) if notes.get("ragged") else len(table)) != len(frames):
                raise ValueError(f"{rows} rows in index.csv, {len(frames)} in frames.npy")
            frames = Ragged(frames, lengths) if notes.get("ragged") else frames
            table["path"] = [os.path.join(notes["base"], path) for path in table["path"]]
            return cls(folder, frames, table, notes)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            what = f"the feature cache {folder} is damaged ({error})"
            raise DamagedStore(f"{what}; delete that folder and run again") from error


def extract(
    corpus: Corpus,
    features: Features,
    on_bad_audio: str = "error",
    workers: int | None = None,
    recorded: "Recorded | None" = None,
) -> FeatureStore:
    """The features of every clip in `corpus`, from the cache if they are there.

    A clip that can't be used raises InputError naming it
    (`on_bad_audio="error"`) or is left out with a warning (`"skip"`). `workers` threads, by default one per core.
    `recorded` says what a row's waveform is really like.
    """
    workers = workers or len(os.sched_getaffinity(0))
    base = os.path.commonpath([os.path.dirname(path) for path in corpus.table["path"]])
    folder = cache.folder("features", _key(corpus, base, features, on_bad_audio, workers, recorded))
    if (store := _known(folder)) is None:
        try:
            with cache.publish(folder) as scratch:
                _write(scratch, corpus, base, features, on_bad_audio, workers, recorded)
        except OSError as error:
            raise InputError(
                f"the feature cache {folder.parent} can't be written: {error.strerror or error}; "
                "make room, or set FEDSER_CACHE to another folder"
            ) from error
        store = FeatureStore.open(folder)
    # The entry is found by content, so the corpus may have moved since.
    store.table["path"] = [os.path.join(base, os.path.relpath(path, store.base)) for path in store.table["path"]]
    store.base = base
    if store.skipped:
        log.warning("%d clips left out (dataset.on_bad_audio=skip): %s", len(store.skipped), "; ".join(store.skipped))
    return store


def _known(folder: Path) -> FeatureStore | None:
    """The store in `folder`; None where there is none, and where it was damaged and is gone now."""
    if not folder.exists():
        return None
    try:
        return FeatureStore.open(folder)
    except DamagedStore as error:
        log.warning("%s. Doing both now.", error)
        shutil.rmtree(folder, ignore_errors=True)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _file_digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""  # reading it as audio will say what is wrong


def _key(
    corpus: Corpus, base: str, features: Features, on_bad_audio: str, workers: int, recorded: "Recorded | None"
) -> str:
    """The hash of the clips' bytes, the table with paths relative to `base`, and all settings that matter.

    Normalisation is the clients' business and changes nothing here.
    """
    with ThreadPoolExecutor(workers) as pool:
        clips = list(pool.map(_file_digest, corpus.table["path"]))
    _warn_of_twins(corpus.table["path"], clips)
    identity = [VERSION, clips, _index(corpus.table, base), corpus.classes, features.front_end, on_bad_audio]
    identity += [recorded.key] if recorded else []
    return _digest(json.dumps(identity, sort_keys=True).encode())


def _warn_of_twins(paths: Sequence[str], digests: Sequence[str]) -> None:
    first: dict[str, str] = {}
    twins = [
        f"{path} = {first[digest]}"
        for path, digest in zip(paths, digests, strict=True)
        if first.setdefault(digest, path) != path
    ]
    if twins:
        log.warning(
            "the same audio under two names (%d times), so that one may be trained on and the other tested: %s",
            len(twins),
            ", ".join(twins[:3]) + (", …" if len(twins) > 3 else ""),
        )


def _index(table: pd.DataFrame, base: str) -> str:
    relative = [os.path.relpath(path, base) for path in table["path"]]
    return table.assign(path=relative).to_csv(index=False, lineterminator="\n")


def _parse_index(text: bytes) -> pd.DataFrame:
    # Only an empty cell is missing, and "01" is no number.
    table = pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False, na_values=[""])
    return table.astype({key: kind for key, kind in DTYPES.items() if key in table})


def _write(
    folder: Path,
    corpus: Corpus,
    base: str,
    features: Features,
    on_bad_audio: str,
    workers: int,
    recorded: "Recorded | None",
) -> None:
    """Extracts `corpus` into `folder` as `FeatureStore.open` wants it."""
    array = Growing(folder / "frames.npy", features.shape[1:] if features.ragged else features.shape, features.ragged)
    good, bad = [], {}
    for position, clip in enumerate(_clips(corpus, features, workers, recorded)):
        if isinstance(clip, audio.BadAudio):
            bad[position] = str(clip)
        else:
            frames, *known = clip
            array.append(frames if features.ragged else frames[None])
            good.append(known)
    array.close()
    if bad and (on_bad_audio == "error" or not good):
        raise InputError(_complaint(list(bad.values()), len(corpus.table)))
    seconds, lengths = zip(*good, strict=True)
    table = corpus.table.drop(index=corpus.table.index[list(bad)]).assign(seconds=seconds, frames=lengths)
    notes = {
        "corpus": corpus.name,
        "base": base,
        "classes": corpus.classes,
        "features": features.front_end,
        "skipped": list(bad.values()),
    }
    write_index(folder, array, table, notes, ragged=features.ragged)


def write_index(folder: Path, array: Growing, table: pd.DataFrame, notes: dict, ragged: bool) -> None:
    """Writes what `FeatureStore.open` needs beside `array`, whose clips are the rows of `table`; `notes` are of the
    corpus and its features."""
    index = _index(table, notes["base"]).encode()
    more = {"ragged": True, "dtype": str(array.dtype)} if ragged else {}
    notes = {"version": VERSION, "shape": [array.rows, *array.shape], "index": _digest(index)} | notes | more
    for name, data in (("index.csv", index), ("store.json", json.dumps(notes, indent=1).encode())):
        with open(folder / name, "wb") as file:
            file.write(data)
            _sync(file)


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _complaint(bad: list[str], total: int) -> str:
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    advice = "mend or remove them, or set dataset.on_bad_audio=skip" if len(bad) < total else "is dataset.root right?"
    return f"{len(bad)} of {total} clips can't be used: {'; '.join(bad[:3])}{more}. What to do: {advice}"


def _clips(
    corpus: Corpus, features: Features, workers: int, recorded: "Recorded | None"
) -> Iterator[tuple[np.ndarray, float, int] | audio.BadAudio]:
    """For every clip, in the table's order, what is wrong with it, or its frames [frames, …], how many seconds it
    lasts, and how many of the frames are its own and no repetition. With a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    made, rate = front_end(features), features.sample_rate

    def one(row: int, path: str) -> tuple[np.ndarray, float, int] | audio.BadAudio:
        try:
            waveform = audio.read(path, rate, min_samples=features.least)
        except audio.BadAudio as error:
            return error
        waveform = recorded(row, waveform) if recorded else waveform
        with torch.inference_mode():
            # Clip by clip and on one thread: batching would let the numbers depend on the neighbours.
            frames, real = made(torch.from_numpy(waveform))
        return frames.contiguous().numpy(), len(waveform) / rate, real

    total, words, console = len(corpus.table), f"Features of {corpus.name}", Console(stderr=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            found = pool.map(one, range(total), corpus.table["path"])
            yield from track(found, words, total, console=console, transient=True, disable=not sys.stderr.isatty())
    finally:
        torch.set_num_threads(threads)
