"""A time-delay network with statistics pooling, after the x-vector (Snyder et al. 2018): small, and cheap on a CPU."""

from torch import Tensor, nn
from torch.nn import functional

from fedser.config.schema import Count, Share
from fedser.models.layers import PLAIN, FrameNorm, Norm, real_frames, statistics

CONTEXT = ((5, 1), (3, 2), (3, 3), (1, 1))  # kernel and dilation of each convolution over time
STRIDE = 2  # of the first


class TDNN(nn.Module):
    """Four convolutions over time, mean and deviation over the real frames, one fully connected layer.

    Each convolution has `width` channels and is followed by a normalisation and ReLU; the first keeps every second
    frame. Frames behind the real ones are zeros to every convolution and nothing to the pooling: what lies there
    changes no logit. An input of another height than `mels`, as the randomisation makes them, is resized to it.
    """

    def __init__(self, classes: int, mels: Count = 64, width: Count = 64, norm: Norm = "batch", dropout: Share = 0.2):
        super().__init__()
        self.mels = mels
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for place, (kernel, dilation) in enumerate(CONTEXT):
            inputs, stride, padding = (width, 1, kernel // 2 * dilation) if place else (mels, STRIDE, kernel // 2)
            self.convolutions.append(nn.Conv1d(inputs, width, kernel, stride, padding, dilation))
            self.norms.append(FrameNorm(width, norm))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def cut(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F] up to the last real frame."""
        return x[:, :, : int(lengths.max())]

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F], the first `lengths` [B] frames real -> the input of the last layer [B, 2 · width]."""
        x = x if PLAIN.get() else self.cut(x, lengths)
        if x.shape[3] != self.mels:
            x = functional.interpolate(x, (x.shape[2], self.mels), mode="bilinear")
        h, real = x[:, 0].transpose(1, 2), real_frames(lengths, x.shape[2])
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = functional.relu(norm(convolution(h * real)))
            real = real[:, :, :: convolution.stride[0]]
        return statistics(h, real)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, 1, T, F] and real frames [B] -> logits [B, classes]."""
        return self.fc(self.dropout(self.embed(x, lengths)))
