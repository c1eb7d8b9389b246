"""A small network that listens to waveforms: a frozen filter bank with two layers of states, and a trained head."""

import torch
from torch import nn

from fedser.models.layers import real_frames

LAYERS, WIDTH, HOP, WINDOW = 2, 6, 160, 400


class Ear(nn.Module):
    """x [B, 1, samples, 1], or its own states [B, 2, frames, 6], and how many of them are real → logits [B, classes]."""

    layers, width, least = LAYERS, WIDTH, WINDOW

    def __init__(self, classes: int, tune: str = "frozen", seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv1d(1, WIDTH, WINDOW, HOP), nn.Linear(WIDTH, WIDTH)
        self.requires_grad_(tune == "all")
        self.frozen, self.origin = tune == "frozen", {"seed": seed}
        self.mix, self.hidden, self.fc = nn.Parameter(torch.zeros(2)), nn.Linear(WIDTH, 16), nn.Linear(16, classes)
        self.register_buffer("calls", torch.zeros(1), persistent=False)
        self.pools = False

    def frames(self, lengths):
        return (lengths - WINDOW) // HOP + 1

    def states(self, x, lengths):
        if x.shape[3] == WIDTH:
            return x, lengths
        self.calls += len(x)
        real, frames = (torch.arange(x.shape[2]) < lengths[:, None])[:, None], self.frames(lengths)
        first = self.first(x[..., 0] * real * 30).tanh().transpose(1, 2)
        states = torch.stack([first, self.second(first).tanh()], 1)
        return states * real_frames(frames, states.shape[2])[..., None], frames

    def embed(self, x, lengths):
        states, frames = self.states(x, lengths)
        mixed = self.hidden((states * self.mix.softmax(0)[:, None, None]).sum(1)).relu()
        return (mixed * real_frames(frames, mixed.shape[1]).transpose(1, 2)).sum(1) / frames[:, None]

    def forward(self, x, lengths):
        return self.fc(self.embed(x, lengths))
