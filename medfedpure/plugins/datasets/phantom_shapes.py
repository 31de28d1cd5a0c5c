"""Geometry of the phantom: draws, soft edges, signed distances, waves and dots.

All lengths are in half image widths: a canvas spans [-1, 1] x [-1, 1], x to the right, y upwards.
A signed distance is negative inside. An edge blurred by a point spread of width `soft` is the
logistic function of the distance, sigmoid(-distance / soft): that antialiases it as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medfedpure.core.streams import Streams


@dataclass(frozen=True)
class Canvas:
    """Where a batch is drawn.

    Attributes:
        axis_x, axis_y: `(S,)` coordinates of the image's columns and rows; rows run downwards.
        x, y: `(N, S, S)` coordinates in the frame of the head, which is turned, mirrored and shifted.
        soft: `(N, 1, 1)` edge softness, from pixel size and scanner resolution together.
        turn, mirror, shift_x, shift_y: `(N, 1, 1)` the placement: radians, +-1, and lengths.
    """

    axis_x: Tensor
    axis_y: Tensor
    x: Tensor
    y: Tensor
    soft: Tensor
    turn: Tensor
    mirror: Tensor
    shift_x: Tensor
    shift_y: Tensor

    @classmethod
    def place(cls, size: int, blur: Tensor, turn: Tensor, mirror: Tensor, shift_x: Tensor, shift_y: Tensor) -> Self:
        """A canvas of `size` x `size` pixels; `blur` is the scanner's point spread (standard deviation)."""
        axis_x = (torch.arange(size, dtype=torch.float32) * 2.0 + 1.0) / size - 1.0
        axis_y = -axis_x
        x, y = rotate(axis_x - shift_x, axis_y.unsqueeze(1) - shift_y, turn)
        # 1.7: a logistic edge of scale s is as wide as a Gaussian one of standard deviation 1.7 s.
        soft = (blur * blur + (0.9 / size) ** 2).sqrt() / 1.7
        return cls(axis_x, axis_y, x * mirror, y, soft, turn, mirror, shift_x, shift_y)

    def on_image(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Image coordinates of points `(N, K)` of the head."""
        x, y = rotate(x * self.mirror.flatten(1), y, -self.turn.flatten(1))
        return x + self.shift_x.flatten(1), y + self.shift_y.flatten(1)


class Draws:
    """Uniform numbers of one stage, handed out in order, one per image, shaped `(N, 1, 1)`."""

    def __init__(self, streams: Streams, stage: str, count: int) -> None:
        self._values = streams.uniform((count,), stage=stage)
        self._used = 0

    def several(self, count: int, low: float, high: float) -> Tensor:
        """`(N, count)` numbers uniform in [low, high)."""
        values = self._values.narrow(1, self._used, count)
        self._used += count
        return low + (high - low) * values

    def between(self, low: float, high: float) -> Tensor:
        """`(N, 1, 1)`, uniform in [low, high)."""
        return self.several(1, low, high).unsqueeze(2)

    def skewed(self, low: float, high: float) -> Tensor:
        """`(N, 1, 1)`, log-uniform in [low, high): small values as common as large ones."""
        return self.between(math.log(low), math.log(high)).exp()

    def chance(self, probability: float) -> Tensor:
        """`(N, 1, 1)`, 1.0 with the given probability, else 0.0."""
        return (self.between(0.0, 1.0) < probability).float()


def cover(distance: Tensor, soft: Tensor) -> Tensor:
    """How much of each pixel lies inside, in [0, 1]."""
    return torch.sigmoid(-distance / soft)


def stroke(distance: Tensor, half_width: Tensor | float, soft: Tensor) -> Tensor:
    """Coverage of a line of the given half width; a line thinner than a pixel fades, it does not break."""
    return torch.sigmoid((half_width - distance) / soft) - torch.sigmoid((-half_width - distance) / soft)


def mix(below: Tensor, above: Tensor, opacity: Tensor) -> Tensor:
    """Paint one signal over another."""
    return below + (above - below) * opacity


def rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame turned by `angle` radians."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def ellipse(x: Tensor, y: Tensor, half_x: Tensor | float, half_y: Tensor | float) -> Tensor:
    """Signed distance to an ellipse at the origin, to first order (r - 1) / |grad r|."""
    u, v = x / half_x, y / half_y
    radius = (u * u + v * v).clamp_min(1e-6)
    slope = ((u / half_x) ** 2 + (v / half_y) ** 2).clamp_min(1e-6)
    root = radius.sqrt()
    return (root - 1.0) * root / slope.sqrt()


def capsule(
    x: Tensor,
    y: Tensor,
    start: tuple[Tensor | float, Tensor | float],
    end: tuple[Tensor | float, Tensor | float],
    radii: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
) -> Tensor:
    """Signed distance to a segment whose radius changes linearly from one end to the other."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = x - start[0], y - start[1]
    place = ((from_x * along_x + from_y * along_y) / (along_x * along_x + along_y * along_y)).clamp(0.0, 1.0)
    gap = ((from_x - place * along_x) ** 2 + (from_y - place * along_y) ** 2 + 1e-8).sqrt()
    return gap - (radii[0] + place * (radii[1] - radii[0]))


def smooth_union(first: Tensor, second: Tensor, blend: float) -> Tensor:
    """Signed distance of two shapes joined with a fillet of about `blend`."""
    return -blend * torch.logaddexp(-first / blend, -second / blend)


def waves(draws: Draws, canvas: Canvas, count: int, low: float, high: float) -> Tensor:
    """A random smooth field of unit variance, `(N, S, S)`: `count` plane waves of wave number low ... high.

    cos(ax + by + c) = cos(ax) cos(by + c) - sin(ax) sin(by + c): two small matrix products. The
    point spread damps a wave by exp(-(k width)^2 / 2).
    """
    number = draws.several(count, low, high)
    angle = draws.several(count, 0.0, math.pi)
    phase = draws.several(count, 0.0, 2.0 * math.pi)
    gain = (2.0 / count) ** 0.5 * torch.exp(-0.5 * (1.7 * number * canvas.soft.flatten(1)) ** 2)
    columns = canvas.axis_x * (number * angle.cos()).unsqueeze(2)
    rows = canvas.axis_y * (number * angle.sin()).unsqueeze(2) + phase.unsqueeze(2)
    gain = gain.unsqueeze(2)
    return torch.bmm((gain * rows.cos()).mT, columns.cos()) - torch.bmm((gain * rows.sin()).mT, columns.sin())


def dots(canvas: Canvas, x: Tensor, y: Tensor, radius: Tensor, height: Tensor) -> Tensor:
    """A sum of small Gaussian dots, `(N, S, S)`; places on the head, radii and heights are `(N, K)`.

    The point spread widens a dot and lowers it by the same area: what it holds does not depend on
    the image size.
    """
    x, y = canvas.on_image(x, y)
    variance = radius * radius + (1.7 * canvas.soft.flatten(1)) ** 2
    height = height * radius * radius / variance
    spread = (-0.5 / variance).unsqueeze(2)
    columns = torch.exp(spread * (canvas.axis_x - x.unsqueeze(2)) ** 2)
    rows = torch.exp(spread * (canvas.axis_y - y.unsqueeze(2)) ** 2)
    return torch.bmm((height.unsqueeze(2) * rows).mT, columns)
