"""Fisher's linear discriminant of a network's logits and embeddings: clean clips against their adversarial examples.

Fisher 1936, "The use of multiple measurements in taxonomic problems": w = S⁻¹ (m₁ − m₀), S the pooled covariance within
the two classes, m their means. All of it follows from sums, so that clients' sums give what their pooled clips would.
"""

from statistics import NormalDist
from typing import Annotated

import numpy as np
from pydantic import Field

from fedser.config.schema import Fraction, Names
from fedser.detectors.detector import Detector
from fedser.detectors.moments import Moments

CONSTANT = 1e-12  # of a dimension's mean square: a smaller variance is rounding


class LDA:
    """Sums over clean clips and over their adversarial examples → a `Detector`.

    attack: what the adversarial examples are made by: names of attacks.
    knowing: the attack that is told of the detector, measured beside the others; null for none.
    shrinkage: the share s by which the covariance within the classes is drawn towards its diagonal, (1 − s) · S + s ·
        diag S, as there are hardly more clips than dimensions. No dimension's scale, a logit's or not, counts.
    false_alarms: the share of clean clips that the threshold is to give the alarm at, where their scores are Gaussian.
    """

    def __init__(
        self,
        attack: Names = ("pgd",),
        knowing: str | None = "evading",
        shrinkage: Fraction = 0.03,
        false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.05,
    ):
        self.shrinkage, self.false_alarms = shrinkage, false_alarms

    def __call__(self, clean: Moments, adversarial: Moments) -> Detector:
        """The detector whose score is 0 halfway between the means of the two classes."""
        within = (clean.scatter + adversarial.scatter) / (clean.count + adversarial.count)
        weights = self._direction(within, adversarial.mean - clean.mean, clean.mean**2)
        bias = -float(weights @ (clean.mean + adversarial.mean)) / 2
        mean = float(weights @ clean.mean) + bias
        deviation = float(max(weights @ clean.scatter @ weights / clean.count, 0.0)) ** 0.5
        threshold = mean + deviation * NormalDist().inv_cdf(1 - self.false_alarms)
        counts = {"clean": int(clean.count), "adversarial": int(adversarial.count)}
        return Detector(weights.tolist(), bias, threshold, deviation, **counts)

    def _direction(self, within: np.ndarray, apart: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """w [D]; 0 in dimensions that are constant within the classes, such as ReLUs that no clip opens."""
        variances = within.diagonal()
        moving = variances > CONSTANT * (squares + variances)
        deviations = np.sqrt(variances[moving])
        correlations = within[np.ix_(moving, moving)] / np.outer(deviations, deviations)
        shrunk = (1 - self.shrinkage) * correlations + self.shrinkage * np.eye(len(deviations))
        weights = np.zeros_like(apart)
        weights[moving] = np.linalg.solve(shrunk, apart[moving] / deviations) / deviations
        return weights
