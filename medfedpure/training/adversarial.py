"""Adversarial training of any task (Madry et al. 2018, "Towards deep learning models resistant to
adversarial attacks", arXiv 1706.06083).

    min_w  E  max_{||d|| <= eps}  loss(w; x + d)

The inner maximum is approached by projected gradient descent on the task's own loss, with the same draws
of augmentation that the training step then uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.attack import project, step_along
from medfedpure.core.dataset import Batch
from medfedpure.core.settings import AdversarialTraining
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task, WrappedTask


class AdversarialTask(WrappedTask):
    """A task on batches of which a share is replaced by adversarial examples against the model as it is.

    Args:
        inner: what is learned.
        settings: share and attack.
        objective: the task whose loss the attacker maximizes.
    """

    def __init__(self, inner: Task, settings: AdversarialTraining, objective: Task) -> None:
        super().__init__(inner)
        self.settings, self.objective = settings, objective

    def recipe(self) -> dict[str, Any]:
        """With share and attack."""
        return {**super().recipe(), "adversarial": self.settings.model_dump(mode="json")}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The inner loss after the attack."""
        return self.inner.loss(model, harden(model, batch, streams, self.settings, self.objective), streams)


def harden(model: nn.Module, batch: Batch, streams: Streams, settings: AdversarialTraining, objective: Task) -> Batch:
    """The batch with `share` of its images, rounded and chosen by their draws, moved against the model."""
    count = round(settings.share * len(batch.ids))
    if count == 0:
        return batch
    chosen = streams.uniform((), stage="adversarial choice").argsort()[:count].sort().values
    place = chosen.to(batch.images.device)
    victims = _rows(batch, chosen)
    images = batch.images.clone()
    images[place] = perturb(model, victims, streams.select(chosen), settings, objective)
    return replace(batch, images=images)


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """The images at places `(M,)` on the CPU, with all that belongs to them."""
    place = chosen.to(batch.images.device)
    return Batch(
        batch.images[place],
        batch.labels[place],
        batch.ids[chosen],
        masks=None if batch.masks is None else batch.masks[place],
        levels={name: level[chosen] for name, level in batch.levels.items()},
        attributes={name: replace(one, values=one.values[chosen]) for name, one in batch.attributes.items()},
    )


def perturb(model: nn.Module, batch: Batch, streams: Streams, settings: AdversarialTraining, objective: Task) -> Tensor:
    """Adversarial images `(N, C, H, W)` in [0, 1] within eps, of higher loss; the model is left as it was."""
    clean = batch.images.detach()
    images = clean
    if settings.random_start:
        start = 2 * streams.uniform(clean.shape[1:], stage="adversarial start", like=clean) - 1
        images = project(clean + settings.eps * start, clean, settings.norm, settings.eps)
    with _normalization_fixed(model), torch.enable_grad():
        for _ in range(settings.steps):
            images = images.detach().requires_grad_(True)
            loss = objective.loss(model, replace(batch, images=images), streams)
            (gradient,) = torch.autograd.grad(loss, images)
            moved = images.detach() + step_along(gradient, settings.norm, settings.step)
            images = project(moved, clean, settings.norm, settings.eps)
    return images


@contextmanager
def _normalization_fixed(model: nn.Module) -> Iterator[None]:
    """Layers in eval mode, so that the attack moves no running statistics and mixes no images.

    The model itself keeps its mode: tasks read from it whether to augment.
    """
    modes = [(part, part.training) for part in model.modules() if part is not model]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
