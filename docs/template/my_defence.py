"""A defence at inference: Gaussian noise on what is classified."""

import torch
from torch import nn


class Noise(nn.Module):
    def __init__(self, sigma: float = 0.1):
        super().__init__()
        self.sigma = sigma

    def forward(self, x, generator=None):
        """x [B, 1, T, F] with fresh noise, drawn on the CPU so that every device has the same."""
        return x + self.sigma * torch.randn(x.shape, generator=generator).to(x)
