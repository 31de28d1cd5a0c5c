"""Local training, the anchor of every comparison: a client uses its own images and nobody's model.

The baseline "local" of Collins et al. 2021 (arXiv 2102.07078) and of most papers on personalization.

    client k:  w_k <- steps on F_k(w_k) from its own w_k of the round before
"""

from typing import ClassVar

from torch import nn

from medfedpure.core.personalization import PersonalizationStrategy


class Local(PersonalizationStrategy):
    """Nothing travels; each client trains alone, with the budget that the others have."""

    federated: ClassVar[bool] = False

    def is_shared(self, key: str, model: nn.Module) -> bool:  # noqa: ARG002
        """Nothing travels."""
        return False
