"""FedRep (Collins et al. 2021, "Exploiting shared representations for personalized federated learning",
arXiv 2102.07078).

    client k:  h_k <- steps on F_k(h, body) for the head h alone;  then  body <- steps on F_k(h_k, body) for the body
    server:    body = sum_k (n_k / n) body_k
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import nn

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import ClientRound, LocalResult, train_round
from medfedpure.plugins.personalization.fedper import FedPer, FedPerConfig


class FedRepConfig(FedPerConfig):
    """How a round's steps are divided."""

    head_share: float = Field(
        0.5, gt=0, lt=1, description="share of each round's steps for the head; the body's follow"
    )


class FedRep(FedPer):
    """FedPer's division; the head is fitted to the body that came before the body is trained for that head.

    What is held still is so entirely: its weights, and its running statistics too.
    """

    Config = FedRepConfig

    def local_update(self, r: ClientRound) -> LocalResult:
        """Head steps with the body held still, then body steps with the head held still.

        Raises:
            FederationError: a round has a single step.
        """
        first, last = r.window()
        if last - first < 2:
            raise FederationError(
                f"fedrep needs at least 2 steps in every round, one for the head and one for the body; round {r.round} "
                f"has {last - first}: raise training.steps to at least {2 * r.rounds}, or run fewer rounds"
            )
        middle = first + min(max(round(self.config.head_share * (last - first)), 1), last - first - 1)
        model = self.personal_model(r)
        head = set(self.head_of(model))
        body = model.state_dict().keys() - head
        task = self.hardened(r.task, r)
        with held_still(model, body):
            fitted = train_round(r, model, _free(model), task=task, window=(first, middle), phase="head")
        with held_still(model, head):
            log = train_round(r, model, _free(model), task=task, window=(middle, last), phase="body")
        shared, private = self.split(model)
        return LocalResult(
            shared, private, len(r.train), {"train_loss": log.loss, "train_loss_of_the_head": fitted.loss}
        )


def _free(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


@contextmanager
def held_still(model: nn.Module, keys: set[str]) -> Iterator[None]:
    """Inside the block the weights of these names need no gradient; their buffers are put back after it."""
    held = [weight for name, weight in model.named_parameters() if name in keys and weight.requires_grad]
    buffers = [(buffer, buffer.clone()) for name, buffer in model.named_buffers() if name in keys]
    for weight in held:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
