"""A small convolutional network that trains in seconds on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """[0, 1] images to roughly zero mean and unit variance: (x - mean) / std, per channel."""

    def __init__(self, channels: int, mean: float = 0.25, std: float = 0.25) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), mean))
        self.register_buffer("std", torch.full((1, channels, 1, 1), std))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """One mean and one standard deviation for each channel."""
        self.get_buffer("mean").copy_(torch.tensor(mean).view(1, -1, 1, 1))
        self.get_buffer("std").copy_(torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` normalized."""
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


class SmallConvNet(nn.Module):
    """Convolution blocks that halve the resolution, mean and maximum over space, and a linear head.

    The maximum keeps a small lesion from being averaged away.

    Args:
        in_channels: C.
        num_classes: K.
        widths: channels of each block.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels)
        layers: list[nn.Module] = []
        before = in_channels
        for width in widths:
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)`."""
        maps = self.body(self.normalize(images))
        logits: Tensor = self.head(torch.cat((maps.mean((2, 3)), maps.amax((2, 3))), dim=1))
        return logits
