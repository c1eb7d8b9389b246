"""A small convolutional network with statistics pooling, made for corpora of some hundred clips."""

from torch import Tensor, nn

from fedser.config.schema import Count, Fraction, Positive, Share
from fedser.models.layers import PLAIN, ConvNorm, Norm, channels_last, real_frames, statistics

KERNELS, STRIDES = (5, 3, 3, 3), (2, 1, 1, 1)
POOLED = (True, True, True, False)  # the last convolution is not: what it gives is as coarse as its input
CELL = 16  # frames that a cell of the last convolution stands for
MARGIN = 3 * CELL  # frames behind a real one that its cell can still see


class StatCNN(nn.Module):
    """A 5×5 convolution of stride 2, three 3×3 convolutions, the mean over mel bins, mean and deviation over real
    frames, one fully connected layer.

    The convolutions have `width`, 2, 4 and 8 × `width` channels, no bias, and are followed by a normalisation, 2×2
    max-pooling (but for the last) and ReLU. Stride and early pooling are for speed: most time goes into what is as
    large as the input, and a training step takes less than half of what it takes with the pooling a convolution later.
    Where the mean over time of CNN-4's maxima says whether something was heard, the deviation says how much it varied,
    and neither depends on how often a short clip was repeated.
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
        self.blocks, channels = nn.Sequential(), 1
        for place, (kernel, stride, pool) in enumerate(zip(KERNELS, STRIDES, POOLED, strict=True)):
            out = width * 2**place
            self.blocks.append(ConvNorm(channels, out, kernel, False, bn_momentum, bn_eps, norm, stride, pool))
            channels = out
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, classes)

    def cut(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F] without what no real frame sees; a GPU, which would have to wait for the number, keeps it."""
        if self.local and x.device.type == "cpu":
            x = x[:, :, : -(-int(lengths.max()) // CELL) * CELL + MARGIN]
        return x

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F], the first `lengths` [B] frames real -> the input of the last layer [B, 16 · width]."""
        x = self.blocks(channels_last(x if PLAIN.get() else self.cut(x, lengths)))
        return statistics(x.mean(3), real_frames((lengths // CELL).clamp(1, x.shape[2]), x.shape[2]))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F] and real frames [B] -> logits [B, classes]."""
        return self.fc(self.dropout(self.embed(x, lengths)))
