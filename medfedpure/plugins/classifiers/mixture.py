"""A mixture of experts of one architecture, as personalized federations train it (Marfoq et al. 2021, "Federated
multi-task learning under a mixture of distributions", arXiv 2108.10252).

    p(y | x) = sum_k pi_k(x) softmax_k(x)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from medfedpure.core.classifier import Classifier
from medfedpure.core.config import Config
from medfedpure.core.registry import create, registry
from medfedpure.models.mixture import Gate, Mixture


class MixtureConfig(Config):
    """What is mixed, and by what."""

    expert: str = Field("small_cnn", description="classifier plugin of the experts")
    expert_config: dict[str, Any] = Field(default_factory=dict, description="configuration of that plugin")
    experts: int = Field(3, ge=1, le=64, description="how many experts")
    gate: bool = Field(False, description="weights from a network on the image, not one set for all images")
    gate_width: int = Field(32, ge=1, le=4096, description="hidden units of the gate")

    @field_validator("expert_config")
    @classmethod
    def _as_json_holds_it(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Tuples as lists, so that a saved configuration equals the one it was saved from."""
        try:
            plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
        except TypeError as error:
            raise ValueError(f"texts, finite numbers, truth values, lists and tables are wanted ({error})") from error
        return plain

    @field_validator("expert")
    @classmethod
    def _no_mixture(cls, value: str) -> str:
        if value == "mixture":
            raise ValueError("a mixture of mixtures grows without bound: name another classifier as the expert")
        return value


class MixtureClassifier(Classifier):
    """Experts of one architecture, weighted alike for all images or by a gate; log-probabilities as logits."""

    Config = MixtureConfig

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """The experts' configuration is brought up to date by their own plugin."""
        expert = registry().load("classifier", config.get("expert", "small_cnn"))
        return {**config, "expert_config": dict(expert.upgrade(config.get("expert_config", {}), format))}

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1] to logits `(N, K)`."""
        config = self.config
        architecture = self._architecture()
        experts = [
            architecture.build(in_channels=in_channels, num_classes=num_classes, image_size=image_size)
            for _ in range(config.experts)
        ]
        return Mixture(experts, Gate(in_channels, config.experts, config.gate_width) if config.gate else None)

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """The experts' features side by side."""
        assert isinstance(model, Mixture)
        architecture = self._architecture()
        return torch.cat([architecture.features(expert, images) for expert in model.experts], 1)

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """The experts' heads, and what weighs the experts."""
        assert isinstance(model, Mixture)
        architecture = self._architecture()
        heads = {
            f"experts.{place}.{key}"
            for place, expert in enumerate(model.experts)
            for key in architecture.head_keys(expert)
        }
        return frozenset(heads | {key for key in model.state_dict() if not key.startswith("experts.")})

    def _architecture(self) -> Classifier:
        architecture: Classifier = create("classifier", self.config.expert, self.config.expert_config)
        return architecture
