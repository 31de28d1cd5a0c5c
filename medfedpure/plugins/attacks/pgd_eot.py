"""PGD on the expected loss (Madry et al. 2018, arXiv 1706.06083; Athalye et al. 2018, arXiv 1802.00420).

    g_i = mu g_{i-1} + mean over looks of grad loss(view(x_i))      (mu: momentum, Dong et al. 2018, arXiv 1710.06081)
    x_{i+1} = project( x_i + step * sign(g_i) )                     (L2: along g_i / ||g_i||)

Any threat view will do: what a look sees and which gradient it grants is the view's. An image that has fallen, in
every look of `patience` steps in a row, leaves the batch and costs nothing more. Where looks differ, one lucky step is
no fall: who leaves too early leaves with a weaker perturbation.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.attack import ThreatView, project, step_along
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.gradient import (
    GradientConfig,
    InPortions,
    Loss,
    gradient_of,
    judged,
    loss_of,
    random_start,
)


class PGDEoTConfig(GradientConfig):
    """A budget, a loss, starts and looks."""

    loss: Loss = Field("ce", description='what is raised: cross-entropy, "cw" margin, or "dlr" (3 classes or more)')
    restarts: int = Field(1, ge=1, description="starts; the first at the image itself, the others random in the ball")
    random_start: bool = Field(False, description="the first start is random as well")
    momentum: float = Field(0.0, ge=0, description="decay of the accumulated gradient; 0 = none")
    early_stop: bool = Field(True, description="an image leaves when it has fallen, see patience")


class PGDEoT(InPortions):
    """White-box on any view; untargeted unless targets are given."""

    Config = PGDEoTConfig

    def _all_starts(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        targets: Tensor | None,
        streams: Streams,
    ) -> Tensor:
        c = self.config
        best, strength = images.clone(), images.new_full((len(images),), -torch.inf)
        waiting = torch.arange(len(images), device=images.device)
        for start in range(c.restarts):
            own, first = labels[waiting], images[waiting]
            wanted, limit = (None if item is None else item[waiting] for item in (targets, mask))
            if start or c.random_start:
                first = random_start(first, c.norm, c.eps, streams.select(waiting), start)
                first = project(first, images[waiting], c.norm, c.eps, limit)
            moved, fallen = self._one_start(view, images[waiting], first, own, limit, wanted)
            if c.restarts == 1:
                return moved
            now = torch.where(fallen, torch.inf, self._strength(view, moved, own, wanted))
            better = now > strength[waiting]
            best[waiting[better]], strength[waiting[better]] = moved[better], now[better]
            if c.early_stop:
                waiting = waiting[~fallen]
            if not len(waiting):
                break
        return best

    def _one_start(
        self,
        view: ThreatView,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        targets: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Where one start leads, and which images fell on the way.

        With early stop an image that did not leave, but was fooled, is at its best where the longest run of fallen
        steps ends, or else where most looks were fooled; of equal ones the last. The last step is looked at too.
        """
        c = self.config
        found, fallen = start.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
        reached, active = images.new_zeros(len(images)), torch.arange(len(images), device=images.device)
        current, gathered, streak = start, torch.zeros_like(start), torch.zeros_like(labels)
        for _ in range(c.steps):
            gradient, fooled, _ = gradient_of(
                view,
                current,
                labels,
                targets,
                loss=lambda logits, own, wanted: loss_of(c.loss, logits, own, wanted, view.watch),
                eot=c.eot,
                batch_size=c.batch_size,
            )
            streak = (streak + 1) * (fooled >= 1)
            if c.early_stop:
                _keep_best(found, reached, active, current, fooled, streak)
                stay = streak < c.patience
                if not bool(stay.all()):
                    fallen[active[~stay]] = True
                    active, current, gradient, gathered, images, labels, streak = (
                        item[stay] for item in (active, current, gradient, gathered, images, labels, streak)
                    )
                    mask, targets = (None if item is None else item[stay] for item in (mask, targets))
                    if not len(active):
                        return found, fallen
            if mask is not None:
                gradient = gradient * mask
            if c.momentum:
                size = gradient.abs().flatten(1).mean(1).clamp_min(1e-20)[:, None, None, None]
                gradient = gathered = c.momentum * gathered + gradient / size
            current = project(current + step_along(gradient, c.norm, c.step), images, c.norm, c.eps, mask)
        if c.early_stop and bool((reached[active] > 0).any()):
            fooled = self._judged(view, current, labels, targets)[0]
            _keep_best(found, reached, active, current, fooled, (streak + 1) * (fooled >= 1))
        else:
            found[active] = current
        return found, fallen

    def _strength(self, view: ThreatView, images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """How far the attack got, `(N,)`: the share of fooled looks, then the loss squeezed into (0, 1)."""
        share, loss = self._judged(view, images, labels, targets)
        strength: Tensor = share + loss / (2 * self.config.eot)
        return strength

    def _judged(
        self, view: ThreatView, images: Tensor, labels: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The share of fooled looks `(N,)`, and the mean of the loss squeezed into (0, 1); no gradient is taken."""
        c = self.config
        return judged(
            view,
            images,
            labels,
            targets,
            loss=lambda logits, own, wanted: torch.sigmoid(loss_of(c.loss, logits, own, wanted)),
            eot=c.eot,
            batch_size=c.batch_size,
        )


def _keep_best(found: Tensor, reached: Tensor, active: Tensor, current: Tensor, fooled: Tensor, streak: Tensor) -> None:
    """Where it is no worse, take the current image: by its run of fallen steps, else by its share of fooled looks."""
    rank = torch.where(streak > 0, streak.to(fooled), fooled)
    better = (rank >= reached[active])[:, None, None, None]
    found[active] = torch.where(better, current, found[active])
    reached[active] = torch.maximum(rank, reached[active])
