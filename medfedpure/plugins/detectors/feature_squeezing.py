"""Does the prediction survive a coarser image? (Xu, Evans and Qi 2018, arXiv 1704.01155)

    score(x) = max over squeezers q of || softmax f(x) - softmax f(q(x)) ||_1

The squeezers are fewer bits per pixel, round(x (2^b - 1)) / (2^b - 1), and median filters.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.streams import Streams
from medfedpure.models.filters import median_filter


class FeatureSqueezingConfig(Config):
    """Which squeezers."""

    bits: tuple[int, ...] = Field((5,), description="bit depths to reduce to, 1 to 8")
    windows: tuple[int, ...] = Field((3,), description="sides of median filters, odd")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.bits and not self.windows:
            raise ValueError("at least one squeezer is wanted: bits or windows")
        if any(not 1 <= bits <= 8 for bits in self.bits) or any(side < 3 or side % 2 == 0 for side in self.windows):
            raise ValueError("bits lie in 1 to 8, windows are odd and at least 3")
        return self


class FeatureSqueezing(Detector):
    """Needs the classifier; learns nothing; one classifier pass for each squeezer."""

    Config = FeatureSqueezingConfig
    deterministic = True

    @property
    def requires(self) -> frozenset[str]:
        """The classifier."""
        return frozenset({"classifier"})

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:  # noqa: ARG002
        """`(N,)` in [0, 2]."""
        classifier = context.classifier
        if classifier is None:
            raise MissingRequirementError("feature_squeezing requires a classifier")
        before = context.predict_logits(images).softmax(1)
        gaps = [(classifier(squeezed).softmax(1) - before).abs().sum(1) for squeezed in self.squeezed(images)]
        return torch.stack(gaps).amax(0)

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N, 1, H, W)`: the largest change that a squeezer makes to each pixel, channels averaged."""
        del context, streams
        changes = [(squeezed - images).abs().mean(1, keepdim=True) for squeezed in self.squeezed(images)]
        return torch.stack(changes).amax(0)

    def squeezed(self, images: Tensor) -> list[Tensor]:
        """One `(N, C, H, W)` for each squeezer."""
        coarse = [(images * (2**bits - 1)).round() / (2**bits - 1) for bits in self.config.bits]
        return coarse + [median_filter(images, side) for side in self.config.windows]
