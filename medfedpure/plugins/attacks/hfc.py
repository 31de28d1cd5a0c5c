"""Hierarchical feature constraint (Yao et al. 2021, arXiv 2012.09501): fool, and look normal in every layer.

    climb  grad L / ||grad L||  +  weight * grad C / ||grad C||  until it is fooled, then  grad C  as long as it is,
    C = mean over layers of -1/2 mean over channels of (h - m)^2 / v

h is a layer's activation averaged over places, m and v the mean and variance over benign images of the class that the
attacked image is driven to: one Gaussian where the paper fits a mixture. The benign images are those of `fit`, or else
the batch's own. Layers are the classifier's convolutions, or the features before its head where none can be seen. It
hides from detectors that look at features, without knowing them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.attack import Attack, ThreatView, project, step_along, unit, without_parameter_gradients
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, InputError
from medfedpure.core.results import State
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import verdicts
from medfedpure.plugins.attacks.gradient import (
    Loss,
    StepsConfig,
    is_fooled,
    loss_of,
    slope,
)

_KEPT = ("images", "labels")


class HFCConfig(StepsConfig):
    """How much looking normal counts beside fooling."""

    steps: int = Field(40, ge=1, description="gradient steps")
    loss: Loss = Field("cw", description='what is raised: cross-entropy, "cw" margin, or "dlr" (3 classes or more)')
    weight: float = Field(1.0, ge=0, description="of the layers' gradient beside that of the loss, until it is fooled")


class HFC(Attack):
    """White-box on a view that shows features; benign images are its model of what is normal.

    Fitted, it takes them from `fit`, and an image's result depends on no other; not fitted, from the batch it attacks.
    """

    Config = HFCConfig
    deterministic = True
    uses = "gradients"
    learns_from_batch = True
    supports_mask = True
    supports_targets = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._reference: tuple[Tensor, Tensor] | None = None

    @property
    def requires(self) -> frozenset[str]:
        """The classifier's features."""
        return frozenset({"features"})

    def fit(self, data: ImageDataset, *, view: nn.Module | None = None, seed: int = 0) -> Self:
        """Keep the images, one for each near-duplicate group: activations belong to a view, and are taken from each.

        Raises:
            DataError: there is no image.
        """
        del view
        kept = data.one_per_group(seed)
        if not len(kept):
            raise DataError("hfc learns what is normal from benign images; none came")
        return self._adopt(kept.images, kept.labels)

    def _adopt(self, images: Tensor, labels: Tensor) -> Self:
        self._reference, self.learns_from_batch = (images, labels), False
        return self.mark_fitted()

    def fitted_state(self) -> State:
        """The benign images `(n, C, H, W)` and their labels `(n,)`; empty before `fit`."""
        return State() if self._reference is None else State({}, dict(zip(_KEPT, self._reference, strict=True)))

    def restore(self, state: State) -> None:
        """Take the images back, where there are any."""
        if state.tensors:
            images, labels = (state.tensors[key] for key in _KEPT)
            self._adopt(images, labels)

    def generate(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        streams: Streams,  # noqa: ARG002
    ) -> Tensor:
        """Adversarial images `(N, C, H, W)`: of each, the fooled iterate that looks most normal.

        Raises:
            InputError: images of another shape than those of `fit`.
        """
        c = self.config
        benign, classes_of = self._benign(images, labels)
        with without_parameter_gradients(view), activations(view) as recorded:
            normal, classes = self._normal(view, recorded, benign, classes_of)
            found = images.clone()
            for rows in torch.arange(len(images), device=images.device).split(c.batch_size):
                limit, wanted = (None if item is None else item[rows] for item in (mask, targets))
                found[rows] = self._climb(view, recorded, images[rows], labels[rows], limit, wanted, normal, classes)
        return found

    def _benign(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images `(n, C, H, W)` that say what is normal, and their labels `(n,)`."""
        if self._reference is None:
            return images, labels
        benign, known = self._reference
        if benign.shape[1:] != images.shape[1:]:
            raise InputError(
                f"hfc was fitted on images of shape {tuple(benign.shape[1:])} and attacks {tuple(images.shape[1:])}: "
                "fit it on images like those it attacks"
            )
        return benign.to(images), known.to(labels)

    def _normal(
        self, view: ThreatView, recorded: list[Tensor], images: Tensor, labels: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Mean and variance `(K, F)` of every layer, by class; a class without images takes those of all."""
        layers, logits = [], []
        with torch.no_grad():
            for part in images.split(self.config.batch_size):
                logits.append(look(view, recorded, part)[0])
                layers.append([layer.clone() for layer in recorded])
        classes = logits[0].shape[1]
        found = []
        for layer in (torch.cat(parts) for parts in zip(*layers, strict=True)):
            own = [layer[labels == k] if int((labels == k).sum()) > 1 else layer for k in range(classes)]
            mean = torch.stack([rows.mean(0) for rows in own])
            spread = torch.stack([rows.var(0, correction=0) for rows in own])
            found.append((mean, spread + 1e-2 * layer.var(0, correction=0).mean() + 1e-12))
        return found, classes

    def _climb(
        self,
        view: ThreatView,
        recorded: list[Tensor],
        images: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        targets: Tensor | None,
        normal: list[tuple[Tensor, Tensor]],
        classes: int,
    ) -> Tensor:
        c = self.config
        current, best, reached = images, images.clone(), images.new_full((len(images),), -torch.inf)
        for step in range(c.steps + 1):
            leaf = current.detach().requires_grad_(True)
            logits, layers = look(view, recorded, leaf)
            others = logits.detach().masked_fill(nn.functional.one_hot(labels, classes).bool(), -torch.inf)
            drawn_to = verdicts(others) if targets is None else targets
            likeness = torch.stack(
                [
                    -0.5 * ((layer - mean[drawn_to]).square() / spread[drawn_to]).mean(1)
                    for layer, (mean, spread) in zip(layers, normal, strict=True)
                ]
            ).mean(0)
            fooled = is_fooled(logits.detach(), labels, targets)
            losses = loss_of(c.loss, logits, labels, targets, view.watch)
            rank = torch.where(fooled, torch.sigmoid(likeness / 10) + 1, torch.sigmoid(losses) - 1).detach().to(reached)
            better = rank > reached
            best[better], reached[better] = current[better], rank[better]
            if step == c.steps:
                break
            of_loss = slope(losses, leaf, view, again=True)
            if view.watch is not None:
                view.watch.slopes(of_loss, fooled)
            fool, hide = unit(of_loss), unit(slope(likeness, leaf, view))
            along = torch.where(fooled[:, None, None, None], hide, fool + c.weight * hide)
            if mask is not None:
                along = along * mask
            current = project(current + step_along(along, c.norm, c.step), images, c.norm, c.eps, mask)
        return best


def look(view: ThreatView, recorded: list[Tensor], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits `(N, K)`, and every layer's activations `(N, F)`."""
    recorded.clear()
    logits = view(images)
    if not recorded:  # the view is no network whose layers can be seen: the features alone
        assert view.features is not None
        recorded.append(view.features(images))
    return logits, list(recorded)


@contextmanager
def activations(view: ThreatView) -> Iterator[list[Tensor]]:
    """A list that every pass fills with the convolutions' outputs, averaged over places."""
    recorded: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module, inputs
        recorded.append(output.mean((2, 3)))

    # Of what is behind the view, a purifier has convolutions too: they say nothing of what the classifier sees.
    parts = view.predict.modules() if isinstance(view.predict, nn.Module) else ()
    hooks = [part.register_forward_hook(record) for part in parts if isinstance(part, nn.Conv2d)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
