"""A small net trained on a task of its own, for tests of attacks that need a model worth attacking.

Its weights are committed, since a net trained anew is another one wherever the processor rounds differently:
`python tests/toy.py` trains it again (a second) and writes them.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedser.defences.randomisation import Randomise

WEIGHTS = Path(__file__).parent / "fixtures" / "toy.safetensors"
WAVES = torch.tensor([[0.0, 1.6], [1.6, 0.0], [1.1, 1.1], [1.1, -1.1]])  # of the four classes, rad per cell


class Toy(nn.Module):
    """Four classes of waves, told apart wherever they lie and however they are stretched a little."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.norm(self.first(x)).relu(), 2)
        return self.fc(self.second(x).relu().mean(dim=(2, 3)))


def waves(n, seed):
    """x [n, 1, 20, 8] of waves in noise, y [n]; the same for the same seed."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=draws)
    cells = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(8.0), indexing="ij"))
    phase = 6.283 * torch.rand(n, 1, 1, generator=draws)
    x = torch.sin(torch.einsum("nk,kij->nij", WAVES[y], cells) + phase)
    return (x + torch.randn(n, 20, 8, generator=draws)).unsqueeze(1), y


def randomisation():
    """A defence to wear at inference, on 20 × 8 cells."""
    return Randomise(frames=(20, 24), mels=(8, 11), size=(23, 10), value=0.5)


def train():
    """The net after a second of training, half of its batches under the randomisation."""
    torch.manual_seed(0)
    net, wear = Toy(), randomisation()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(60):
        x, y = waves(128, 1000 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(wear(x) if step % 2 else x), y).backward()
        optimizer.step()
    return net


def trained():
    """The trained net in eval mode, a new object each time."""
    net = Toy()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def right(n, seed):
    """The first n of many waves that the trained net classifies correctly: x [n, 1, 20, 8], y [n]."""
    x, y = waves(2 * n + 10, seed)
    with torch.no_grad():
        rows = (trained()(x).argmax(1) == y).nonzero()[:n, 0]
    return x[rows], y[rows]


@torch.no_grad()
def accuracy(model, x, y):
    """The share of x that `model` classifies as y."""
    return (model(x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file(train().state_dict(), WEIGHTS)
