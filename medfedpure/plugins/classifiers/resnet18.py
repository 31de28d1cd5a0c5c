"""ResNet-18 (He et al. 2016, "Deep residual learning for image recognition"), the paper's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.disk.weights import Origin
from medfedpure.core.errors import ConfigError
from medfedpure.models.imagenet import imagenet_weights
from medfedpure.models.timm_classifier import InputSize, TimmArchitecture, TimmClassifier


class ResNet18Config(Config):
    """The stem decides how early the resolution falls."""

    stem: Literal["auto", "small", "medium", "large"] = Field(
        "auto",
        description='"large": 7x7, stride 2, and pooling; "medium": 3x3, stride 2; "small": 3x3, stride 1; '
        "auto: small below 96 px, else large",
    )
    input_size: InputSize = Field(None, description="pixels to which the network resizes its images; none: their own")
    imagenet_input: bool = Field(
        False, description="grey repeated to three channels, normalized as ImageNet weights want it"
    )


class ResNet18(TimmArchitecture):
    """timm's resnet18, untrained unless `weights` says otherwise, with a stem that suits the image size."""

    Config = ResNet18Config

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1] to logits `(N, K)`."""
        c = self.config
        model = TimmClassifier(
            "resnet18", in_channels, num_classes, input_size=c.input_size, imagenet_input=c.imagenet_input
        )
        stem = c.stem
        if stem == "auto":
            stem = "small" if (c.input_size or image_size) < 96 else "large"
        if stem != "large":
            width, stride = model.backbone.conv1.out_channels, 2 if stem == "medium" else 1
            model.backbone.conv1 = nn.Conv2d(model.backbone.conv1.in_channels, width, 3, stride, padding=1, bias=False)
            model.backbone.maxpool = nn.Identity()
        return model

    def imagenet_weights(self) -> tuple[Mapping[str, Tensor], Origin]:
        """timm's own, from its hub.

        Raises:
            ConfigError: the configuration has not `imagenet_input`.
        """
        if not self.config.imagenet_input:
            raise ConfigError("ImageNet weights want their own input: set imagenet_input=true in the configuration")
        return imagenet_weights("resnet18", {})
