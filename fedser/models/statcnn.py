"""A small convolutional network with statistics pooling, made for corpora of some hundred clips."""

import itertools

from torch import Tensor, nn

from fedser.config.schema import Count, Fraction, Positive, Share
from fedser.models.layers import ConvNorm, Norm, convolved, real_frames, statistics

BLOCKS = 4
CELL = 2**BLOCKS  # frames that the last block has made one of
MARGIN = 2 * CELL  # frames behind a real one that it can still see, and a cell


class StatCNN(nn.Module):
    """Four 3×3 convolutions, the mean over mel bins, mean and deviation over real frames, one fully connected layer.

    The convolutions have `width`, 2, 4 and 8 × `width` channels, no bias, and are followed by a normalisation, ReLU and
    2×2 max-pooling. Where the mean over time of CNN-4's maxima says whether something was heard, the deviation says how
    much it varied, and neither depends on how often a short clip was repeated.
    """

    def __init__(
        self,
        classes: int,
        width: Count = 8,
        norm: Norm = "batch",
        dropout: Share = 0.2,
        bn_momentum: Fraction = 0.1,
        bn_eps: Positive = 1e-5,
    ):
        super().__init__()
        self.local = norm == "batch"  # the others normalise over all of a clip's frames
        channels = [1, *(width * 2**block for block in range(BLOCKS))]
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
        x = convolved(self.blocks, x)
        return statistics(x.mean(3), real_frames((lengths // CELL).clamp(1, x.shape[2]), x.shape[2]))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F] and real frames [B] -> logits [B, classes]."""
        return self.fc(self.dropout(self.embed(x, lengths)))
