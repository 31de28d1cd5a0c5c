"""FedBN (Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization",
arXiv 2102.07623).

    w = sum_k (n_k / n) w_k over everything but BatchNorm layers, whose weights and statistics stay at client k
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import PersonalizationStrategy, in_batchnorm


class FedBN(PersonalizationStrategy):
    """BatchNorm layers, known by their type and not by their names, are kept and trained at each client."""

    def is_shared(self, key: str, model: nn.Module) -> bool:
        """Everything outside BatchNorm layers travels.

        Raises:
            FederationError: the model has no such layer, so that FedBN would be FedAvg.
        """
        if not any(isinstance(layer, _BatchNorm) for layer in model.modules()):
            raise FederationError(
                f"fedbn needs a model with BatchNorm layers, and {type(model).__name__} has none: "
                "train this part with 'fedavg' or 'fedprox'"
            )
        return not in_batchnorm(key, model)
