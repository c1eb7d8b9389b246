"""What is trained on top of a backbone's hidden states (as in Trust-SER, Feng et al. 2023)."""

from typing import Literal

import torch
from torch import Tensor, nn

from fedser.models.layers import real_frames

Pooling = Literal["mean", "attention"]


class Head(nn.Module):
    """States [B, L, T, width] and real frames [B] → a vector [B, hidden] for each clip.

    A softmax-weighted sum of the states; `layers` pointwise convolutions with ReLU and dropout; the mean over real
    frames, or one weighted by attention, softmax over time of v · tanh(W h) (Lin et al. 2017); a fully connected layer
    with ReLU.
    """

    def __init__(self, states: int, width: int, hidden: int, layers: int, pooling: Pooling, dropout: float):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(states))
        self.convolutions = nn.Sequential()  # a fully connected layer on each frame is a pointwise convolution
        for _ in range(layers):
            self.convolutions.extend([nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)])
            width = hidden
        self.attention = None
        if pooling == "attention":
            self.attention = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        h = torch.einsum("bltw,l->btw", states, self.mix.softmax(0).to(states.dtype))
        h = self.convolutions(h)
        real = real_frames(frames, h.shape[1])  # [B, 1, T]
        weights = real.transpose(1, 2) / frames[:, None, None] if self.attention is None else self._attention(h, real)
        return self.mlp((weights * h).sum(1))

    def _attention(self, h: Tensor, real: Tensor) -> Tensor:
        scores = self.attention(h).float()
        return scores.masked_fill(real.transpose(1, 2) == 0, -torch.inf).softmax(1)
