"""FAB, the fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044), aimed at one class after another.

With f = z_t - z_y linearized at x_i, and d(x) the smallest change of x that reaches f = 0 within [0, 1],

    x_{i+1} = clip( (1 - a) (x_i + eta d(x_i)) + a (x + eta d(x)) ),
    a = min( a_max, ||d(x_i)|| / (||d(x_i)|| + ||d(x)||) );

where that fools, it is kept if it is the nearest so far, and the search goes on from x + beta (x_{i+1} - x). Of two
classes there is one other, and aiming at it is the untargeted attack.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.attack import Norm, ThreatView, length, project
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.gradient import BallConfig, InPortions, is_fooled, most_likely, random_start, slope


class FABConfig(BallConfig):
    """The original's numbers; only the budget has to be chosen."""

    steps: int = Field(100, ge=1, description="steps of each start, each with one gradient")
    restarts: int = Field(1, ge=1, description="starts for each class; the first at the image, others half way to eps")
    target_classes: int = Field(
        9, ge=1, description="it aims at so many other classes in turn, the most likely first, while an image resists"
    )
    eta: float = Field(1.05, ge=1, description="by which factor the boundary is overstepped")
    beta: float = Field(0.9, gt=0, lt=1, description="share of the way that is kept where an image was fooled")
    largest_pull: float = Field(0.1, ge=0, le=1, description="a_max: how far the image itself may pull")
    batch_size: int = Field(64, ge=1, description="images at a time")


class FAB(InPortions):
    """White-box, for views without noise; it looks for the nearest boundary, and what lies beyond eps is projected.

    An image that is misread already comes back as it was.
    """

    Config = FABConfig

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
        with torch.no_grad():
            logits = view(images)
        best, distance = images.clone(), images.new_full((len(images),), torch.inf)
        distance[is_fooled(logits, labels, targets)] = 0.0
        aimed = [targets] if targets is not None else most_likely(logits, labels, c.target_classes)
        for turn, aims in enumerate(aimed):
            for start in range(c.restarts):
                waiting = torch.nonzero(distance > c.eps).squeeze(1)
                if not len(waiting):
                    break
                own, limit = images[waiting], None if mask is None else mask[waiting]
                first = own
                if start:
                    draw = turn * c.restarts + start
                    first = random_start(own, c.norm, c.eps / 2, streams.select(waiting), draw)
                    first = project(first, own, c.norm, c.eps, limit)
                wanted = None if targets is None else targets[waiting]
                moved, size = self._one_start(view, own, first, labels[waiting], aims[waiting], wanted, limit)
                # Whoever never fell is taken where the search ended.
                nearer = (size < distance[waiting]) | distance[waiting].isinf()
                best[waiting[nearer]], distance[waiting[nearer]] = moved[nearer], size[nearer]
        return project(best, images, c.norm, c.eps, mask)

    def _one_start(
        self,
        view: ThreatView,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        aims: Tensor,
        targets: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The nearest fooled image `(N, C, H, W)` on the way, and its distance `(N,)`: infinite where there is none."""
        c = self.config
        found, nearest = start.clone(), images.new_full((len(images),), torch.inf)
        active, current = torch.arange(len(images), device=images.device), start
        for _ in range(c.steps):
            gap, normal = _boundary(view, current, labels, aims)
            if mask is not None:
                normal = normal * mask
            # The boundary is normal . x = offset; both changes lead to it from where they begin.
            offset = (normal * current).flatten(1).sum(1, dtype=torch.promote_types(gap.dtype, torch.float32)) - gap
            here = toward(current, normal, offset, c.norm)
            there = toward(images, normal, offset, c.norm)
            sizes = [length(change, c.norm).clamp_min(1e-8) for change in (here, there)]
            pull = (sizes[0] / (sizes[0] + sizes[1])).clamp_max(c.largest_pull)[:, None, None, None]
            current = ((1 - pull) * (current + c.eta * here) + pull * (images + c.eta * there)).clamp(0, 1)
            with torch.no_grad():
                fooled = is_fooled(view(current), labels, targets)
            size = length(current - images, c.norm)
            keep = (fooled & (size < nearest[active])) | nearest[active].isinf()
            found[active[keep]] = current[keep]
            nearest[active] = torch.where(fooled, torch.minimum(size, nearest[active]), nearest[active])
            current = torch.where(fooled[:, None, None, None], images + c.beta * (current - images), current)
            stay = nearest[active] > c.eps
            if not bool(stay.all()):
                active, current, images, labels, aims = (item[stay] for item in (active, current, images, labels, aims))
                mask, targets = (None if item is None else item[stay] for item in (mask, targets))
                if not len(active):
                    break
        return found, nearest


def _boundary(view: ThreatView, images: Tensor, labels: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """z_t - z_y `(N,)` and its gradient `(N, C, H, W)`, both over the gradient's largest value."""
    leaf = images.detach().requires_grad_(True)
    logits = view(leaf)
    gap = (logits.gather(1, aims[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    gradient, gap = slope(gap, leaf, view), gap.detach().to(images)
    if view.watch is not None:
        view.watch.slopes(gradient, gap > 0)
    largest = length(gradient, "linf")
    scale = torch.where(largest > 0, largest, 1.0)
    return gap / scale, gradient / scale[:, None, None, None]


def toward(images: Tensor, normal: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """The smallest change `(N, C, H, W)` that leads to normal . x = offset within [0, 1], or as near as it gets.

    Each pixel moves by min(l s, room): s is 1 in linf and |normal| in l2, and l such that all together arrive. Half
    precision is added up in float32.

    Args:
        images: `(N, C, H, W)` in [0, 1].
        normal: `(N, C, H, W)`; pixels where it is 0 stay.
        offset: `(N,)`.
        norm: "linf" or "l2".
    """
    least = torch.promote_types(images.dtype, torch.float32)
    flat, slopes = images.to(least).flatten(1), normal.to(least).flatten(1)
    missing = offset - (slopes * flat).sum(1)
    along = slopes.sign() * torch.where(missing >= 0, 1.0, -1.0)[:, None]
    missing, steep = missing.abs(), slopes.abs()
    room = torch.where(along > 0, 1 - flat, flat)
    speed = (steep > 0).to(steep) if norm == "linf" else steep
    bound = torch.where(speed > 0, room / speed, torch.inf)
    ordered, place = bound.sort(1)
    weight, pace, most = (item.gather(1, place) for item in (steep, speed, room))
    # Gone so far at l = ordered[k]: pixels up to k have used their room, the others go on at their speed.
    used = (weight * most).cumsum(1)
    rest = (weight * pace).flip(1).cumsum(1).flip(1) - weight * pace
    reached = torch.where(ordered.isinf(), torch.inf, used + ordered.nan_to_num(posinf=0.0) * rest)
    first = torch.searchsorted(reached.contiguous(), missing[:, None]).clamp_max(reached.shape[1] - 1)
    # Between two bounds it is linear: before the first one nothing is used up.
    before = torch.where(first > 0, used.gather(1, (first - 1).clamp_min(0)), 0.0)
    pending = (rest + weight * pace).gather(1, first)
    level = (missing[:, None] - before) / pending.clamp_min(1e-20)
    change = along * torch.minimum(level * speed, room)
    return torch.where(speed > 0, change, 0.0).view_as(images).to(images)
