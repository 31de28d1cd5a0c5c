"""A small convolutional classifier for small images and CPUs: convolutions with batch norm (arXiv 1502.03167)."""

from typing import Annotated

from pydantic import Field
from torch import nn

from medfedpure.core.classifier import Classifier
from medfedpure.core.config import Config
from medfedpure.models.small_cnn import SmallConvNet

Width = Annotated[int, Field(ge=1, le=4096)]


class SmallCNNConfig(Config):
    """Shape of the network."""

    widths: tuple[Width, ...] = Field(
        (24, 48, 96, 128), min_length=1, max_length=12, description="channels of each block"
    )


class SmallCNN(Classifier):
    """Blocks of two 3x3 convolutions that halve the resolution, mean and maximum over space, a linear head."""

    Config = SmallCNNConfig

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:  # noqa: ARG002
        """`(N, C, H, W)` in [0, 1], any size of at least 16, to logits `(N, K)`."""
        return SmallConvNet(in_channels, num_classes, self.config.widths)
