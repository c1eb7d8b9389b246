"""Predictions → confusion matrices → recall, UAR and accuracy."""

import numpy as np


def confusion(y, predicted, classes: int) -> np.ndarray:
    """Confusion matrix [true, predicted] of counts, int64, of classes y [n] and predicted [n], both tensors."""
    cells = y.cpu().numpy() * classes + predicted.cpu().numpy()
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def recalls(matrix: np.ndarray) -> np.ndarray:
    """Recall per class [classes]; NaN for a class without test utterances."""
    counts = matrix.sum(axis=1)
    return np.divide(np.diag(matrix), counts, out=np.full(len(matrix), np.nan), where=counts > 0)


def uar(matrix: np.ndarray) -> float:
    """Unweighted average recall in [0, 1]: the mean of the per-class recalls, over the classes that occur."""
    return float(np.nanmean(recalls(matrix)))


def accuracy(matrix: np.ndarray) -> float:
    """Fraction of correct predictions in [0, 1] (weighted average recall)."""
    return float(np.trace(matrix) / matrix.sum())


# Every metric of a confusion matrix [true, predicted] that histories, summaries and records have, under its name.
METRICS = {"uar": uar, "accuracy": accuracy}
