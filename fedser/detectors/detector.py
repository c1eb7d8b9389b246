"""A fitted detector, and a model that it watches."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from fedser.models.embedding import described
from fedser.models.lengths import logits


@dataclass(frozen=True)
class Detector:
    """The score w · z + b of z, a network's logits [K] and embedding [D] of a clip; above the threshold it is an alarm.

    weights: w [K + D]; bias: b.
    threshold, scale: of scores: where the alarm begins, and the standard deviation of clean clips' scores.
    clean, adversarial: how many clips of each it was fitted to.
    """

    weights: list[float]
    bias: float
    threshold: float
    scale: float
    clean: int = 0
    adversarial: int = 0

    def plain(self) -> dict:
        """As it travels to the clients: `Detector(**plain)`."""
        return asdict(self)

    def score(self, z: Tensor) -> Tensor:
        """The scores [B] of z [B, K + D], in its precision: autocast would take a matrix product to bf16."""
        return (z * z.new_tensor(self.weights)).sum(1) + self.bias


class Watched(nn.Module):
    """A model that a detector watches, as an attacker who knows of both sees it: x [B, 1, T, F] → logits [B, K]."""

    def __init__(self, model: nn.Module, detector: Detector):
        super().__init__()
        self.model = model
        self.detector = detector

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return logits(self.model, x, lengths)

    def watched(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and suspicion [B] by one pass: a score's distance above the threshold, over `scale`."""
        scores, embedding = described(self.model, x, lengths)
        above = self.detector.score(torch.cat([scores, embedding], dim=1)) - self.detector.threshold
        return scores, above / max(self.detector.scale, 1e-12)
