"""Hidden states of a frozen network, computed once per corpus and kept like features.

A network that can be fed with them has `states(x, lengths)`, `frames(lengths)`, `layers`, `width`, `frozen`,
`pools` and `origin` (see `fedser.models.ssl.SSL`).
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from fedser.config.identity import digest
from fedser.config.settings import Features
from fedser.data.arrays import Growing
from fedser.data.store import FeatureStore, write_index
from fedser.display import size
from fedser.errors import InputError
from fedser.models.lengths import as_inputs
from fedser.runs import cache

log = logging.getLogger(__name__)

VERSION = 1  # of the numbers: raise it when they change
SHARE = 0.25  # of the disk's free room that states of all layers may take by themselves


def cached(store: FeatureStore, features: Features, model: nn.Module, live: str | None) -> FeatureStore | None:
    """The states that the network is trained on instead of the waveforms in `store`; None where it hears these.

    `live` says why the network must hear waveforms in training; None where it need not.
    Raises InputError where `features.cache` asks for what can't be.
    """
    kind = features.cache
    if kind == "none" or not hasattr(model, "states"):
        return None
    why = live or (None if model.frozen else "its backbone is trained (model.tune)")
    if kind == "pooled" and not model.pools:
        why = why or "it looks at more than the means over time (model.conv_layers=0 model.pooling=mean)"
    if why and kind != "auto":
        raise InputError(
            f"features.cache={kind}: the network can't be trained on what is kept, as {why}. Set features.cache=none."
        )
    return None if why else _of_kind(store, model, kind)


def _of_kind(store: FeatureStore, model: nn.Module, kind: str) -> FeatureStore | None:
    each = 4 * model.layers * model.width
    needed = {"states": each * int(model.frames(torch.tensor(store.lengths)).sum()), "pooled": each * len(store)}
    room = _room()
    if kind == "auto":
        fits = [kind for kind in ("pooled" if model.pools else "states",) if needed[kind] <= SHARE * room]
        if not fits:
            log.warning(
                "states of the frozen network would take %s, and there is room for %s: it hears each clip anew in "
                "every round (features.cache=states keeps them all the same)", size(needed["states"]), size(room),
            )  # fmt: skip
            return None
        (kind,) = fits
    if needed[kind] > room:
        raise InputError(
            f"features.cache={kind} takes {size(needed[kind])}, and {cache.folder()} has room for {size(room)}: set "
            "FEDSER_CACHE to another folder, or features.cache=none."
        )
    folder = cache.folder("states", digest({"version": VERSION, "of": store.folder.name, "kind": kind} | model.origin))
    if not folder.exists():
        log.warning("hidden states of %d clips are computed once and kept: %s", len(store), size(needed[kind]))
        with cache.publish(folder) as scratch:
            _write(scratch, store, model, kind)
    return FeatureStore.open(folder)


def _room() -> int:
    folder = cache.folder()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free


def _write(folder, store: FeatureStore, model: nn.Module, kind: str) -> None:
    array = Growing(folder / "frames.npy", (model.layers, model.width))
    lengths = []
    for states in _states(store, model):
        states = states.mean(0, keepdims=True) if kind == "pooled" else states
        array.append(states)
        lengths.append(len(states))
    array.close()
    notes = json.loads((store.folder / "store.json").read_text())
    kept = {key: notes[key] for key in ("corpus", "classes", "skipped")} | {"base": store.base}
    write_index(folder, array, store.table.assign(frames=lengths), kept | {"features": model.origin}, ragged=True)


def _states(store: FeatureStore, model: nn.Module) -> Iterator[np.ndarray]:
    """Of each clip float32 [frames, layers, width]; clip by clip, so that no number depends on neighbours."""

    def one(row: int) -> np.ndarray:
        with torch.inference_mode():
            x = as_inputs(store.take([row]))
            found, frames = model.states(x, torch.tensor([x.shape[2]]))
        return found[0, :, : int(frames)].transpose(0, 1).contiguous().numpy()

    training, threads = model.training, torch.get_num_threads()
    model.eval()
    torch.set_num_threads(1)
    workers = len(os.sched_getaffinity(0))
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(one, range(len(store)))
    finally:
        torch.set_num_threads(threads)
        model.train(training)
