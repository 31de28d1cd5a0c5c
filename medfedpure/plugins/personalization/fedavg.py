"""FedAvg (McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
arXiv 1602.05629).

    client k:  w_k <- steps on F_k(w) from w as it came;   server:  w = sum_k (n_k / n) w_k
"""

from torch import nn

from medfedpure.core.personalization import PersonalizationStrategy


class FedAvg(PersonalizationStrategy):
    """One model for all: w = sum_k (n_k / n) w_k over all floating tensors."""

    def is_shared(self, key: str, model: nn.Module) -> bool:  # noqa: ARG002
        """Everything travels."""
        return True
