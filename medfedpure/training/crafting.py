"""Adversarial examples of a batch, while a model is trained.

    d <- P(d + a sign(grad of L(x + d)))      P the projection onto ||d|| <= eps and x + d into [0, 1]; in l2 g / ||g||

- pgd (Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083): L is the
  task's own loss, `steps` steps of size a.
- fast (Wong et al. 2020, "Fast is better than free: revisiting adversarial training", arXiv 2001.03994): the same, one
  step of 1.25 eps.
- trades (Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", arXiv 1901.08573):
  L = KL(p(x) || p(x + d)).

Layers are in eval mode meanwhile: the attack moves no running statistics, mixes no images, and meets the function that
will be used. Whoever trains on what it made has to keep that function near the one that is trained: see `adversarial`.
Only the images' gradients are computed, and what is drawn is drawn once for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.attack import project, step_along
from medfedpure.core.dataset import Batch
from medfedpure.core.settings import AdversarialTraining
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.core.verdict import without_parameter_gradients

_FAST = 1.25


def chosen_of(batch: Batch, streams: Streams, settings: AdversarialTraining) -> Tensor:
    """The places `(M,)` of the images that are attacked, rising, on the CPU.

    M is the share of the batch, rounded. A share that rounds to none is one image of as many batches as it says.
    """
    wanted = settings.share * len(batch.ids)
    count = round(wanted)
    if count == 0 and wanted > 0:
        count = int(float(streams.uniform((), stage="adversarial count")[0]) < wanted)
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    return streams.uniform((), stage="adversarial choice").argsort()[:count].sort().values


def rows(batch: Batch, chosen: Tensor) -> Batch:
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


def with_images(batch: Batch, chosen: Tensor, moved: Tensor) -> Batch:
    """The batch with other images `(M, C, H, W)` at places `(M,)`."""
    images = batch.images.clone()
    images[chosen.to(images.device)] = moved
    return replace(batch, images=images)


def perturb(
    model: nn.Module,
    batch: Batch,
    streams: Streams,
    settings: AdversarialTraining,
    objective: Task,
    *,
    clean: Tensor | None = None,
) -> Tensor:
    """Adversarial images `(N, C, H, W)` in [0, 1] within eps, of higher loss; the model is left as it was.

    Args:
        model: as it is; its layers answer in eval mode.
        batch: the images.
        streams: theirs; augmentation draws from them what the training step will.
        settings: method and budget.
        objective: the task whose loss is raised.
        clean: of trades, log p(x) `(N, K)` where it is known already.
    """
    origin = batch.images.detach()
    if settings.eps == 0:
        return origin
    streams = SameDraws.of(streams)
    steps, size = (1, _FAST * settings.eps) if settings.method == "fast" else (settings.steps, settings.step_size)
    images = origin
    if settings.random_start:
        start = 2 * streams.uniform(origin.shape[1:], stage="adversarial start", like=origin) - 1
        images = project(origin + settings.eps * start, origin, settings.norm, settings.eps)
    if settings.method == "trades" and clean is None:
        clean = log_probabilities(model, batch, streams, objective)
    with lent(model), torch.enable_grad():
        for _ in range(steps):
            images = images.detach().requires_grad_(True)
            moved = replace(batch, images=images)
            if clean is None:
                loss = objective.loss(model, moved, streams)
            else:
                loss = divergence(clean, model(objective.inputs(model, moved, streams)))
            (gradient,) = torch.autograd.grad(loss, images)
            along = images.detach() + step_along(gradient, settings.norm, size)
            images = project(along, origin, settings.norm, settings.eps)
    return images


def log_probabilities(model: nn.Module, batch: Batch, streams: Streams, objective: Task) -> Tensor:
    """log p `(N, K)` of a batch, float32, in the mode in which attacks are crafted."""
    with lent(model), torch.no_grad():
        logits: Tensor = model(objective.inputs(model, batch, streams))
    return logits.float().log_softmax(1)


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """sum over images of KL(p || q), in nats, in float32: log p `(N, K)`, and the logits `(N, K)` of q."""
    return functional.kl_div(logits.float().log_softmax(1), clean, log_target=True, reduction="sum")


def right(model: nn.Module, batches: Sequence[Batch], streams: Streams, objective: Task) -> list[int]:
    """How many images of each batch are read as labelled, in the mode in which attacks are crafted."""
    answers = [log_probabilities(model, batch, streams, objective).argmax(1) == batch.labels for batch in batches]
    found: list[int] = torch.stack([answer.sum() for answer in answers]).tolist()
    return found


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Inside the block layers are in eval mode and parameters need no gradient.

    The model itself keeps its mode: tasks read from it whether to augment.
    """
    modes = [(part, part.training) for part in model.modules() if part is not model]
    for part, _ in modes:
        part.training = False
    try:
        with without_parameter_gradients(model):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


@dataclass(frozen=True)
class SameDraws(Streams):
    """Streams that keep what they drew: equal questions cost nothing the second time."""

    _drawn_before: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, streams: Streams) -> SameDraws:
        """Those of the same images and seed."""
        return streams if isinstance(streams, cls) else cls(streams.seed, streams.ids, streams.backend)

    def normal(self, shape: Sequence[int], *, stage: str, draw: int = 0, like: Tensor | None = None) -> Tensor:
        """`Streams.normal`, drawn once."""
        return self._once(super().normal, "normal", shape, stage, draw, like)

    def uniform(self, shape: Sequence[int], *, stage: str, draw: int = 0, like: Tensor | None = None) -> Tensor:
        """`Streams.uniform`, drawn once."""
        return self._once(super().uniform, "uniform", shape, stage, draw, like)

    def _once(
        self, drawn: Callable[..., Tensor], what: str, shape: Sequence[int], stage: str, draw: int, like: Tensor | None
    ) -> Tensor:
        key = (what, tuple(shape), stage, draw, None if like is None else (like.device, like.dtype))
        if key not in self._drawn_before:
            self._drawn_before[key] = drawn(shape, stage=stage, draw=draw, like=like)
        return self._drawn_before[key]
