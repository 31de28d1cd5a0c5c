"""ART's own mix of attacks, not the AutoAttack of Croce and Hein (2020, arXiv 2003.01690) that it is named after.

One after the other, each on the images that still resist: APGD on the cross-entropy, APGD on the difference of
logits ratio, DeepFool, Square; an image counts as fooled where one of them stays within eps. The AutoAttack of the
paper has targeted APGD and targeted FAB where this has DeepFool, and is the stronger one: report numbers of this
one under its own name. Two classes have no difference of logits ratio, and ART's Square has no sound step in l2:
there the part is left out.

    x' = the first of APGD-CE(x), APGD-DLR(x), DeepFool(x), Square(x) that is read wrong within eps
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.plugins.attacks.art import ArtAttack, build, largest_share


class AutoAttackConfig(Config):
    """ART's lengths by default."""

    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps = Field(0.015, description='largest perturbation in [0, 1] units; "8/255" is accepted')
    steps: int = Field(100, ge=1, description="gradient steps of each round of APGD, and of DeepFool")
    rounds: int = Field(5, ge=1, description="random starts of APGD and of Square")
    queries: int = Field(5000, ge=1, description="squares that are tried for each image in each round of Square")
    batch_size: int = Field(64, ge=1, description="images at a time")


class AutoAttack(ArtAttack):
    """Partly white-box, partly by queries; never targeted. An image that resists comes back as it was."""

    Config = AutoAttackConfig

    art_class = "AutoAttack"
    supports_targets = False

    def make(self, estimator: Any, *, targeted: bool) -> Any:  # noqa: ARG002
        """The mix, with the parts that are defined for this model and norm."""
        c = self.config
        ball = {"norm": self.art_norm(), "eps": c.eps, "batch_size": c.batch_size}
        apgd = {**ball, "eps_step": 2 * c.eps, "max_iter": c.steps, "nb_random_init": c.rounds, "verbose": False}
        parts = [build("AutoProjectedGradientDescent", estimator, **apgd)]
        if estimator.nb_classes > 2:
            ratio = {**apgd, "loss_type": "difference_logits_ratio"}
            parts.append(build("AutoProjectedGradientDescent", estimator, **ratio))
        deepfool = {"max_iter": c.steps, "epsilon": 1e-3, "batch_size": c.batch_size, "verbose": False}
        parts.append(build("DeepFool", estimator, **deepfool))
        if c.norm == "linf":
            share = largest_share(0.8, estimator.input_shape)
            square = {**ball, "max_iter": c.queries, "nb_restarts": c.rounds, "p_init": share, "verbose": False}
            parts.append(build("SquareAttack", estimator, **square))
        return build("AutoAttack", estimator, **ball, **self.art_options(), attacks=parts)

    def art_options(self) -> dict[str, Any]:
        """What the mix itself takes; its parts are made in `make`."""
        return {"eps_step": 2 * self.config.eps}
