"""3x3 median filter: the anchor that every purifier must beat (Xu, Evans and Qi 2018, arXiv 1704.01155).

purified(x)[u, v] = median of x over the size x size window around (u, v)
"""

import torch
from pydantic import Field, field_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.models.filters import median_filter, odd_side


class MedianConfig(Config):
    """Size of the neighbourhood."""

    size: int = Field(3, ge=3, le=9, description="side of the square window, odd")

    _odd = field_validator("size")(odd_side)


class Median(Purifier):
    """Each pixel becomes the median of its neighbourhood; edges are mirrored; the strength is not used."""

    Config = MedianConfig
    deterministic = True
    differentiable = True

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)` filtered channel by channel, without any network evaluation."""
        filtered = median_filter(images, self.config.size)
        return Purification(filtered, torch.zeros(len(images), dtype=torch.int64, device=images.device))
