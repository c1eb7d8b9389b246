"""How robust is a finished run's model on the clips it was trained on, and how on the others?

    python benchmarks/generalisation.py RUN … [--attacks fgsm pgd]

Prints the UAR of each run's final model on the clients' pooled training and test clips, original and attacked. A wide
gap says that the robustness was learnt and did not generalise; low figures on both, that it was not learnt.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fedser.config.protocol import Protocol
from fedser.config.settings import Settings
from fedser.config.validation import plain
from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract
from fedser.evaluation import measure, metrics
from fedser.features.normalisation import Sums, zscore
from fedser.federation import transport
from fedser.runs.folder import RunFolder


def generalisation(run: Path, attacks: list[str]) -> dict[str, dict[str, float]]:
    """{train or test: {condition: UAR}} of a run that normalised with `zscore_global`."""
    folder = RunFolder(run)
    settings = Settings.of(plain(folder.config()))
    corpus = corpora.load(settings.dataset)
    store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
    splits = partition(store.table, settings.partition, settings.seed)
    model = settings.model.component.build(classes=len(corpus.classes))
    transport.unpack(folder.weights(folder.summary()["rounds"]), model)
    adversaries = {name: settings.attacks[name].build() for name in attacks}
    sums = [Sums.of(store.frames[split.train]) for split in splits]
    normalise = zscore(sum(sums[1:], sums[0]))
    uars = {}
    for part in ("train", "test"):
        rows = np.concatenate([getattr(split, part) for split in splits])
        x, y = torch.from_numpy(normalise(store.frames[rows])).unsqueeze(1), torch.from_numpy(store.labels[rows])
        options = {"attacks": adversaries, "randomise": None, "batch_size": 64, "seed": 0}
        options["lengths"] = torch.from_numpy(store.lengths[rows])
        measured = measure.evaluate(model, x, y, Protocol(attacks, randomised=False), **options)
        uars[part] = {
            condition: metrics.uar(metrics.confusion(y, predicted[0], len(corpus.classes)))
            for condition, predicted in measured.predictions.items()
        }
    return uars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--attacks", nargs="+", default=["fgsm", "pgd"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for run in arguments.runs:
        print(run.name)
        for part, uars in generalisation(run, arguments.attacks).items():
            print(f"  {part:6}" + "".join(f"  {condition} {100 * uar:.1f} %" for condition, uar in uars.items()))


if __name__ == "__main__":
    main()
