"""What each part of the defaults brings: the defaults with one of them changed, on validation utterances.

    python benchmarks/ablation.py emodb --root DIR [--rounds 250] [--seeds 0 1] [--jobs 2] [--plot docs/learning.png]

A fifth of the training utterances is left out to choose by; test utterances are not looked at. All variants take the
same number of passes over the training clips, also those whose rounds are longer. Prints a table, UAR in % by seed and
in the mean, and draws the curves with `--plot`. A run that is there in `--output` is not made again.
"""

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

POINTS = 10  # of a curve
SHARE = 0.2  # of the clients train in a round by default
ALWAYS = ["attack=none", "defence=none", "partition.validation=0.2", "simulation=serial", "logger=none"]
VARIANTS = {  # what is changed: words, and by how much a round is longer than one of the defaults
    "the defaults": ([], 1),
    "every client in each round": (["strategy.fraction_train=1.0"], 1 / SHARE),
    "batches of eight": (["client.batch_size=8"], 1),
    "Adam's moments reset": (["client.optimizer_state=reset"], 1),
    "batch norm averaged": (["batch_norm=aggregate"], 1),
    "batch norm recomputed": (["batch_norm=recompute"], 1),
    "group norm": (["model.norm=group"], 1),
    "no augmentation": (["augment=[]"], 1),
    "one normalisation for all": (["features/normalisation=zscore_global"], 1),
    "constant learning rate": (["client/schedule=constant"], 1),
    "CNN-4": (["model=cnn4"], 1),
    "momentum on the server": (["strategy=fedavgm"], 1),
    "Adam on the server": (["strategy=fedadam"], 1),
    "version 0.3.0": (["experiment=v03"], 2 / SHARE),
}


def run(variant: str, seed: int, given) -> dict[int, float]:
    """UAR on validation utterances by how many of the defaults' rounds the training is as long as."""
    words, longer = VARIANTS[variant]
    rounds = max(1, round(given.rounds / longer))
    named = re.sub(r"[^\w.]+", "-", variant)  # an apostrophe would have to be quoted on the command line
    folder = given.output / f"{given.corpus}-{named}-{given.rounds}-seed{seed}"
    root = [f"dataset.root={given.root}"] if given.root else []
    often = [f"rounds={rounds}", f"evaluation.every={max(1, rounds // POINTS)}", f"seed={seed}"]
    words = [f"dataset={given.corpus}", *root, *ALWAYS, *words, *often, f"hydra.run.dir={folder}"]
    done = subprocess.run([sys.executable, "-m", "fedser", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{variant}: {done.stderr[-2000:]}")
    print(f"{variant}, seed {seed}: done", file=sys.stderr, flush=True)
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    key = "uar/validation/original"
    return {round(row["round"] * longer): 100 * row[key] for row in rows if key in row}


def table(curves: dict[str, list[dict]]) -> str:
    """Each variant's last figures by seed, their mean, and the difference to the defaults."""
    last = {name: np.array([list(curve.values())[-1] for curve in of]) for name, of in curves.items()}
    first = last[next(iter(last))].mean()
    seeds = "".join(f" {number} |" for number in range(len(next(iter(curves.values())))))
    lines = [f"| changed |{seeds} mean | less the defaults |", "|---|" + "---:|" * (seeds.count("|") + 2)]
    for name, values in last.items():
        cells = "".join(f" {value:.1f} |" for value in values)
        lines.append(f"| {name} |{cells} {values.mean():.1f} | {values.mean() - first:+.1f} |")
    return "\n".join(lines)


def plot(curves: dict[str, list[dict]], path: Path, corpus: str) -> None:
    """The mean curve of each variant."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, of) in enumerate(curves.items()):
        mean = np.mean([list(curve.values()) for curve in of], axis=0)
        own = {"color": plt.get_cmap("tab20")(number % 20), "linewidth": 1.4}
        style = {"color": "black", "linewidth": 2.5} if not number else own
        axes.plot(list(of[0]), mean, label=f"{name} ({mean[-1]:.0f})", **style)
    axes.set(xlabel="rounds of the defaults, or as much work", ylabel="UAR on validation utterances [%]", title=corpus)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="an option of the group dataset")
    parser.add_argument("--root", help="its folder or file")
    parser.add_argument("--rounds", type=int, default=250, help="of the defaults")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("--plot", type=Path, help="a PNG of the curves")
    given = parser.parse_args()
    with ThreadPoolExecutor(given.jobs) as pool:
        made = {name: [pool.submit(run, name, seed, given) for seed in given.seeds] for name in given.only}
    curves = {name: [future.result() for future in futures] for name, futures in made.items()}
    print(table(curves))
    if given.plot:
        plot(curves, given.plot, given.corpus)


if __name__ == "__main__":
    main()
