"""Conditions × attacks → confusion matrices → UAR.

A condition is `original`, `randomised`, `adversarial/<attack>` or `randomised_adversarial/<attack>` (Chang et al. 2022,
Table 3). Adversarial examples are made on the undefended model and then randomised: an attacker who does not know
of the randomisation.
"""

import numpy as np
import torch
from torch import Tensor, nn

from fedser.randomness import derive, generator


def conditions(attacks, randomised: bool) -> list[str]:
    """The conditions that these attack names and an inference-time defence ask for, in Table 3's order."""
    names = ["original", *(["randomised"] if randomised else [])]
    names += [f"adversarial/{attack}" for attack in attacks]
    return names + [f"randomised_adversarial/{attack}" for attack in attacks if randomised]


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Predicted classes [n] of inputs [n, 1, frames, mels], in eval mode."""
    model.eval()
    if not len(x):
        return torch.empty(0, dtype=torch.long)
    return torch.cat([model(chunk).argmax(dim=1).cpu() for chunk in x.split(batch_size)])


def confusion(y: Tensor, predicted: Tensor, classes: int) -> np.ndarray:
    """Confusion matrix [true, predicted] of counts, int64."""
    cells = y.cpu().numpy() * classes + predicted.cpu().numpy()
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def evaluate(model, x: Tensor, y: Tensor, *, classes, attacks, randomise, batch_size, seed) -> dict[str, np.ndarray]:
    """Confusion matrices of one client's test set in every condition.

    `attacks` maps names to adversaries, `randomise` is the inference-time defence or None; `seed` is an int from which
    every draw derives, so that conditions do not disturb each other.
    """

    def randomised(inputs: Tensor, condition: str) -> Tensor:
        return randomise(inputs, generator(seed, "randomise", condition))

    predictions = {"original": predict(model, x, batch_size)}
    versions = {"original": x}
    for name, adversary in attacks.items():
        batches = zip(x.split(batch_size), y.split(batch_size), predictions["original"].split(batch_size), strict=True)
        made = [
            adversary(model, inputs, labels, derive(seed, name, number), predictions=predicted.to(x.device))
            for number, (inputs, labels, predicted) in enumerate(batches)
        ]
        versions[f"adversarial/{name}"] = torch.cat(made)
    results = {}
    for condition in conditions(attacks, randomise is not None):
        if condition not in predictions:
            base = condition.replace("randomised_", "").replace("randomised", "original")
            inputs = versions[base] if condition == base else randomised(versions[base], condition)
            predictions[condition] = predict(model, inputs, batch_size)
        results[condition] = confusion(y, predictions[condition], classes)
    return results


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
