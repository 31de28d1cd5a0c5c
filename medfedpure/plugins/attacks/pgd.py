"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083), through ART.

x_{i+1} = clip( x_i + step * sign(grad loss(x_i)), x - eps, x + eps ), kept in [0, 1]
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.plugins.attacks.art import ArtAttack


class PGDConfig(Config):
    """The paper's setting on brain MRI by default."""

    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps = Field(0.015, description='largest perturbation in [0, 1] units; "8/255" is accepted')
    step: Eps = Field(0.003, description="size of one step in [0, 1] units")
    steps: int = Field(7, ge=1, description="gradient steps")
    random_starts: int = Field(0, ge=0, description="random starts inside the ball; 0 starts at the image itself")
    batch_size: int = Field(64, ge=1, description="images at a time")


class PGD(ArtAttack):
    """White-box and iterative; untargeted unless targets are given."""

    Config = PGDConfig

    art_class = "ProjectedGradientDescent"
    supports_mask = True

    def art_options(self) -> dict[str, Any]:
        """Steps and sizes under ART's names."""
        c = self.config
        return {
            "eps": c.eps,
            "eps_step": c.step,
            "max_iter": c.steps,
            "num_random_init": c.random_starts,
            "batch_size": c.batch_size,
            "verbose": False,
        }
