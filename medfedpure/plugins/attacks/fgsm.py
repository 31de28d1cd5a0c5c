"""Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572), through ART.

x' = clip( x + eps * sign(grad loss(x)), 0, 1 )
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.plugins.attacks.art import ArtAttack


class FGSMConfig(Config):
    """One step of the size of the budget."""

    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps = Field(0.015, description='the perturbation in [0, 1] units; "8/255" is accepted')
    batch_size: int = Field(64, ge=1, description="images at a time")


class FGSM(ArtAttack):
    """White-box, one gradient; untargeted unless targets are given."""

    Config = FGSMConfig

    art_class = "FastGradientMethod"
    supports_mask = True

    def art_options(self) -> dict[str, Any]:
        """The step under ART's name."""
        return {"eps": self.config.eps, "batch_size": self.config.batch_size}
