"""Any timm model as a classifier (Wightman 2019, PyTorch Image Models)."""

from __future__ import annotations

from typing import Any

import timm
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.classifier import Classifier
from medfedpure.core.config import Config
from medfedpure.core.errors import ConfigError
from medfedpure.models.timm_classifier import TimmClassifier


class TimmConfig(Config):
    """Which model, and options of its own."""

    model: str = Field("resnet18", description="a name known to timm.list_models()")
    options: dict[str, Any] = Field(default_factory=dict, description="passed on to timm.create_model")
    set_image_size: bool = Field(False, description="pass img_size, which vision transformers need")


class Timm(Classifier):
    """Untrained weights; normalization is a layer of the network."""

    Config = TimmConfig

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1] to logits `(N, K)`.

        Raises:
            ConfigError: timm does not know the model.
        """
        config = self.config
        if config.model not in timm.list_models():
            near = ", ".join(timm.list_models(f"*{config.model}*")[:5]) or "see timm.list_models()"
            raise ConfigError(f"timm knows no model named {config.model!r}; nearest: {near}")
        size = {"img_size": image_size} if config.set_image_size else {}
        return TimmClassifier(config.model, in_channels, num_classes, **size, **config.options)

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """`(N, F)`, timm's pre-logits."""
        assert isinstance(model, TimmClassifier)
        return model.features(images)

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """Keys of timm's classifier layer."""
        assert isinstance(model, TimmClassifier)
        name = model.head_name()
        return frozenset(key for key in model.state_dict() if key.startswith(f"{name}."))
