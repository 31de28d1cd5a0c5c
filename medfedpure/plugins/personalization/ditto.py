"""Ditto (Li et al. 2021, "Ditto: fair and robust federated learning through personalization", arXiv 2012.04221).

global:    w is trained as in FedAvg
personal:  v_k minimizes  F_k(v) + lambda/2 ||v - w||^2,  with w as it came from the server
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from medfedpure.core.personalization import (
    ClientRound,
    LocalResult,
    PersonalizationStrategy,
    StrategyConfig,
    Tensors,
    kept_beside,
    load_merged,
    train_round,
)
from medfedpure.plugins.personalization.fedprox import ProximalTask

_PERSONAL = "personal."


class DittoConfig(StrategyConfig):
    """How near the personal model stays to the global one."""

    lam: float = Field(0.1, ge=0, description="lambda, the weight of the pull to the global model; 0 = local training")


class Ditto(PersonalizationStrategy):
    """Two models at a client: the global one travels; the personal one stays, is evaluated and exported.

    A round costs two passes. The personal model starts as the global one that came first.
    """

    Config = DittoConfig

    def is_shared(self, key: str, model: nn.Module) -> bool:  # noqa: ARG002
        """All of the global model travels; the personal one goes by other names, which never do."""
        return True

    def split(self, model: nn.Module) -> tuple[Tensors, Tensors]:
        """The state of a model that is both: the global one's shared tensors, and a copy of all as the personal one."""
        shared, private = super().split(model)
        return shared, {**private, **_as_personal(model)}

    def personal_model(self, r: ClientRound) -> nn.Module:
        """The client's own model; at first that of the server."""
        model = self._global_model(r)
        own = {key.removeprefix(_PERSONAL): value for key, value in r.private.items() if key.startswith(_PERSONAL)}
        return load_merged(model, own)

    def local_update(self, r: ClientRound) -> LocalResult:
        """One pass of the global model as in FedAvg, one of the personal model with the pull."""
        task = self.hardened(r.task, r)
        common, personal = self._global_model(r), self.personal_model(r)
        global_log = train_round(r, common, task=task)
        own_log = train_round(
            r, personal, task=ProximalTask(task, personal, r.shared, self.config.lam), phase="personal"
        )
        shared, private = super().split(common)
        metrics = {"train_loss": own_log.loss, "train_loss_of_the_global_model": global_log.loss}
        return LocalResult(shared, {**private, **_as_personal(personal)}, len(r.train), metrics)

    def _global_model(self, r: ClientRound) -> nn.Module:
        kept = {key: value for key, value in r.private.items() if not key.startswith(_PERSONAL)}
        return load_merged(self.network(r.make_model), {**kept, **r.shared})


def _as_personal(model: nn.Module) -> Tensors:
    whole = {**model.state_dict(), **kept_beside(model)}
    return {_PERSONAL + key: value.detach().cpu().clone() for key, value in whole.items()}
