"""Which pixels of a square are the picture's, and where they lie in it: the way back from `readers.squares`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """The part of a square that is no padding.

    A pixel belongs to it whose centre lies in the picture, so that one at the edge may be darkened by the padding.

    Attributes:
        top: row of its first pixel.
        left: column of its first pixel.
        rows: how many.
        columns: how many.
        first: (down, across) of the centre of its first pixel, in pixels of the picture, from the centre of theirs.
        step: (down, across) from one of its pixels to the next, in pixels of the picture.
    """

    top: int
    left: int
    rows: int
    columns: int
    first: tuple[float, float]
    step: tuple[float, float]

    def of(self, square: Tensor) -> Tensor:
        """The part of a square `(C, S, S)`."""
        return square[:, self.top : self.top + self.rows, self.left : self.left + self.columns]


def cut_of(height: int, width: int, size: int, aspect: float = 1.0) -> Cut:
    """Where a picture lies in its square.

    Args:
        height: of the picture, in its own pixels.
        width: likewise.
        size: of the square.
        aspect: how much higher than wide a pixel of the picture is, as `square_of_shares` was told.
    """
    shown = (height, width)
    if abs(aspect - 1) > 0.01:
        scale = size / max(height * aspect, width)
        shown = (max(round(height * aspect * scale), 1), max(round(width * scale), 1))
    side = max(shown)
    top, rows, down, row_step = _along(height, shown[0], side, size)
    left, columns, across, column_step = _along(width, shown[1], side, size)
    return Cut(top, left, rows, columns, (down, across), (row_step, column_step))


def whole_numbers(share: Tensor, deep: bool) -> NDArray[Any]:
    """Shares of white `(C, H, W)` as the nearest of 255 steps `(H, W, C)`, or of 65535."""
    top = 65535 if deep else 255
    found = (share.detach().cpu().double().clamp(0, 1) * top).round().permute(1, 2, 0).numpy()
    return numpy.asarray(found, numpy.uint16 if deep else numpy.uint8)


def _along(own: int, shown: int, side: int, size: int) -> tuple[int, int, float, float]:
    """Of one direction: the first pixel, how many, where its centre lies, and the step to the next."""
    pitch, before, unit = side / size, (side - shown) // 2, own / shown
    inside = [place for place in range(size) if before <= (place + 0.5) * pitch < before + shown]
    inside = inside or [min(int((before + shown / 2) / pitch), size - 1)]
    return inside[0], len(inside), ((inside[0] + 0.5) * pitch - before) * unit - 0.5, pitch * unit
