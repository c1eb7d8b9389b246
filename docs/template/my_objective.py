"""An objective: cross-entropy with smoothed labels, on inputs with noise that is drawn once a round."""

import torch
from torch.nn import functional

from fedser.models.lengths import logits
from fedser.training.objective import CrossEntropy


class Smoothed(CrossEntropy):
    def __init__(self, smoothing: float = 0.1, noise: float = 0.1):
        self.smoothing, self.noise = smoothing, noise

    def start_round(self, model, samples, *, round, seed):
        draws = torch.randn(samples.x.shape, generator=torch.Generator().manual_seed(seed))
        samples.x.add_(self.noise * draws.to(samples.x))
        return samples

    def __call__(self, model, batch, step):
        scores = logits(model, batch.x, batch.lengths).float()
        each = functional.cross_entropy(scores, batch.y, label_smoothing=self.smoothing, reduction="none")
        return (each * batch.weight).mean()
