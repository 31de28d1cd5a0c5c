"""Randomized smoothing as a purifier: one Gaussian copy of the image, to be voted over.

    purified(x) = median filter of clip( x + sigma e, 0, 1 ),   e ~ N(0, 1)

Cohen et al. 2019 (arXiv 1902.02918) classify many copies x + N(0, sigma^2) and take the vote; MedRDF (Xu
et al. 2022, arXiv 2111.14564) denoises each copy first. Here one draw is one copy, and the chain votes:
`DefendedClassifier(..., draws=n)`. What a vote can certify is another matter: see `medfedpure.certify`.
"""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.models.filters import median_filter, odd_side


class SmoothingConfig(Config):
    """How much noise, and what happens to it."""

    sigma: float = Field(0.05, gt=0, description="std of the noise in [0, 1] units")
    window: int = Field(3, ge=1, le=9, description="odd side of the median filter that denoises each copy; 1 = none")

    _odd = field_validator("window")(odd_side)


class Smoothing(Purifier):
    """Noise, then a median filter as MedRDF's reconstruction; the strength is not used."""

    Config = SmoothingConfig
    differentiable = True

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)`, one noisy copy of each, without any network evaluation."""
        noise = streams.normal(images.shape[1:], stage="smoothing", like=images)
        copies = (images + self.config.sigma * noise).clamp(0, 1)
        if self.config.window > 1:
            copies = median_filter(copies, self.config.window)
        return Purification(copies, torch.zeros(len(images), dtype=torch.int64, device=images.device))
