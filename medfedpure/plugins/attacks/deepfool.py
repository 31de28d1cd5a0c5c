"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599), through ART.

Each step goes to the nearest boundary of the linearized model: with f_k the logit by which class k trails the
predicted one, and g_k its gradient,

    x_{i+1} = x_i + |f_k| / ||g_k||^2 * g_k,   k = argmin |f_k| / ||g_k||,

and the way gone is stretched by 1 + overshoot at the end.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from medfedpure.core.config import Config
from medfedpure.plugins.attacks.art import ArtAttack


class DeepFoolConfig(Config):
    """The paper's overshoot by default."""

    steps: int = Field(50, ge=1, description="largest number of steps")
    overshoot: float = Field(0.02, ge=0, description="by which share the boundary is overstepped at the end")
    classes: int = Field(10, ge=2, description="most likely classes whose boundaries are looked at")
    batch_size: int = Field(64, ge=1, description="images at a time")


class DeepFool(ArtAttack):
    """White-box, small in l2, without a budget; never targeted."""

    Config = DeepFoolConfig

    art_class = "DeepFool"
    supports_targets = False
    spares_fooled = True

    def art_options(self) -> dict[str, Any]:
        """Steps and overshoot under ART's names."""
        c = self.config
        return {
            "max_iter": c.steps,
            "epsilon": c.overshoot,
            "nb_grads": c.classes,
            "batch_size": c.batch_size,
            "verbose": False,
        }
