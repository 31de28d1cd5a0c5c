"""PGD on prediction and detector at once (Carlini and Wagner 2017, arXiv 1705.07263), both gradients at unit length.

    climb  grad L / ||grad L||  -  weight * [s > aim] * grad s / ||grad s||

aim lies a little below the threshold. On an `exact` view it fools the whole chain and stays unflagged; on a
`detector` view it fools the bare prediction.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from medfedpure.core.attack import unit
from medfedpure.plugins.attacks.aware import AwareAttack, AwareConfig


class JointPGDConfig(AwareConfig):
    """How much hiding counts beside fooling."""

    weight: float = Field(1.0, ge=0, description="of the score's gradient beside that of the loss")


class JointPGD(AwareAttack):
    """Detector-aware, in one sum."""

    Config = JointPGDConfig

    def direction(self, of_loss: Tensor, of_score: Tensor, fooled: Tensor, seen: Tensor) -> Tensor:  # noqa: ARG002
        """Up the loss, and down the score where it is seen."""
        hiding: Tensor = self.config.weight * seen.to(of_loss)[:, None, None, None] * unit(of_score)
        return unit(of_loss) - hiding
