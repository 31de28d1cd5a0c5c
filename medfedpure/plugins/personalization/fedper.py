"""FedPer (Arivazhagan et al. 2019, "Federated learning with personalization layers", arXiv 1912.00818).

    client k:  (body_k, h_k) <- steps on F_k(body, h_k), both at once
    server:    body = sum_k (n_k / n) body_k

The paper averages everything but the head. Where scanners differ, each client trains on statistics of its own images
and is evaluated on the average of all; `normalization = "private"` keeps BatchNorm at the client too, as FedBN does.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import PersonalizationStrategy, StrategyConfig, in_batchnorm


class FedPerConfig(StrategyConfig):
    """What of the body stays at the client beside the head."""

    normalization: Literal["shared", "private"] = Field(
        "shared",
        description="BatchNorm layers of the body travel, as in the papers, or stay: better where scanners differ",
    )


class FedPer(PersonalizationStrategy):
    """Body averaged over clients, head kept and trained at each; both are trained jointly."""

    Config = FedPerConfig

    def is_shared(self, key: str, model: nn.Module) -> bool:
        """Everything but the head travels; without BatchNorm layers where they are private.

        Raises:
            FederationError: the model does not say which of its keys are the head.
        """
        if self.config.normalization == "private" and in_batchnorm(key, model):
            return False
        return key not in self.head_of(model)

    def head_of(self, model: nn.Module) -> frozenset[str]:
        """Keys of the head; raises FederationError where the model does not name them."""
        head_keys = getattr(model, "head_keys", None)
        if not callable(head_keys):
            raise FederationError(
                f"{self.name} needs a model with head_keys(), and {type(model).__name__} has none: "
                "build it from a classifier plugin, or train this part with 'fedavg'"
            )
        named: frozenset[str] = head_keys()
        return named
