"""What our own gradient attacks share: losses, random starts, and gradients averaged over looks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from medfedpure.core.attack import Attack, Norm, ThreatView, unit, without_parameter_gradients
from medfedpure.core.config import Config, Radius
from medfedpure.core.errors import ConfigError, MissingRequirementError
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import Watch, fooled, verdicts, without_gradient

Loss = Literal["ce", "cw", "dlr"]


Goal = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""What is raised, `(N,)`, from logits `(N, K)`, labels `(N,)` and the classes aimed at `(N,)`, if any."""


class BallConfig(Config):
    """A budget."""

    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Radius = Field(
        0.015, description='largest perturbation of images in [0, 1]; "8/255" is accepted; at most 1 in linf'
    )

    @model_validator(mode="after")
    def _within_the_range(self) -> Self:
        if self.norm == "linf" and max(self.eps, getattr(self, "step", 0.0)) > 1:
            raise ValueError("in linf no image in [0, 1] can change by more than 1")
        return self


class StepsConfig(BallConfig):
    """Budget and steps: what every gradient attack of fixed step has."""

    step: Radius = Field(0.003, description="size of one step, in the same norm")
    steps: int = Field(20, ge=1, description="gradient steps of each start")
    batch_size: int = Field(64, ge=1, description="rows at a time, every look a row")


class GradientConfig(StepsConfig):
    """And looks, for views that answer with noise."""

    eot: int = Field(1, ge=1, description="looks at each image that are averaged at each step (EoT)")
    patience: int = Field(
        1, ge=1, description="steps in a row whose every look has fallen before an image leaves; more for noisy views"
    )


class InPortions(Attack):
    """A white-box attack on any view that takes `batch_size` images at a time; one method to write: `_all_starts`."""

    uses = "gradients"
    supports_mask = True
    supports_targets = True

    def generate(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        streams: Streams,
    ) -> Tensor:
        """Adversarial images `(N, C, H, W)` within the budget; the best of all starts for each image.

        Raises:
            ConfigError: the loss "dlr" with too few classes.
        """
        found = images.clone()
        with without_parameter_gradients(view):
            for rows in torch.arange(len(images), device=images.device).split(self.config.batch_size):
                limit, wanted = (None if item is None else item[rows] for item in (mask, targets))
                found[rows] = self._all_starts(view, images[rows], labels[rows], limit, wanted, streams.select(rows))
        return found

    @abstractmethod
    def _all_starts(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        targets: Tensor | None,
        streams: Streams,
    ) -> Tensor:
        """The same of one portion."""
        raise NotImplementedError


def loss_of(kind: Loss, logits: Tensor, labels: Tensor, targets: Tensor | None, watch: Watch | None = None) -> Tensor:
    """What the attacker raises, `(N,)`, from logits `(N, K)`.

    "ce": cross-entropy, see `surviving`, which tells the watch.
    "cw": max over other classes of z minus z_y (Carlini and Wagner 2017, arXiv 1608.04644).
    "dlr": -(z_y - max other z) / (z_1st - z_3rd) of sorted z (Croce and Hein 2020, arXiv 2003.01690), K >= 3; with
    targets -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), K >= 4. Targets turn the first two towards the target.

    Raises:
        ConfigError: "dlr" with too few classes.
    """
    if kind == "ce":
        if targets is None:
            return surviving(logits, labels, watch)
        return -functional.cross_entropy(logits, targets, reduction="none")
    if kind == "cw":
        return margin(logits, labels) if targets is None else -margin(logits, targets)
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        raise ConfigError(f'the loss "dlr" needs {needed} classes or more, and these are {logits.shape[1]}: use "cw"')
    ordered = logits.sort(1, descending=True).values
    if targets is None:
        return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    return gap / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)


def surviving(logits: Tensor, labels: Tensor, watch: Watch | None = None) -> Tensor:
    """Cross-entropy `(N,)` of logits `(N, K)`, and where it saturates their `margin`, which still has a slope.

    Where the label's probability rounds to 1, cross-entropy is 0 and its gradient lacks the label's half, or is zero.
    The margin is negative there, so that one grows where the other does.
    """
    values = functional.cross_entropy(logits, labels, reduction="none")
    saturated = values <= 0
    if watch is not None:
        watch.saturation(saturated)
    return torch.where(saturated, margin(logits, labels), values)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """`(N,)`: the largest other logit minus that of the label; positive where another class wins."""
    own = functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits.gather(1, labels[:, None]).squeeze(1)


def is_fooled(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """`(N,)` bool: another class than the label, or the target."""
    return fooled(verdicts(logits), labels, targets)


def random_start(images: Tensor, norm: Norm, eps: float, streams: Streams, draw: int) -> Tensor:
    """Uniform inside the ball, `(N, C, H, W)` in [0, 1]."""
    shape = images.shape[1:]
    if norm == "linf":
        offset = 2 * streams.uniform(shape, stage="start", draw=draw, like=images) - 1
        return (images + eps * offset).clamp(0, 1)
    direction = unit(streams.normal(shape, stage="start", draw=draw, like=images))
    radius = streams.uniform((1, 1, 1), stage="start radius", draw=draw, like=images)
    return (images + eps * radius ** (1 / direction[0].numel()) * direction).clamp(0, 1)


def looks(images: Tensor, eot: int, batch_size: int, *labels: Tensor | None) -> Iterator[tuple[int, Tensor, list[Any]]]:
    """Portions of `eot` looks: how many, the images `(N * looks, C, H, W)` looks side by side, and labels likewise."""
    left, together = eot, max(1, min(eot, batch_size // max(len(images), 1)))
    while left:
        now = min(together, left)
        left -= now
        if now == 1:
            yield 1, images, list(labels)
        else:
            repeated = [None if given is None else given.repeat_interleave(now, 0) for given in labels]
            yield now, images.repeat_interleave(now, 0), repeated


def gradient_of(
    view: ThreatView,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    *,
    loss: Goal,
    eot: int,
    batch_size: int,
    aims: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient `(N, C, H, W)` of the mean loss over `eot` looks; of these the share that is fooled, and the mean.

    Args:
        view: what is attacked.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` int64.
        targets: `(N,)` int64, who is fooled only where these are reached; None = by any wrong class.
        loss: what is raised.
        eot: looks at each image.
        batch_size: rows at a time.
        aims: `(N,)` int64, classes that the loss is handed in place of the targets.
    """
    leaf = images.detach().requires_grad_(True)
    total, share, mean = torch.zeros_like(images), images.new_zeros(len(images)), images.new_zeros(len(images))
    aimed = targets if aims is None else aims
    for count, rows, (own, wanted, toward) in looks(leaf, eot, batch_size, labels, targets, aimed):
        logits = view(rows)
        values = loss(logits, own, toward)
        total += slope(values, leaf, view)
        _add(share, is_fooled(logits.detach(), own, wanted), count)
        _add(mean, values.detach(), count)
    if view.watch is not None:
        view.watch.slopes(total, share >= eot)
    return total / eot, share / eot, mean / eot


@torch.no_grad()
def judged(
    view: ThreatView,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    *,
    loss: Goal,
    eot: int,
    batch_size: int,
    aims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The share of `eot` looks `(N,)` that is fooled, and their mean loss `(N,)`: as `gradient_of`, without one."""
    share, mean = images.new_zeros(len(images)), images.new_zeros(len(images))
    aimed = targets if aims is None else aims
    for count, rows, (own, wanted, toward) in looks(images, eot, batch_size, labels, targets, aimed):
        logits = view(rows)
        _add(share, is_fooled(logits, own, wanted), count)
        _add(mean, loss(logits, own, toward), count)
    return share / eot, mean / eot


def _add(total: Tensor, values: Tensor, count: int) -> None:
    total += values.to(total).unflatten(0, (-1, count)).sum(1)


def most_likely(logits: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Of each image the other classes, the most likely first: at most so many tensors `(N,)` int64.

    Args:
        logits: `(N, K)`.
        labels: `(N,)` int64.
        classes: at most so many.
    """
    own = functional.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return list(others[:, : min(classes, logits.shape[1] - 1)].T)


def slope(values: Tensor, leaf: Tensor, view: ThreatView, *, again: bool = False) -> Tensor:
    """The gradient of the sum of `(N,)` values with respect to the leaf.

    Raises:
        MissingRequirementError: nothing connects the values to the images.
    """
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), leaf, retain_graph=again, allow_unused=True)
    if gradient is None:
        raise MissingRequirementError(without_gradient(view.name))
    return gradient
