"""pFedDef (Kim et al. 2023, "Characterizing internal evasion attacks in federated learning", arXiv 2209.08412).

FedEM on images of which client u attacks a share F_u, against its own mixture. Attacking costs; a client affords a
share R_u. Its robustness reaches the others through the experts it shares, so the server chooses the shares such that
every expert k sees the wanted share G of adversarial images, as nearly as the resources allow:

    min_F  sum_k ( sum_u n_u pi_uk F_u / sum_u n_u pi_uk  -  G )^2     with  0 <= F_u <= R_u
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config as BaseConfig
from medfedpure.core.personalization import ClientRound, Scalar, Tensors, Update
from medfedpure.core.settings import AdversarialTraining
from medfedpure.plugins.personalization.mixture import MixtureConfig, MixtureOfExperts

_SHARE = "adversarial_share"


class PFedDefConfig(MixtureConfig):
    """The mixture's, with adversarial training switched on."""

    adversarial: AdversarialTraining = Field(
        AdversarialTraining(share=0.5), description="the attack; its share is G, wanted at every expert"
    )
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="by client, the largest share of images R_u that it can afford to attack; 1 where none is given",
    )


class PFedDef(MixtureOfExperts):
    """A mixture trained on adversarial examples, more of them where they can be afforded.

    Every client reports its mixture weights to the server, which needs them to choose the shares. The server keeps
    the shares of the clients that it heard of in memory; before that, a client attacks min(G, R_u).
    """

    Config = PFedDefConfig

    def __init__(self, config: BaseConfig | Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._shares: dict[str, float] = {}

    @property
    def reports_weights(self) -> bool:
        """Always."""
        return True

    def adversarial(self, r: ClientRound) -> AdversarialTraining:
        """The configured attack, on the share that the server sent."""
        configured: AdversarialTraining = self.config.adversarial
        share = float(r.config.get(_SHARE, self._first_share(r.client_id)))
        return configured.model_copy(update={"share": share})

    def client_config(self, round: int, client_id: str, history: Sequence[Mapping[str, float]]) -> Mapping[str, Scalar]:
        """The share of images that this client is to attack."""
        del round, history
        return {_SHARE: self._shares.get(client_id, self._first_share(client_id))}

    def aggregate(self, round: int, previous: Tensors, updates: Sequence[Update]) -> Tensors:
        """As the mixture, and the shares of the next round."""
        result = super().aggregate(round, previous, updates)
        ordered = sorted(updates, key=lambda update: update.client_id)
        images = torch.tensor([float(update.num_examples) for update in ordered])
        weights = torch.tensor([self.reported_weights(update) for update in ordered])
        affordable = torch.tensor([self.config.resources.get(update.client_id, 1.0) for update in ordered])
        shares = spread_shares(images, weights, affordable, self.config.adversarial.share)
        self._shares |= {update.client_id: float(share) for update, share in zip(ordered, shares, strict=True)}
        return result

    def _first_share(self, client_id: str) -> float:
        return float(min(self.config.adversarial.share, self.config.resources.get(client_id, 1.0)))


def spread_shares(images: Tensor, weights: Tensor, affordable: Tensor, wanted: float, *, steps: int = 500) -> Tensor:
    """F `(U,)`, by projected gradient descent from min(wanted, affordable).

    Args:
        images: n `(U,)` of each client.
        weights: pi `(U, K)`.
        affordable: R `(U,)` in [0, 1].
        wanted: G in [0, 1].
        steps: of the descent.
    """
    parts = (images[:, None] * weights).double()
    parts = parts / parts.sum(0).clamp_min(1e-12)
    limit = affordable.double().clamp(0, 1)
    shares = limit.clamp(max=wanted)
    steepest = torch.linalg.matrix_norm(parts, ord=2).square().clamp_min(1e-12)
    for _ in range(steps):
        gradient = parts @ (parts.T @ shares - wanted)
        shares = (shares - gradient / steepest).clamp(min=0).minimum(limit)
    return shares
