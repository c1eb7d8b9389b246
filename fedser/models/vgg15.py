"""VGG-15, the network of Chang et al. 2022 (§6.2)."""

from torch import Tensor, nn

from fedser.config.schema import Fraction, Positive
from fedser.models.layers import ConvNorm, channels_last

BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels in widths


def convolutions(bias: bool, bn_momentum: float, bn_eps: float, width: int = 64) -> nn.Sequential:
    """The five blocks of 3×3 convolutions, each followed by batch norm and ReLU; the last of a block is halved."""
    blocks, channels = nn.Sequential(), 1
    for widths in BLOCKS:
        layers = nn.Sequential()
        for times in widths:
            last = len(layers) == len(widths) - 1
            layers.append(ConvNorm(channels, times * width, 3, bias, bn_momentum, bn_eps, pool=last))
            channels = times * width
        blocks.append(layers)
    return blocks


class VGG15(nn.Module):
    """13 convolutions in five blocks, global average pooling, two fully connected layers.

    Each convolution is 3×3 with bias, followed by batch norm and ReLU; each block ends in 2×2 max-pooling.
    For 7 classes: 14,855,111 parameters and 8,448 running statistics, 59.45 MB in float32; 7.2 GMAC at 373×64.

    `bn_momentum` is torch's (Keras writes 1 - it). In train mode an input so small that the last block sees a single
    cell needs a batch of at least two: batch norm has nothing to normalise over otherwise.
    """

    def __init__(self, classes: int, bn_momentum: Fraction = 0.01, bn_eps: Positive = 1e-3):
        super().__init__()
        self.blocks = convolutions(True, bn_momentum, bn_eps)
        self.hidden = nn.Sequential(nn.Linear(512, 256), nn.ReLU())
        self.fc = nn.Linear(256, classes)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> the input of the last layer [B, 256]."""
        return self.hidden(self.blocks(channels_last(x)).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> logits [B, classes]."""
        return self.fc(self.embed(x))
