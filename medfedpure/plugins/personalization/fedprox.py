"""FedProx (Li et al. 2020, "Federated optimization in heterogeneous networks", arXiv 1812.06127).

client k minimizes  F_k(w) + mu/2 ||w - w_global||^2;  the server averages as in FedAvg
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.dataset import Batch
from medfedpure.core.personalization import (
    ClientRound,
    LocalResult,
    PersonalizationStrategy,
    StrategyConfig,
    train_round,
)
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task, WrappedTask


class FedProxConfig(StrategyConfig):
    """How far clients may drift."""

    mu: float = Field(0.01, ge=0, description="weight of the pull to the global model; 0 = FedAvg")


class FedProx(PersonalizationStrategy):
    """One model for all, and a client is pulled back to it while it trains; `train_loss` includes the pull."""

    Config = FedProxConfig

    def is_shared(self, key: str, model: nn.Module) -> bool:  # noqa: ARG002
        """Everything travels."""
        return True

    def local_update(self, r: ClientRound) -> LocalResult:
        """One pass with the proximal term on the shared weights."""
        model = self.personal_model(r)
        log = train_round(r, model, task=ProximalTask(self.hardened(r.task, r), model, r.shared, self.config.mu))
        shared, private = self.split(model)
        return LocalResult(shared, private, len(r.train), {"train_loss": log.loss})


class ProximalTask(WrappedTask):
    """A task's loss + strength/2 ||w - anchor||^2, over the weights that have an anchor; buffers are not pulled.

    Args:
        inner: what is learned.
        model: the model to be trained.
        anchors: by name of the weight, where it is pulled to; other names are ignored.
        strength: mu, lambda.
    """

    def __init__(self, inner: Task, model: nn.Module, anchors: Mapping[str, Tensor], strength: float) -> None:
        super().__init__(inner)
        self.strength = strength
        self.anchors = {
            name: anchors[name].detach().to(weight, copy=True)
            for name, weight in model.named_parameters()
            if name in anchors
        }

    def recipe(self) -> dict[str, Any]:
        """With the strength of the pull."""
        return {**super().recipe(), "strength": self.strength}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The inner loss and the pull."""
        loss = super().loss(model, batch, streams)
        for name, weight in model.named_parameters():
            if name in self.anchors:
                loss = loss + self.strength / 2 * (weight - self.anchors[name]).square().sum()
        return loss
