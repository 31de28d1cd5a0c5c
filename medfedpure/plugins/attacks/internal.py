"""The federation's insider (pFedDef, Kim et al. 2023, arXiv 2209.08412): a client attacks others with its own model.

PGD on the attacker's own personalized model, replayed on every other client: the view is `transfer`. What a
shared body gives away shows in the matrix of attackers and victims. Defaults are those of the paper's table, L2 PGD-10.

    x_{i+1} = project( x_i + step * g / ||g|| ),   g = grad loss of the attacker's own model at x_i
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medfedpure.core.config import Eps
from medfedpure.plugins.attacks.pgd_eot import PGDEoT, PGDEoTConfig


class InternalConfig(PGDEoTConfig):
    """PGD as an insider runs it: to the end, because a margin helps the transfer."""

    norm: Literal["linf", "l2"] = Field("l2", description="in which the perturbation is bounded")
    eps: Eps = Field(0.5, description="largest perturbation in [0, 1] units")
    step: Eps = Field(0.1, description="size of one step in [0, 1] units")
    steps: int = Field(10, ge=1, description="gradient steps of each start")
    early_stop: bool = Field(False, description="stop at the insider's own decision boundary")


class Internal(PGDEoT):
    """`pgd_eot` under the insider's defaults; give it a `transfer` view of the insider's model."""

    Config = InternalConfig
