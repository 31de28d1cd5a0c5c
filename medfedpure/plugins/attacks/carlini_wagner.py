"""The attack of Carlini and Wagner (2017, arXiv 1608.04644), through ART.

    min over w of  d(x', x) + c * max( logit of the true class - largest other logit + confidence, 0 ),
    x' = (tanh(w) + 1) / 2, so that it stays in [0, 1]

In l2, d is the squared distance and c is searched for each image. In linf, d is what every pixel changes beyond a
bound, and the bound shrinks for as long as the model is fooled.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.attack import ThreatView
from medfedpure.core.config import Config
from medfedpure.plugins.attacks.art import ArtAttack
from medfedpure.plugins.attacks.gradient import margin

LARGE, USUAL = 100.0, 10.0
"""A median margin above the first is brought to the second."""


class CarliniWagnerConfig(Config):
    """The distance to be small, and how long to search."""

    norm: Literal["l2", "linf"] = Field("l2", description="the distance to be small; linf attacks one image at a time")
    confidence: float = Field(0.0, ge=0, description="by how much the wrong logit must lead")
    steps: int = Field(20, ge=1, description="gradient steps of each search step")
    learning_rate: float = Field(0.01, gt=0, description="size of the first gradient step, in w")
    search_steps: int = Field(8, ge=1, description="l2 only: values of c that are tried for each image")
    initial_const: float = Field(1.0, gt=0, description="c, of l2 the first one")
    shrink: float = Field(0.8, gt=0, lt=1, description="linf only: by what the bound shrinks after each success")
    batch_size: int = Field(64, ge=1, description="l2 only: images at a time")


class CarliniWagner(ArtAttack):
    """White-box, without a budget: it looks for the nearest image that is read wrong. Targets in l2 only."""

    Config = CarliniWagnerConfig

    spares_fooled = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.art_class = "CarliniL2Method" if self.config.norm == "l2" else "CarliniLInfMethod"
        self.supports_targets = self.config.norm == "l2"

    def shown(self, view: ThreatView, logits: Tensor, wanted: Tensor) -> nn.Module:
        """The model; where its margins are far above what c and the step suit, its logits divided by one number."""
        typical = float(margin(logits, wanted).abs().median())
        if typical <= LARGE:
            return view
        if view.watch is not None:
            view.watch.say(f"logits were divided by {typical / USUAL:.3g}: the steps would be too long")
        return _Divided(view, typical / USUAL)

    def art_options(self) -> dict[str, Any]:
        """The search under ART's names."""
        c = self.config
        shared = {
            "confidence": c.confidence,
            "max_iter": c.steps,
            "learning_rate": c.learning_rate,
            "initial_const": c.initial_const,
            "batch_size": c.batch_size,
            "verbose": False,
        }
        if c.norm == "l2":
            return {**shared, "binary_search_steps": c.search_steps}
        # ART leaves c out of the gradient in linf: a second value would repeat the same descent.
        return {**shared, "largest_const": 2 * c.initial_const, "const_factor": 2.0, "decrease_factor": c.shrink}


class _Divided(nn.Module):
    def __init__(self, module: nn.Module, divisor: float) -> None:
        super().__init__()
        self.module = module
        self.divisor = divisor

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return logits / self.divisor
