"""A network: two linear layers on the mean of each mel bin over the frames that are real."""

import torch
from torch import nn


class MeanNet(nn.Module):
    def __init__(self, classes: int, hidden: int = 32, mels: int = 64):
        super().__init__()
        self.mels = nn.AdaptiveAvgPool1d(mels)  # inputs come in other sizes too, once they are randomised
        self.layers = nn.Sequential(nn.Linear(mels, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x, lengths):
        """x [B, 1, T, F], of whose frames the first `lengths` [B] are real → logits [B, classes]."""
        real = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
        return self.layers(self.mels((x[:, 0] * real[:, :, None]).sum(1) / lengths[:, None]))
