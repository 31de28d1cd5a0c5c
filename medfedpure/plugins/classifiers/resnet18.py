"""ResNet-18 (He et al. 2016, "Deep residual learning for image recognition"), the paper's classifier."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.classifier import Classifier
from medfedpure.core.config import Config
from medfedpure.models.timm_classifier import TimmClassifier


class ResNet18Config(Config):
    """The stem decides how early the resolution falls."""

    stem: Literal["auto", "small", "medium", "large"] = Field(
        "auto",
        description='"large": 7x7, stride 2, and pooling; "medium": 3x3, stride 2; "small": 3x3, stride 1; '
        "auto: small below 96 px, else large",
    )


class ResNet18(Classifier):
    """timm's resnet18, untrained, with a stem that suits the image size."""

    Config = ResNet18Config

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1] to logits `(N, K)`."""
        model = TimmClassifier("resnet18", in_channels, num_classes)
        stem = self.config.stem
        if stem == "auto":
            stem = "small" if image_size < 96 else "large"
        if stem != "large":
            width, stride = model.backbone.conv1.out_channels, 2 if stem == "medium" else 1
            model.backbone.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
            model.backbone.maxpool = nn.Identity()
        return model

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """`(N, 512)`, the pooled maps."""
        assert isinstance(model, TimmClassifier)
        return model.features(images)

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """Keys of the last linear layer."""
        assert isinstance(model, TimmClassifier)
        return model.head_keys()
