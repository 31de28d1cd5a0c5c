"""Projected gradient descent that finds its own step (Croce and Hein 2020, arXiv 2003.01690), through ART.

    z = P( x_i + step_i * sign(grad loss(x_i)) ),  x_{i+1} = P( x_i + 0.75 (z - x_i) + 0.25 (x_i - x_{i-1}) )

P projects into the ball and into [0, 1]; the step is halved at checkpoints where the loss has not grown enough.
ART differs from the paper in its end: it returns the last point and not the best, and where the model is not
fooled the random start of the last round.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.core.errors import InputError
from medfedpure.plugins.attacks.art import ArtAttack


class APGDConfig(Config):
    """A hundred steps, as in the paper."""

    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps = Field(0.015, description='largest perturbation in [0, 1] units; "8/255" is accepted')
    step: Eps | None = Field(None, description="size of the first step; None = twice eps, as in the paper")
    steps: int = Field(100, ge=1, description="gradient steps of each round")
    rounds: int = Field(1, ge=1, description="random starts, each for the images that still resist")
    loss: Literal["cross_entropy", "dlr"] = Field(
        "cross_entropy", description="what grows; dlr, the difference of logits ratio, needs three classes or more"
    )
    batch_size: int = Field(64, ge=1, description="images at a time")


class APGD(ArtAttack):
    """White-box; untargeted unless targets are given.

    Raises:
        InputError: the loss "dlr" for a model of two classes.
    """

    Config = APGDConfig

    art_class = "AutoProjectedGradientDescent"

    def make(self, estimator: Any, *, targeted: bool) -> Any:
        """The ART attack, where the loss is defined."""
        if self.config.loss == "dlr" and estimator.nb_classes < 3:
            raise InputError(
                f"the loss 'dlr' compares three logits; the model has {estimator.nb_classes}: pass loss='cross_entropy'"
            )
        return super().make(estimator, targeted=targeted)

    def art_options(self) -> dict[str, Any]:
        """Steps and sizes under ART's names."""
        c = self.config
        return {
            "eps": c.eps,
            "eps_step": 2 * c.eps if c.step is None else c.step,
            "max_iter": c.steps,
            "nb_random_init": c.rounds,
            # ART would build a second model for its own cross-entropy; the bridge's is the same.
            "loss_type": "difference_logits_ratio" if c.loss == "dlr" else None,
            "batch_size": c.batch_size,
            "verbose": False,
        }
