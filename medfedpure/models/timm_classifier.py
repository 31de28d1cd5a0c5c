"""Any timm model behind the layers that fit images to it: size, channels, normalization."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import timm
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.classifier import Classifier
from medfedpure.core.errors import ConfigError
from medfedpure.models.small_cnn import Normalize

InputSize = Annotated[int | None, Field(ge=16, le=4096)]


class TimmClassifier(nn.Module):
    """A timm model that reads images in [0, 1]; `head` is the model's own classifier layer.

    Args:
        model_name: known to timm.
        in_channels: C of the images.
        num_classes: K.
        input_size: pixels to which the network itself resizes its images (bilinear, antialiased where they shrink), so
            that a perturbation stays bounded in the images' own pixels and gradients flow through; None leaves them.
        imagenet_input: as published weights want it: grey is repeated to three channels, and these are normalized by
            the mean and standard deviation that timm states for the model.
        channels_last: convolve in that memory format; faster on CPUs where convolutions are depthwise.
        **options: of timm's model.

    Raises:
        ConfigError: `imagenet_input` for images that are neither grey nor in three channels.
    """

    def __init__(
        self,
        model_name: str,
        in_channels: int,
        num_classes: int,
        *,
        input_size: int | None = None,
        imagenet_input: bool = False,
        channels_last: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if imagenet_input and in_channels not in (1, 3):
            raise ConfigError(
                f"imagenet_input wants grey images or three channels; these have {in_channels}: set it to false"
            )
        self.input_size, self.imagenet_input, self.channels_last = input_size, imagenet_input, channels_last
        channels = 3 if imagenet_input else in_channels
        self.normalize = Normalize(channels)
        self.backbone = timm.create_model(
            model_name, pretrained=False, in_chans=channels, num_classes=num_classes, **options
        )
        if imagenet_input:
            stated = self.backbone.default_cfg
            self.normalize.set(stated["mean"], stated["std"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)` of `(N, C, H, W)`."""
        logits: Tensor = self.backbone(self._prepared(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """`(N, F)`, what timm calls the pre-logits."""
        maps = self.backbone.forward_features(self._prepared(images))
        features: Tensor = self.backbone.forward_head(maps, pre_logits=True)
        return features.flatten(1)

    def head_keys(self) -> frozenset[str]:
        """Keys of timm's classifier layers: distilled transformers have two."""
        named = self.backbone.default_cfg["classifier"]
        heads = [f"backbone.{name}." for name in ([named] if isinstance(named, str) else named)]
        return frozenset(key for key in self.state_dict() if key.startswith(tuple(heads)))

    def _prepared(self, images: Tensor) -> Tensor:
        size = self.input_size
        if size is not None and tuple(images.shape[2:]) != (size, size):
            smaller = size < min(images.shape[2:])
            images = functional.interpolate(
                images, size=(size, size), mode="bilinear", align_corners=False, antialias=smaller
            )
        if self.imagenet_input and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        images = self.normalize(images)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


class TimmArchitecture(Classifier):
    """What architectures around a timm model share; they write `build`, which gives a `TimmClassifier`."""

    weights_prefix: ClassVar[str] = "backbone."

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """`(N, F)`, timm's pre-logits."""
        assert isinstance(model, TimmClassifier)
        return model.features(images)

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """Keys of timm's classifier layers: distilled transformers have two."""
        assert isinstance(model, TimmClassifier)
        return model.head_keys()
