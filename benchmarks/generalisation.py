"""How robust is a finished run's model on the clips it was trained on, and how on the others?

    python benchmarks/generalisation.py RUN … [--attacks fgsm pgd]

Prints the UAR of each run's final model on the clients' pooled training and test clips, original and attacked. A wide
gap says that the robustness was learnt and did not generalise; low figures on both, that it was not learnt.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from fedser.config.protocol import Protocol
from fedser.data import corpora
from fedser.data.store import extract
from fedser.evaluation import measure, metrics
from fedser.federation import client_app, transport
from fedser.models.normalisation import Sums, zscore


def generalisation(run: Path, attacks: list[str]) -> dict[str, dict[str, float]]:
    """{train or test: {condition: UAR}} of a run that normalised with `zscore_global`."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    corpus = corpora.load(settings)
    store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
    adversaries = {name: settings.attacks[name] for name in attacks}
    told = {"settings": settings, "classes": corpus.classes, "attacks": adversaries, "store": store.folder, "state": ""}
    bench = client_app.Workbench(told)
    transport.unpack(load_file(run / "model.safetensors"), bench.model)
    sums = [Sums.of(store.frames[share.train]) for share in bench.shares]
    normalise = zscore(sum(sums[1:], sums[0]))
    uars = {}
    for part in ("train", "test"):
        x, y = bench.tensors(np.concatenate([getattr(share, part) for share in bench.shares]), normalise)
        options = {"attacks": bench.attacks, "randomise": None, "batch_size": 64, "seed": 0}
        measured = measure.evaluate(bench.model, x, y, Protocol(attacks, randomised=False), **options)
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
