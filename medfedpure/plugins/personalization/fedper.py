"""FedPer (Arivazhagan et al. 2019, "Federated learning with personalization layers", arXiv 1912.00818).

client k:  (body_k, h_k) <- steps on F_k(body, h_k), both at once;   server:  body = sum_k (n_k / n) body_k
"""

from torch import nn

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import PersonalizationStrategy


class FedPer(PersonalizationStrategy):
    """Body averaged over clients, head kept and trained at each; both are trained jointly."""

    def is_shared(self, key: str, model: nn.Module) -> bool:
        """Everything but the head travels.

        Raises:
            FederationError: the model does not say which of its keys are the head.
        """
        head_keys = getattr(model, "head_keys", None)
        if not callable(head_keys):
            raise FederationError(
                f"{self.name} needs a model with head_keys(), and {type(model).__name__} has none: "
                "build it from a classifier plugin, or train this part with 'fedavg'"
            )
        return key not in head_keys()
