"""Filters of images that plugins of more than one kind use."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def odd_side(value: int) -> int:
    """A window's side, for configurations; ValueError unless it is odd."""
    if value % 2 == 0:
        raise ValueError("an odd side is wanted, so that the window has a middle")
    return value


def median_filter(images: Tensor, size: int) -> Tensor:
    """Each pixel of `(N, C, H, W)` becomes the median of its size x size window (odd); edges are mirrored."""
    reach = size // 2
    padded = pad(images, (reach, reach, reach, reach), mode="reflect")
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4).median(dim=-1).values
