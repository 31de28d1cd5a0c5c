"""A robust and a plain network in one: MixedNUTS (Bai et al. 2024, "MixedNUTS: Training-free accuracy-robustness
balance via nonlinearly mixed classifiers", TMLR, arXiv 2402.02263).

    log( (1 - alpha) softmax(h_plain(x) / T) + alpha softmax(M(h_robust(x))) )
    M(h) = s sgn(u) |u|^p,   u = GELU(n(h) + c),   n(h) = (h - mean h) / std h

A robust network is surer where it is right than where it is wrong, attacked or not. M widens that gap, so that the
plain network decides where the robust one is unsure: an answer whose two largest probabilities after M differ by
(1 - alpha) / alpha or more stands, whatever the plain one says. `medfedpure.mix` joins two trained networks and
chooses s, p, c and alpha. The paper takes T = 0, a plain answer without gradient; the default, T = 1, is
differentiated exactly. That gradient makes no strong attack: where M saturates it is the plain network's alone. Attack
the robust network as well and replay what comes of it, as `medfedpure.evaluate` does (rung *member*), or a mix looks
far more robust than it is; the authors' own attack goes around M. Of two classes n(h) is -+0.707 for every h: there
`unit` stands for std h, and M changes no order of confidences, so that only alpha matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from medfedpure.core.classifier import Classifier
from medfedpure.core.config import Config
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create, registry
from medfedpure.models.mixed import Mixed, mixed, transformed

Share = Annotated[float, Field(ge=0, le=1)]


class MixChoice(Config):
    """What validation images showed when s, p, c and alpha were chosen on them, which makes it optimistic."""

    images: int = Field(ge=1, description="one of each near-duplicate group")
    attack: str = Field(description="norm, eps, steps and further conditions of all that is attacked here")
    beta: float = Field(gt=0, le=1, description="share of the robust network's right answers under attack to keep")
    stands: int = Field(ge=0, description="of these, so many stand whatever the plain network says")
    right: int = Field(ge=1, description="of the attacked images, so many does the robust network read right")
    clean: dict[str, Share] = Field(description="balanced accuracy of robust, plain and mixed")
    attacked: dict[str, Share] = Field(description="the same on attacked images, each network by its own attack")

    @model_validator(mode="after")
    def _counts_and_shares(self) -> Self:
        wanted = {"robust", "plain", "mixed"}
        if not self.clean.keys() == self.attacked.keys() == wanted or not self.stands <= self.right <= self.images:
            raise ValueError(
                "balanced accuracies of robust, plain and mixed, and stands <= right <= images, are wanted"
            )
        return self

    def describe(self) -> str:
        """Two lines for people."""
        clean, attacked = (
            ", ".join(f"{name} {share:.1%}" for name, share in of.items()) for of in (self.clean, self.attacked)
        )
        gain = "" if self.clean["mixed"] > self.clean["robust"] else "; no gain on clean images"
        return (
            f"mix chosen on {self.images} validation images, so that these figures are optimistic; balanced accuracy, "
            f"clean: {clean}; attacked: {attacked}{gain}\n{self.attack}; {self.stands} of {self.right} right answers "
            f"of the robust network under attack stand whatever the plain one says, {self.beta:.1%} were wanted"
        )


class MixedConfig(Config):
    """Which two, and how they are mixed."""

    robust: str = Field("small_cnn", description="classifier plugin of the robust network")
    robust_config: dict[str, Any] = Field(default_factory=dict, description="configuration of that plugin")
    plain: str = Field("small_cnn", description="classifier plugin of the plain network")
    plain_config: dict[str, Any] = Field(default_factory=dict, description="configuration of that plugin")
    alpha: float = Field(0.5, ge=0, le=1, description="share of the robust network")
    scale: float = Field(1.0, gt=0, le=1e6, description="s")
    power: float = Field(1.0, ge=1, le=16, description="p")
    shift: float = Field(0.0, ge=-16, le=16, description="c")
    unit: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="what centred logits are divided by; 0 = by their own deviation, as in the paper, of 3 classes up",
    )
    temperature: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="T, 0 or from 1e-6; at 0, as in the paper, the gradient is that of T = 1 and not the answer's own",
    )
    chosen: MixChoice | None = Field(None, description="what `medfedpure.mix` saw when it chose these; None by hand")

    @field_validator("robust_config", "plain_config")
    @classmethod
    def _as_json_holds_it(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Tuples as lists, so that a saved configuration equals the one it was saved from."""
        try:
            plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
        except TypeError as error:
            raise ValueError(f"texts, finite numbers, truth values, lists and tables are wanted ({error})") from error
        return plain

    @field_validator("temperature")
    @classmethod
    def _divides(cls, value: float) -> float:
        if 0 < value < 1e-6:
            raise ValueError("logits over less than 1e-6 are beyond what floats hold: take 0, the limit")
        return value

    @field_validator("robust", "plain")
    @classmethod
    def _no_mix(cls, value: str) -> str:
        if value == "mixed":
            raise ValueError("a mix of mixes grows without bound: name another classifier")
        return value


class MixedClassifier(Classifier):
    """Log-probabilities as logits."""

    Config = MixedConfig

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """Each network's configuration is brought up to date by its own plugin."""
        found = dict(config)
        for member in ("robust", "plain"):
            known = registry().load("classifier", config.get(member, "small_cnn"))
            found[f"{member}_config"] = dict(known.upgrade(config.get(f"{member}_config", {}), format))
        return found

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1] to log-probabilities `(N, K)`.

        Raises:
            ConfigError: two classes, and `unit` 0.
        """
        c = self.config
        if num_classes == 2 and c.unit == 0:
            raise ConfigError(
                "unit 0 divides centred logits by their own deviation, and two of them are then -+0.707 whatever the "
                "network says: give a unit, such as the median of the larger centred logit"
            )
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
        robust, plain = (architecture.build(**sizes) for architecture in self._members())
        return Mixed(robust, plain, alpha=c.alpha, temperature=c.temperature, **self._map())

    def transformed(self, robust: Tensor) -> Tensor:
        """M of the robust network's logits `(N, K)`."""
        return transformed(robust, **self._map())

    def mixed(self, robust: Tensor, plain: Tensor) -> Tensor:
        """Log-probabilities `(N, K)` of the logits `(N, K)` of both networks."""
        return mixed(self.transformed(robust), plain, alpha=self.config.alpha, temperature=self.config.temperature)

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """The features of both side by side, the robust network's first."""
        assert isinstance(model, Mixed)
        robust, plain = self._members()
        return torch.cat((robust.features(model.robust, images), plain.features(model.plain, images)), 1)

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """The heads of both."""
        assert isinstance(model, Mixed)
        robust, plain = self._members()
        keys = [f"robust.{key}" for key in robust.head_keys(model.robust)]
        return frozenset(keys + [f"plain.{key}" for key in plain.head_keys(model.plain)])

    def _members(self) -> tuple[Classifier, Classifier]:
        c = self.config
        return create("classifier", c.robust, c.robust_config), create("classifier", c.plain, c.plain_config)

    def _map(self) -> dict[str, float]:
        c = self.config
        return {"scale": c.scale, "power": c.power, "shift": c.shift, "unit": c.unit}
