"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049), through ART.

Random search without gradients: a square of the image is moved to x - eps or x + eps, and kept where the margin of
the true class shrinks. Squares become smaller with the number of trials.

    z = clip( x_i with one square set to x - eps or x + eps ),   x_{i+1} = z where margin(z) < margin(x_i), else x_i

In linf only: ART's step in l2 divides by what the paper multiplies with, and by zero on a square not yet changed.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.plugins.attacks.art import ArtAttack, ToldOnce, build, largest_share


class SquareConfig(Config):
    """A budget of queries."""

    eps: Eps = Field(0.015, description='largest perturbation in [0, 1] units; "8/255" is accepted')
    queries: int = Field(
        1000,
        ge=1,
        description="squares tried for each image in each round; the model is asked twice for each",
    )
    rounds: int = Field(1, ge=1, description="starts from stripes, each for the images that still resist")
    first_share: float = Field(
        0.8, gt=0, lt=1, description="share of the image that the first square covers, where it fits"
    )
    batch_size: int = Field(128, ge=1, description="images at a time")


class Square(ArtAttack):
    """Black-box, by scores, in linf; never targeted."""

    Config = SquareConfig

    art_class = "SquareAttack"
    asks = ToldOnce
    uses = "logits"
    supports_targets = False

    def make(self, estimator: Any, *, targeted: bool) -> Any:  # noqa: ARG002
        """The ART attack, its first square cut to the image."""
        share = largest_share(self.config.first_share, estimator.input_shape)
        return build(self.art_class, estimator, norm=self.art_norm(), p_init=share, **self.art_options())

    def art_options(self) -> dict[str, Any]:
        """Queries and rounds under ART's names."""
        c = self.config
        return {
            "eps": c.eps,
            "max_iter": c.queries,
            "nb_restarts": c.rounds,
            "batch_size": c.batch_size,
            "verbose": False,
        }
