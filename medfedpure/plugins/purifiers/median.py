"""3x3 median filter: the anchor that every purifier must beat (Xu et al. 2018, feature squeezing)."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from medfedpure.core.config import Config
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams


class MedianConfig(Config):
    """Size of the neighbourhood."""

    size: int = Field(3, ge=3, le=9, multiple_of=1, description="side of the square window, odd")


class Median(Purifier):
    """Each pixel becomes the median of its neighbourhood; edges are mirrored; the strength is not used."""

    Config = MedianConfig
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)` filtered channel by channel, without any network evaluation."""
        size, reach = self.config.size, self.config.size // 2
        padded = pad(images, (reach, reach, reach, reach), mode="reflect")
        windows = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
        filtered = windows.median(dim=-1).values
        return Purification(filtered, torch.zeros(len(images), dtype=torch.int64, device=images.device))
