"""ResNet-50, the deep network of Ren et al. 2020 (He et al. 2016), for one input channel."""

import torch.nn.functional as F
from torch import Tensor, nn

from fedser.config.schema import Count, Fraction, Positive
from fedser.models.layers import channels_last

STAGES = ((1, 3), (2, 4), (4, 6), (8, 3))  # channels inside a bottleneck, in widths, and how many of them
WIDER = 4  # a bottleneck puts out so many times as many


class Bottleneck(nn.Module):
    """Three convolutions, 1×1, 3×3 (with the stride) and 1×1, each with batch norm, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, **bn):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width, **bn)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, **bn)
        self.conv3, self.norm3 = nn.Conv2d(width, WIDER * width, 1, bias=False), nn.BatchNorm2d(WIDER * width, **bn)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != WIDER * width:
            convolution = nn.Conv2d(inputs, WIDER * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(WIDER * width, **bn))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, T, F] → [B, 4 · width, T / stride, F / stride]."""
        h = F.relu(self.norm1(self.conv1(x)))
        h = F.relu(self.norm2(self.conv2(h)))
        return F.relu(self.norm3(self.conv3(h)) + self.shortcut(x))


class ResNet50(nn.Module):
    """A 7×7 convolution, 16 bottlenecks in four stages, global average pooling, one fully connected layer.

    `width` is the channels of the first convolution. For 7 classes and the paper's 64: 23,516,103 parameters.
    """

    def __init__(self, classes: int, width: Count = 64, bn_momentum: Fraction = 0.1, bn_eps: Positive = 1e-5):
        super().__init__()
        bn = {"momentum": bn_momentum, "eps": bn_eps}
        self.conv, self.norm = nn.Conv2d(1, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width, **bn)
        blocks, channels = [], width
        for stage, (times, count) in enumerate(STAGES):
            for place in range(count):
                blocks.append(Bottleneck(channels, times * width, 2 if stage and not place else 1, **bn))
                channels = WIDER * times * width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> the input of the last layer [B, 32 · width]."""
        h = F.relu(self.norm(self.conv(channels_last(x))))
        return self.blocks(F.max_pool2d(h, 3, 2, padding=1)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, T, F] -> logits [B, classes]."""
        return self.fc(self.embed(x))
