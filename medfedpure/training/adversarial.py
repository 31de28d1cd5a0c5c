"""Adversarial training of any task (Madry et al. 2018, "Towards deep learning models resistant to
adversarial attacks", arXiv 1706.06083).

    min_w  E  max_{||d|| <= eps}  loss(w; x + d)

The inner maximum is approached by projected gradient descent on the task's own loss, with the same draws
of augmentation that the training step then uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
    victims = Batch(batch.images[place], batch.labels[place], batch.ids[chosen])
    images = batch.images.clone()
    images[place] = perturb(model, victims, streams.select(chosen), settings, objective)
    return Batch(images, batch.labels, batch.ids)


def perturb(model: nn.Module, batch: Batch, streams: Streams, settings: AdversarialTraining, objective: Task) -> Tensor:
    """Adversarial images `(N, C, H, W)` in [0, 1] within eps, of higher loss; the model is left as it was."""
    clean = batch.images.detach()
    images = clean
    if settings.random_start:
        start = 2 * streams.uniform(clean.shape[1:], stage="adversarial start", like=clean) - 1
        images = _project(clean, clean + settings.eps * start, settings)
    with _normalization_fixed(model), torch.enable_grad():
        for _ in range(settings.steps):
            images = images.detach().requires_grad_(True)
            loss = objective.loss(model, Batch(images, batch.labels, batch.ids), streams)
            (gradient,) = torch.autograd.grad(loss, images)
            direction = gradient.sign() if settings.norm == "linf" else gradient / _length(gradient)
            images = _project(clean, images.detach() + settings.step * direction, settings)
    return images


def _project(clean: Tensor, images: Tensor, settings: AdversarialTraining) -> Tensor:
    """The nearest images within eps, then within [0, 1]: the range is a box around the clean image."""
    change = images - clean
    if settings.norm == "linf":
        change = change.clamp(-settings.eps, settings.eps)
    else:
        change = change * (settings.eps / _length(change)).clamp(max=1)
    return (clean + change).clamp(0, 1)


def _length(images: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return length.clamp_min(1e-12)[:, None, None, None]


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
