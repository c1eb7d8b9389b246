"""What vectors give away: a logistic regression on them, and how well they tell speakers apart by themselves."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from fedser.errors import InputError
from fedser.evaluation import statistics
from fedser.evaluation.statistics import Interval

BINS = 200  # of cosine similarities
CLIPS = 2000  # that are compared with each other, at most
REPEATS = 500
SHRINK = 0.1


class Logistic:
    """Logistic regression with an L2 penalty of ½‖W‖² beside C = 1 times the loss, classes of equal weight: what
    scikit-learn's `LogisticRegression(class_weight="balanced")` is. Inputs standardised by those that are learnt from.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, classes: int):
        """x [n, D], y [n] whole numbers below `classes`."""
        self.mean, scale, self.basis = x.mean(0), x.std(0), None
        self.scale = np.where(scale > 1e-8, scale, 1.0)
        if len(x) < x.shape[1]:  # W lies in the span of what is learnt from: the same optimum, in n dimensions
            self.basis = np.linalg.svd((x - self.mean) / self.scale, full_matrices=False)[2].T
        x, y = self._inputs(x), torch.from_numpy(y)
        counts = torch.bincount(y, minlength=classes)
        weights = (len(y) / (torch.count_nonzero(counts) * counts.clamp(min=1))).double()
        self.w = torch.zeros(x.shape[1] + 1, 1 if classes == 2 else classes, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([self.w], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            solver.zero_grad()
            loss = functional.cross_entropy(self._logits(x), y, weights, reduction="sum")
            loss = loss + self.w[:-1].square().sum() / 2
            loss.backward()
            return loss

        solver.step(closure)

    def _inputs(self, x: np.ndarray) -> torch.Tensor:
        x = (x - self.mean) / self.scale
        return torch.from_numpy(x if self.basis is None else x @ self.basis)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        found = x @ self.w[:-1] + self.w[-1]
        return torch.cat([torch.zeros_like(found), found], 1) if found.shape[1] == 1 else found

    @torch.no_grad()
    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of each class, [n, classes]."""
        return self._logits(self._inputs(x)).softmax(1).numpy()


def cross_validated(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The class [n] that each row is taken for by a probe that learnt from the rows of the other folds [n]."""
    x = np.asarray(x, np.float64)
    predicted = np.full(len(y), -1)
    for fold in np.unique(folds):
        own = folds == fold
        predicted[own] = Logistic(x[~own], y[~own], int(y.max()) + 1).probabilities(x[own]).argmax(1)
    return predicted


def by_group(groups: np.ndarray, values: np.ndarray, most: int = 10, least: int = 3) -> np.ndarray:
    """A fold for each row, that of its group (speaker): groups of each value are dealt out evenly, so that every fold
    has all values. Raises InputError where a value has fewer than `least` groups."""
    names = {str(value): np.unique(groups[values == value]) for value in np.unique(values)}
    few = {value: found for value, found in names.items() if len(found) < least}
    if few:
        told = "; ".join(f"{value}: {', '.join(map(str, found))}" for value, found in few.items())
        raise InputError(f"a probe needs at least {least} speakers of each kind, and there are only {told}.")
    folds = min(most, *map(len, names.values()))
    place = {group: n % folds for found in names.values() for n, group in enumerate(found)}
    return np.array([place[group] for group in groups])


def whitened(x: np.ndarray, speakers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Vectors [n, D] in which what varies within a speaker counts less (WCCN, Hatch et al. 2006), learnt from the
    speakers of the other folds [n]; their within-speaker covariance is shrunk towards a multiple of the identity.

    Standardised, centred over the fold, of length 1.
    """
    made = np.empty(x.shape)
    for fold in np.unique(folds):
        own = folds == fold
        learnt, who = np.asarray(x[~own], np.float64), speakers[~own]
        mean, scale = learnt.mean(0), np.maximum(learnt.std(0), 1e-8)
        learnt, told = (learnt - mean) / scale, (x[own] - mean) / scale
        within = np.concatenate([learnt[who == name] - learnt[who == name].mean(0) for name in np.unique(who)])
        covariance = within.T @ within / len(within)
        level = np.trace(covariance) / len(covariance)
        values, axes = np.linalg.eigh((1 - SHRINK) * covariance + SHRINK * level * np.eye(len(covariance)))
        told = (told - told.mean(0)) @ (axes / np.sqrt(np.maximum(values, 1e-8)))
        made[own] = told / np.maximum(np.linalg.norm(told, axis=1, keepdims=True), 1e-12)
    return made


def equal_error(
    x: np.ndarray, speakers: np.ndarray, apart: np.ndarray, alike: Sequence[np.ndarray]
) -> tuple[float, Interval]:
    """The equal error rate of telling by the cosine similarity of x [n, D], of length 1, whether two clips are of one
    speaker, and its interval over speakers.

    apart [n]: pairs that have this in common (a sentence) are left out. alike, each [n]: only pairs that have all of
    these in common count (fold, sex).
    """
    rows = np.arange(0, len(x), -(-len(x) // CLIPS))
    x, apart = x[rows], apart[rows]
    names, who = np.unique(speakers[rows], return_inverse=True)
    one, other = np.triu_indices(len(x), 1)
    kept = apart[one] != apart[other]
    for same in alike:
        kept &= same[rows][one] == same[rows][other]
    one, other = one[kept], other[kept]
    score = np.clip(((np.einsum("nd,nd->n", x[one], x[other]) + 1) / 2 * BINS).astype(int), 0, BINS - 1)
    shape = (len(names), len(names), BINS)
    cells = np.bincount(np.ravel_multi_index((who[one], who[other], score), shape), minlength=np.prod(shape))
    cells = cells.reshape(shape).astype(float)
    own = cells[range(len(names)), range(len(names))]  # [speakers, bins]
    cells[range(len(names)), range(len(names))] = 0

    def rate(weight: np.ndarray) -> float:
        return _crossing(weight @ own, weight @ np.tensordot(weight, cells, 1))

    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=REPEATS)
    again = np.array([rate(each) for each in drawn.astype(float)])
    again = again[~np.isnan(again)]
    nothing = Interval(np.nan, np.nan)
    return rate(np.ones(len(names))), statistics.percentiles(again, len(names)) if len(again) else nothing


def _crossing(target: np.ndarray, impostor: np.ndarray) -> float:
    """Where as large a share of the pairs of one speaker lies below a threshold as of others above; NaN without any."""
    if not target.sum() or not impostor.sum():
        return np.nan
    misses = np.concatenate([[0], np.cumsum(target) / target.sum()])
    alarms = 1 - np.concatenate([[0], np.cumsum(impostor) / impostor.sum()])
    at = int(np.argmax(misses >= alarms))
    gap, before = misses[at] - alarms[at], alarms[at - 1] - misses[at - 1]
    return float(misses[at - 1] + (misses[at] - misses[at - 1]) * before / (before + gap))
