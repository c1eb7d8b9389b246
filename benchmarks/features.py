"""How fast features are made, and what it costs n processes to share them.

    python benchmarks/features.py                              # EMO-DB under FEDSER_DATA
    python benchmarks/features.py --dataset ravdess --root …/ravdess --processes 8 --json features.json

Speed is seconds of audio per second of processor time, from file to store, best of `--repeats`. Memory is what
/proc/self/smaps_rollup says (Linux): the increase from before to after every process has read the whole store.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.data.store import FeatureStore, extract
from fedser.features import audio
from fedser.features.front_end import LogMel, fit


def measure_speed(corpus, settings, workers):
    """(store, seconds of audio per second of CPU time, the same per second of wall time); the cache must be empty."""
    wall, cpu = time.perf_counter(), time.process_time()
    store = extract(corpus, settings, workers=workers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    seconds = store.table["seconds"].sum()
    return store, seconds / cpu, seconds / wall


def measure_stages(corpus, settings):
    """Seconds of audio per second of wall time on one thread: decoding alone, front end alone."""
    import torch

    torch.set_num_threads(1)
    begin = time.perf_counter()
    waves = [torch.from_numpy(audio.read(path, settings.sample_rate)) for path in corpus.table["path"]]
    decoded = time.perf_counter()
    logmel = LogMel(**{key: value for key, value in settings.front_end.items() if key != "frames"})
    with torch.inference_mode():
        for wave in waves:
            fit(logmel(wave), settings.frames)
    done = time.perf_counter()
    seconds = sum(map(len, waves)) / settings.sample_rate
    return seconds / (decoded - begin), seconds / (done - decoded)


def footprint():
    """(proportional, private) resident bytes of this process."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    return sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"]


def read_everything(folder, barrier, results):
    """One process of `measure_sharing`: opens the store, and compares its footprint before and after reading it."""
    store = FeatureStore.open(folder)
    barrier.wait()
    before = footprint()
    barrier.wait()
    total = 0.0
    for row in range(len(store)):
        total += float(np.abs(store.frames[row]).sum())
    barrier.wait()
    after = footprint()
    barrier.wait()  # nobody leaves before all have measured: pages of the last one would count as private
    results.put([late - early for early, late in zip(before, after, strict=True)])


def measure_sharing(folder, processes):
    """(sum of proportional, largest private) growth in bytes over `processes` that map the store and read all of it."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=read_everything, args=(folder, barrier, results), daemon=True) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    growth = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(proportional for proportional, _ in growth), max(private for _, private in growth)


def measure(name, root, processes, repeats):
    overrides = [f"dataset={name}", *([f"dataset.root={root}"] if root else [])]
    chosen = validate(compose(overrides))
    settings, corpus = chosen.features, corpora.load(chosen.dataset)
    cores = len(os.sched_getaffinity(0))
    runs = {1: [], cores: []}
    with contextlib.ExitStack() as stack:
        for workers in runs:
            for _ in range(repeats):
                os.environ["FEDSER_CACHE"] = stack.enter_context(tempfile.TemporaryDirectory())
                runs[workers].append(measure_speed(corpus, settings, workers))
        decoding, front = measure_stages(corpus, settings)
        begin = time.perf_counter()
        store = extract(corpus, settings)
        warm = time.perf_counter() - begin
        shared = {n: measure_sharing(store.folder, n) for n in sorted({1, 2, processes})}
        size = (store.folder / "frames.npy").stat().st_size
        seconds = float(store.table["seconds"].sum())
    return {
        "dataset": name,
        "clips": len(corpus.table),
        "audio_hours": seconds / 3600,
        "realtime_per_core": max(cpu for _, cpu, _ in runs[1]),
        "realtime_decoding": decoding,
        "realtime_front_end": front,
        "cores": cores,
        "realtime_all_cores": max(wall for _, _, wall in runs[cores]),
        "warm_seconds": warm,
        "store_bytes": size,
        "sharing": {n: {"proportional_bytes": both, "private_bytes": own} for n, (both, own) in shared.items()},
    }


def show(result):
    table = Table("what", "figure", title=f"Features of {result['dataset']}, {result['audio_hours']:.2f} h of audio")
    table.add_row("extraction, per core", f"{result['realtime_per_core']:,.0f} × real time")
    table.add_row("  decoding alone", f"{result['realtime_decoding']:,.0f} ×")
    table.add_row("  front end alone", f"{result['realtime_front_end']:,.0f} ×")
    table.add_row(f"extraction, {result['cores']} cores, by the clock", f"{result['realtime_all_cores']:,.0f} ×")
    table.add_row("second use, from the cache", f"{result['warm_seconds']:.2f} s")
    table.add_row("store on disk", f"{result['store_bytes'] / 2**20:.1f} MiB")
    for processes, growth in result["sharing"].items():
        table.add_row(
            f"memory of {processes} readers together", f"{growth['proportional_bytes'] / 2**20:.1f} MiB (PSS growth)"
        )
        table.add_row("  private, the largest of them", f"{growth['private_bytes'] / 2**20:.1f} MiB")
    Console().print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="emodb", help="a file of conf/dataset")
    parser.add_argument("--root", help="where it lies; by default as in that file, under FEDSER_DATA")
    parser.add_argument("--processes", type=int, default=8, help="that share the store")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    result = measure(arguments.dataset, arguments.root, arguments.processes, arguments.repeats)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
