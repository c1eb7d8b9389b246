"""CNN-4, the small network of Ren et al. 2020."""

from torch import Tensor, nn

from fedser.config.schema import Count, Fraction, Positive
from fedser.models.layers import ConvNorm, Norm, channels_last


class CNN4(nn.Module):
    """Four convolutions, global max-pooling, one fully connected layer.

    Each convolution is 5×5 without bias (batch norm adds one), with `width`, 2, 4 and 8 × `width` channels, followed
    by a normalisation, ReLU and 2×2 max-pooling. Width 64 with batch norm is Ren et al.'s network: 4,307,911 parameters
    for 7 classes.
    """

    def __init__(
        self,
        classes: int,
        width: Count = 64,
        bn_momentum: Fraction = 0.1,
        bn_eps: Positive = 1e-5,
        norm: Norm = "batch",
    ):
        super().__init__()
        self.blocks = nn.Sequential()
        channels = 1
        for out in (width, 2 * width, 4 * width, 8 * width):
            self.blocks.append(ConvNorm(channels, out, 5, False, bn_momentum, bn_eps, norm, pool=True))
            channels = out
        self.fc = nn.Linear(channels, classes)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> the input of the last layer [B, 8 · width]."""
        return self.blocks(channels_last(x)).amax(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> logits [B, classes]."""
        return self.fc(self.embed(x))
