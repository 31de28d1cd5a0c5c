"""Any timm model behind a normalization layer."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from medfedpure.models.small_cnn import Normalize


class TimmClassifier(nn.Module):
    """A timm model that reads images in [0, 1]; `head` is the model's own classifier layer."""

    def __init__(self, model_name: str, in_channels: int, num_classes: int, **options: Any) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels)
        self.backbone = timm.create_model(
            model_name, pretrained=False, in_chans=in_channels, num_classes=num_classes, **options
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)`."""
        logits: Tensor = self.backbone(self.normalize(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """`(N, F)`, what timm calls the pre-logits."""
        maps = self.backbone.forward_features(self.normalize(images))
        features: Tensor = self.backbone.forward_head(maps, pre_logits=True)
        return features.flatten(1)

    def head_keys(self) -> frozenset[str]:
        """Keys of timm's classifier layers: distilled transformers have two."""
        named = self.backbone.default_cfg["classifier"]
        heads = [f"backbone.{name}." for name in ([named] if isinstance(named, str) else named)]
        return frozenset(key for key in self.state_dict() if key.startswith(tuple(heads)))
