"""A detector: each number of z for itself, by how far its mean moves under attack (LDA without covariances)."""

import numpy as np

from fedser.config.schema import Names
from fedser.detectors.detector import Detector


class Apart:
    """Sums over clean clips and over their adversarial examples → a detector that gives the alarm halfway between."""

    def __init__(self, attack: Names = ("pgd",), knowing: str | None = None):
        self.attack = attack

    def __call__(self, clean, adversarial):
        spread = (clean.scatter.diagonal() + adversarial.scatter.diagonal()) / (clean.count + adversarial.count)
        moved = adversarial.mean - clean.mean
        weights = np.where(spread > 1e-9, moved / np.maximum(spread, 1e-9), 0.0)
        middle = float(weights @ (clean.mean + adversarial.mean)) / 2
        return Detector(weights.tolist(), bias=-middle, threshold=0.0, scale=1.0)
