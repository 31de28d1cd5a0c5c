"""APGD, which finds its own step, on the expected loss of any view (Croce and Hein 2020, arXiv 2003.01690).

    z = P( x_i + step_i * sign(g_i) ),   x_{i+1} = P( x_i + 0.75 (z - x_i) + 0.25 (x_i - x_{i-1}) )

g_i is the mean gradient over looks (EoT), P the projection into ball and range; the first step is 2 eps (L2: along
g_i / ||g_i||). At checkpoints an image whose loss rose in fewer than `rho` of the steps since the last one, or is
stuck, goes back to its best point with half the step. The best point is returned: where most looks were fooled, then
where the loss was largest. An image that has fallen, in every look of `patience` steps in a row, leaves the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.attack import ThreatView, project, step_along
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.gradient import (
    BallConfig,
    InPortions,
    Loss,
    gradient_of,
    judged,
    loss_of,
    most_likely,
    random_start,
)


class APGDEoTConfig(BallConfig):
    """A budget, a loss and starts: no step has to be chosen."""

    steps: int = Field(100, ge=1, description="gradient steps of each start")
    restarts: int = Field(1, ge=1, description="random starts, each for the images that still resist")
    loss: Loss = Field(
        "ce",
        description='what is raised: cross-entropy, "cw" margin, or "dlr" (3 classes or more; aimed at a class, 4)',
    )
    target_classes: int = Field(
        0, ge=0, description="the loss is aimed at so many other classes in turn, the most likely first; 0 = at none"
    )
    eot: int = Field(1, ge=1, description="looks at each image that are averaged at each step (EoT)")
    patience: int = Field(
        1, ge=1, description="steps in a row whose every look has fallen before an image leaves; more for noisy views"
    )
    rho: float = Field(0.75, gt=0, lt=1, description="share of steps that must have gained, or the step is halved")
    batch_size: int = Field(64, ge=1, description="rows at a time, every look a row")


@dataclass
class _Climb:
    """Images `(N, C, H, W)` on their way, all of one length N.

    Attributes:
        place: of each in the batch that was attacked.
        images, labels, targets, aims, mask: what is attacked, and towards what.
        current, before: the last two points.
        gradient: at the current point.
        loss, step: of the current point, and the size of the next step.
        top, top_gradient, top_loss: the point of the largest loss.
        gained: steps since the last checkpoint that raised the loss.
        loss_then, halved_then: the largest loss at the last checkpoint, and whether the step was halved there.
        streak: steps in a row whose every look had fallen.
    """

    place: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor | None
    aims: Tensor | None
    mask: Tensor | None
    current: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    step: Tensor
    top: Tensor
    top_gradient: Tensor
    top_loss: Tensor
    gained: Tensor
    loss_then: Tensor
    halved_then: Tensor
    streak: Tensor

    def keep(self, stay: Tensor) -> None:
        """Only the images `(N,)` bool that stay."""
        for name, value in list(vars(self).items()):
            if value is not None:
                setattr(self, name, value[stay])


@dataclass
class _Best:
    """The point of each image that is returned, and how good it is: fallen, then run or share of looks, then loss."""

    images: Tensor
    rank: Tensor
    loss: Tensor
    fallen: Tensor

    def take(self, place: Tensor, points: Tensor, rank: Tensor, loss: Tensor) -> None:
        """Points `(M, C, H, W)` of the images at these places, where they are better."""
        better = (rank > self.rank[place]) | ((rank == self.rank[place]) & (loss > self.loss[place]))
        at = place[better]
        self.images[at], self.rank[at], self.loss[at] = points[better], rank[better], loss[better]


class APGDEoT(InPortions):
    """White-box on any view; untargeted unless targets are given."""

    Config = APGDEoTConfig

    def _all_starts(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        targets: Tensor | None,
        streams: Streams,
    ) -> Tensor:
        c, nothing = self.config, images.new_full((len(images),), -torch.inf)
        best = _Best(images.clone(), nothing, nothing.clone(), torch.zeros_like(labels, dtype=torch.bool))
        aimed: list[Tensor | None] = [None]
        if c.target_classes and targets is None:
            with torch.no_grad():
                aimed = [*most_likely(view(images), labels, c.target_classes)]
        for turn, aims in enumerate(aimed):
            best.loss.fill_(-torch.inf)  # losses aimed at one class and at another are not compared
            for start in range(turn * c.restarts, (turn + 1) * c.restarts):
                waiting = torch.nonzero(~best.fallen).squeeze(1)
                if not len(waiting):
                    return best.images
                some = [None if item is None else item[waiting] for item in (targets, aims, mask)]
                first = random_start(images[waiting], c.norm, c.eps, streams.select(waiting), start)
                first = project(first, images[waiting], c.norm, c.eps, some[2])
                self._one_start(view, best, waiting, images[waiting], labels[waiting], first, *some)
        return best.images

    def _one_start(
        self,
        view: ThreatView,
        best: _Best,
        place: Tensor,
        images: Tensor,
        labels: Tensor,
        first: Tensor,
        targets: Tensor | None,
        aims: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        """Climb from a start, and leave in `best` what was found for the images at these places."""
        c = self.config
        zero = images.new_zeros(len(images))
        lowest, no = zero - torch.inf, torch.zeros_like(labels, dtype=torch.bool)
        blank = torch.zeros_like(images)
        climb = _Climb(
            place=place,
            images=images,
            labels=labels,
            targets=targets,
            aims=aims,
            mask=mask,
            current=first,
            before=first,
            gradient=blank,
            loss=lowest,
            step=zero + 2 * c.eps,
            top=first,
            top_gradient=blank,
            top_loss=lowest,
            gained=zero - 1,  # the start itself is no gain
            loss_then=lowest,
            halved_then=~no,  # so that the first checkpoint asks for gains alone
            streak=torch.zeros_like(labels),
        )
        ends = checkpoints(c.steps)
        for step in range(c.steps + 1):
            self._look(view, best, climb, last=step == c.steps)
            stay = climb.streak < c.patience
            if not bool(stay.all()):
                best.fallen[climb.place[~stay]] = True
                climb.keep(stay)
            if not len(climb.place) or step == c.steps:
                return
            if step in ends:
                self._check(climb, ends[step])
            self._move(climb, momentum=step > 0)

    def _look(self, view: ThreatView, best: _Best, climb: _Climb, *, last: bool) -> None:
        """Loss and gradient at the current points, and what is best so far; after the last step no gradient."""
        c = self.config
        sight = (view, climb.current, climb.labels, climb.targets)

        def goal(logits: Tensor, own: Tensor, wanted: Tensor | None) -> Tensor:
            return loss_of(c.loss, logits, own, wanted, view.watch)

        how = {"loss": goal, "eot": c.eot, "batch_size": c.batch_size, "aims": climb.aims}
        if last:
            share, loss = judged(*sight, **how)
        else:
            climb.gradient, share, loss = gradient_of(*sight, **how)
            if climb.mask is not None:
                climb.gradient = climb.gradient * climb.mask
        climb.gained = climb.gained + (loss > climb.loss)
        climb.loss = loss
        higher = loss > climb.top_loss
        wide = higher[:, None, None, None]
        climb.top = torch.where(wide, climb.current, climb.top)
        climb.top_gradient = torch.where(wide, climb.gradient, climb.top_gradient)
        climb.top_loss = torch.where(higher, loss, climb.top_loss)
        climb.streak = (climb.streak + 1) * (share >= 1)
        best.take(climb.place, climb.current, torch.where(climb.streak > 0, climb.streak.to(share), share), loss)

    def _check(self, climb: _Climb, length: int) -> None:
        """A checkpoint after so many steps: who gained too little goes back, and on with half the step."""
        halve = climb.gained <= self.config.rho * length
        halve = halve | (~climb.halved_then & (climb.loss_then >= climb.top_loss))
        climb.loss_then, climb.halved_then = climb.top_loss, halve
        climb.gained = torch.zeros_like(climb.gained)
        climb.step = torch.where(halve, climb.step / 2, climb.step)
        wide = halve[:, None, None, None]
        climb.gradient = torch.where(wide, climb.top_gradient, climb.gradient)
        climb.current = torch.where(wide, climb.top, climb.current)

    def _move(self, climb: _Climb, *, momentum: bool) -> None:
        """One step of each image by its own size."""
        c, now = self.config, climb.current
        ahead = now + climb.step[:, None, None, None] * step_along(climb.gradient, c.norm, 1.0)
        moved = project(ahead, climb.images, c.norm, c.eps, climb.mask)
        if momentum:
            moved = now + 0.75 * (moved - now) + 0.25 * (now - climb.before)
            moved = project(moved, climb.images, c.norm, c.eps, climb.mask)
        climb.before, climb.current = now, moved


def checkpoints(steps: int) -> dict[int, int]:
    """After which steps the size is looked at, and how many steps lie since the last time.

    Of n steps the first stretch has 0.22 n; each further one is 0.03 n shorter, down to 0.06 n.
    """
    length, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, place = {}, length
    while place <= steps:
        found[place] = length
        length = max(length - shorter, least)
        place += length
    return found
