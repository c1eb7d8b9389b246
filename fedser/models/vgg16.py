"""VGG-16, the large network of Ren et al. 2020."""

from torch import Tensor, nn

from fedser.config.schema import Count, Fraction, Positive
from fedser.models.layers import channels_last
from fedser.models.vgg15 import BLOCKS, convolutions


class VGG16(nn.Module):
    """The 13 convolutions of VGG-15 without bias, global max-pooling, one fully connected layer.

    `width` is the channels of the first block. For 7 classes and the paper's 64: 14,721,351 parameters.
    """

    def __init__(self, classes: int, width: Count = 64, bn_momentum: Fraction = 0.1, bn_eps: Positive = 1e-5):
        super().__init__()
        self.blocks = convolutions(False, bn_momentum, bn_eps, width)
        self.fc = nn.Linear(BLOCKS[-1][-1] * width, classes)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> the input of the last layer [B, 8 · width]."""
        return self.blocks(channels_last(x)).amax(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> logits [B, classes]."""
        return self.fc(self.embed(x))
