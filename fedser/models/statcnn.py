"""A small convolutional network with statistics pooling, made for corpora of some hundred clips."""

import itertools

from torch import Tensor, nn

from fedser.config.schema import Count, Fraction, Positive, Share
from fedser.models.layers import ConvNorm, Norm, channels_last, convolved, real_frames, statistics

STEM, STRIDE = 5, 2  # the first convolution's kernel and stride
BLOCKS = 3
CELL = STRIDE * 2**BLOCKS  # frames that the last block has made one of
MARGIN = 2 * CELL  # frames behind a real one that it can still see, and a cell


class StatCNN(nn.Module):
    """A 5×5 convolution of stride 2, three 3×3 convolutions, the mean over mel bins, mean and deviation over real
    frames, one fully connected layer.

    The convolutions have `width`, 2, 4 and 8 × `width` channels, no bias, and are followed by a normalisation and ReLU,
    those of 3×3 by 2×2 max-pooling. The stride is for speed: most time goes into what is as large as the input (a
    training step takes half as long as with a 3×3 convolution and pooling in its place). Where the mean over time of
    CNN-4's maxima says whether something was heard, the deviation says how much it varied, and neither depends on how
    often a short clip was repeated.
    """

    def __init__(
        self,
        classes: int,
        width: Count = 16,
        norm: Norm = "batch",
        dropout: Share = 0.2,
        bn_momentum: Fraction = 0.1,
        bn_eps: Positive = 1e-5,
    ):
        super().__init__()
        self.local = norm == "batch"  # the others normalise over all of a clip's frames
        channels = [width * 2**block for block in range(BLOCKS + 1)]
        self.stem = ConvNorm(1, width, STEM, False, bn_momentum, bn_eps, norm, STRIDE)
        self.blocks = nn.ModuleList(
            ConvNorm(before, after, 3, False, bn_momentum, bn_eps, norm)
            for before, after in itertools.pairwise(channels)
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels[-1], classes)

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F], the first `lengths` [B] frames real -> the input of the last layer [B, 16 · width]."""
        if self.local and x.device.type == "cpu":  # what no real frame sees; a GPU would have to wait for the number
            x = x[:, :, : -(-int(lengths.max()) // CELL) * CELL + MARGIN]
        x = convolved(self.blocks, self.stem(channels_last(x)))
        return statistics(x.mean(3), real_frames((lengths // CELL).clamp(1, x.shape[2]), x.shape[2]))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F] and real frames [B] -> logits [B, classes]."""
        return self.fc(self.dropout(self.embed(x, lengths)))
