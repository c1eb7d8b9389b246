"""The simplest thing that could have done it: a support vector machine on pooled log-Mel statistics.

    python benchmarks/baseline.py emodb --root DIR --seeds 0 1 2       # the machine alone
    python benchmarks/baseline.py manifest --root clips.csv --run      # and a run of the defaults beside it

Per clip: mean, deviation, 10th and 90th percentile of each mel bin over the real frames, and the deviation of its
differences from frame to frame. An RBF kernel; all clients' training clips in one place; the same split as a run's with
that seed. C is the best of five: by five-fold cross-validation on the training clips, and, as an upper bound, on the
test clips. Features normalised over all training clips, and once more by each client's own.
"""

import argparse
import warnings

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from fedser import compose, run
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract

COSTS = (0.3, 1, 3, 10, 30)
WIDTHS = (8, 8, 13, 8, 9)  # of the columns


def pooled(store) -> np.ndarray:
    """The statistics of every clip, float64 [clips, 5 · mels]."""
    rows = []
    for frames, length in zip(store.frames, store.lengths, strict=True):
        real = np.asarray(frames[:length], np.float64)
        changes = np.diff(real, axis=0) if len(real) > 1 else np.zeros_like(real)
        low, high = np.percentile(real, (10, 90), axis=0)
        rows.append(np.concatenate([real.mean(0), real.std(0), low, high, changes.std(0)]))
    return np.stack(rows)


def by_client(features: np.ndarray, splits) -> np.ndarray:
    """The features less each client's mean over its own training clips, of one without any less everybody's."""
    centred, everyone = features.copy(), features[trained(splits)].mean(0)
    for split in splits:
        rows = np.concatenate([split.train, split.validation, split.test])
        centred[rows] -= features[trained([split])].mean(0) if split.seen else everyone
    return centred


def trained(splits) -> np.ndarray:
    """The rows of the clients that train."""
    return np.concatenate([rows for split in splits if split.seen for rows in (split.train, split.validation)])


def scores(features: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """UAR on the test clips with the C of a cross-validation on the training clips, and with the best C for them."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    validated, tested = [], []
    for cost in COSTS:
        machine = make_pipeline(StandardScaler(), SVC(C=cost))
        x, y = features[train], labels[train]
        validated.append(cross_val_score(machine, x, y, cv=folds, scoring="balanced_accuracy").mean())
        tested.append(balanced_accuracy_score(labels[test], machine.fit(x, y).predict(features[test])))
    return tested[int(np.argmax(validated))], max(tested)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="an option of the group dataset")
    parser.add_argument("--root", help="its folder or file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run", action="store_true", help="train fedser's defaults, too, without attack and defence")
    parser.add_argument("overrides", nargs="*", help="of the run, e.g. model=cnn4")
    given = parser.parse_intermixed_args()
    warnings.simplefilter("ignore", UndefinedMetricWarning)
    words = [f"dataset={given.corpus}", *([f"dataset.root={given.root}"] if given.root else []), "logger=none"]
    print(f"{'UAR [%]':<10}{'SVM':>8}{'best C':>8}{'per speaker':>13}{'best C':>8}" + f"{'fedser':>9}" * given.run)
    rows = []
    for seed in given.seeds:
        chosen = [*words, "defence=none", "attack=none", f"seed={seed}", *given.overrides]
        settings = validate(compose(chosen))
        store = extract(corpora.load(settings.dataset), settings.features, settings.dataset.on_bad_audio)
        splits = partition(store.table, settings.partition, seed)
        train, held = trained(splits), [split for split in splits if not split.seen]
        test = np.concatenate([split.test for split in held or splits])  # of speakers who are held out, if any are
        features = pooled(store)
        row = [*scores(features, store.labels, train, test)]
        row += scores(by_client(features, splits), store.labels, train, test)
        row += [run(compose(chosen)).metrics["uar/original"]] if given.run else []
        rows.append(row)
        print(line(f"seed {seed}", row), flush=True)
    print(line("mean", np.mean(rows, axis=0)))


def line(name: str, row) -> str:
    """A row of the table."""
    return name.ljust(10) + "".join(f"{100 * value:{width}.1f}" for value, width in zip(row, WIDTHS, strict=False))


if __name__ == "__main__":
    main()
