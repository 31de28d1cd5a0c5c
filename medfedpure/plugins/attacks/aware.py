"""What attacks share that know the detector: they raise a loss and keep the score under its threshold."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.attack import Attack, ThreatView, project, step_along, without_parameter_gradients
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.gradient import (
    GradientConfig,
    Loss,
    is_fooled,
    looks,
    loss_of,
    random_start,
    slope,
)

UNSEEN = 6.0
"""The lowest rank of an iterate that is fooled and unseen in every look."""


class AwareConfig(GradientConfig):
    """A budget, and a loss beside the score."""

    steps: int = Field(40, ge=1, description="gradient steps of each start")
    restarts: int = Field(1, ge=1, description="starts; the first at the image itself, the others random in the ball")
    loss: Loss = Field("cw", description='what is raised: cross-entropy, "cw" margin, or "dlr" (3 classes or more)')
    early_stop: bool = Field(False, description="an image leaves when it has fallen unseen, see patience")
    slack: float = Field(
        0.1, ge=0, lt=1, description="share by which the score is pushed below its threshold, against fresh noise"
    )


class AwareAttack(Attack):
    """Sees logits, the score and its threshold; keeps, for each image, the best iterate.

    Best is: fooled and unseen in most looks, then fooled, then the largest loss.
    """

    Config = AwareConfig
    uses = "gradients"
    supports_mask = True
    supports_targets = True

    @property
    def requires(self) -> frozenset[str]:
        """The score and its threshold."""
        return frozenset({"score", "threshold"})

    @abstractmethod
    def direction(self, of_loss: Tensor, of_score: Tensor, fooled: Tensor, seen: Tensor) -> Tensor:
        """Where to step.

        Args:
            of_loss: gradient `(N, C, H, W)` of the loss that is raised.
            of_score: gradient `(N, C, H, W)` of the detector's score.
            fooled: `(N,)` bool, the prediction is wrong in most looks.
            seen: `(N,)` bool, the score exceeds what is aimed at in most looks.

        Returns:
            `(N, C, H, W)`, a gradient to climb.
        """
        raise NotImplementedError

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
        """Adversarial images `(N, C, H, W)` within the budget; the best of all starts for each image."""
        c, found, reached = self.config, images.clone(), images.new_full((len(images),), -torch.inf)
        with without_parameter_gradients(view):
            for start in range(c.restarts):
                waiting = torch.nonzero(reached < UNSEEN if c.early_stop else reached < torch.inf).squeeze(1)
                for rows in waiting.split(c.batch_size) if len(waiting) else ():
                    limit, wanted = (None if item is None else item[rows] for item in (mask, targets))
                    first = images[rows]
                    if start:
                        first = random_start(first, c.norm, c.eps, streams.select(rows), start)
                        first = project(first, images[rows], c.norm, c.eps, limit)
                    moved, rank = self._climb(view, images[rows], first, labels[rows], limit, wanted)
                    better = rank > reached[rows]
                    found[rows[better]], reached[rows[better]] = moved[better], rank[better]
        return found

    def _climb(
        self,
        view: ThreatView,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        targets: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The best iterate `(N, C, H, W)` on the way from a start, and its rank `(N,)`."""
        c = self.config
        best, reached = start.clone(), images.new_full((len(images),), -torch.inf)
        active = torch.arange(len(images), device=images.device)
        current, streak = start, torch.zeros_like(labels)
        for step in range(c.steps + 1):
            of_loss, of_score, fooled, seen, flagged, loss = self._sight(view, current, labels, targets)
            rank = 4 * fooled * (1 - seen) + 2 * fooled + torch.sigmoid(loss)
            better = rank > reached[active]
            best[active[better]], reached[active[better]] = current[better], rank[better]
            if step == c.steps:
                break
            chosen = self.direction(of_loss, of_score, fooled > 0.5, seen > 0.5)
            if mask is not None:
                chosen = chosen * mask
            current = project(current + step_along(chosen, c.norm, c.step), images, c.norm, c.eps, mask)
            streak = (streak + 1) * ((fooled >= 1) & (flagged <= 0))
            stay = streak < c.patience
            if c.early_stop and not bool(stay.all()):
                active, current, images, labels, streak = (
                    item[stay] for item in (active, current, images, labels, streak)
                )
                mask, targets = (None if item is None else item[stay] for item in (mask, targets))
                if not len(active):
                    break
        return best, reached

    def _sight(self, view: ThreatView, images: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Tensor, ...]:
        """Both gradients; the shares of looks that are fooled, seen and flagged; and the mean loss."""
        c, leaf = self.config, images.detach().requires_grad_(True)
        assert view.threshold is not None
        aim = view.threshold - c.slack * abs(view.threshold)
        of_loss, of_score = torch.zeros_like(images), torch.zeros_like(images)
        fooled, seen, flagged, mean = (images.new_zeros(len(images)) for _ in range(4))
        for count, rows, (own, wanted) in looks(leaf, c.eot, c.batch_size, labels, targets):
            logits, scores = view.look(rows)
            losses = loss_of(c.loss, logits, own, wanted, view.watch)
            of_loss += slope(losses, leaf, view, again=True)
            of_score += slope(scores, leaf, view)
            found = scores.detach()
            counted = (is_fooled(logits.detach(), own, wanted), found > aim, found > view.threshold, losses.detach())
            for total, values in zip((fooled, seen, flagged, mean), counted, strict=True):
                total += values.to(total).unflatten(0, (-1, count)).sum(1)
        if view.watch is not None:
            view.watch.slopes(of_loss, fooled >= c.eot)
        return tuple(total / c.eot for total in (of_loss, of_score, fooled, seen, flagged, mean))
