"""HopSkipJump (Chen, Jordan and Wainwright 2020, arXiv 1904.02144), through ART.

From an image that is read wrong, each step searches the boundary on the line to the true image, estimates the
gradient there from the labels s_b = +1 (read wrong) or -1 of noisy copies,

    g = mean over b of (s_b - mean s) * u_b,   u_b random directions,

and leaves the boundary along g.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medfedpure.core.config import Config
from medfedpure.plugins.attacks.art import ArtAttack


class HopSkipJumpConfig(Config):
    """How often the model may be asked; in step i, `queries` times the root of i + 1 for the gradient alone."""

    norm: Literal["l2", "linf"] = Field("l2", description="the distance to be small")
    steps: int = Field(20, ge=1, description="steps along the boundary")
    queries: int = Field(100, ge=1, description="noisy copies in the first step")
    most_queries: int = Field(10_000, ge=1, description="noisy copies in any step at most")
    starts: int = Field(100, ge=1, description="random images that are tried to find one that is read wrong")
    batch_size: int = Field(64, ge=1, description="images at a time")


class HopSkipJump(ArtAttack):
    """Black-box, by decisions alone, without a budget. An image for which no start is found comes back as it was."""

    Config = HopSkipJumpConfig

    art_class = "HopSkipJump"
    uses = "verdicts"
    supports_mask = True
    spares_fooled = True

    def art_options(self) -> dict[str, Any]:
        """Steps and queries under ART's names."""
        c = self.config
        return {
            "max_iter": c.steps,
            "init_eval": min(c.queries, c.most_queries),
            "max_eval": c.most_queries,
            "init_size": c.starts,
            "batch_size": c.batch_size,
            "verbose": False,
        }
