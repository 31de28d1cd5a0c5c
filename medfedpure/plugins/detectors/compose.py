"""Several detectors as one: an attack has to pass all of them (feature fusion as in Xu, Evans and Qi 2018).

    score(x) = T log sum_i exp( z_i(x) / T ),   z_i = (g_i(s_i(x)) - mean_i) / std_i

a smooth maximum of the parts' scores, standardized on the images of `fit`, one of each near-duplicate group.
g_i(s) = s, or log(max(s, 0) + floor_i) for a score with a long tail, such as a divergence: on images that the
classifier was trained on it is tiny, and in its standard deviations every other image would be suspicious.
Standardizing promises nothing: the false-positive rate comes from the calibration alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext, ScoreContext, check_requirements
from medfedpure.core.errors import DataError
from medfedpure.core.progress import track
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.plugins.detectors.parts import Combined, PartConfig, made, spelled, upgraded


class ComponentConfig(PartConfig):
    """One detector by name."""

    floor: float | None = Field(None, gt=0, description="if given, log(score + floor) stands for the score")


class ComposeConfig(Config):
    """Which detectors, and how sharply the largest counts."""

    parts: tuple[ComponentConfig, ...] = Field(
        (ComponentConfig(plugin="score_norm"), ComponentConfig(plugin="denoising_disagreement", floor=1e-4)),
        min_length=1,
        description="the detectors",
    )
    temperature: float = Field(0.5, gt=0, description="T, in standard deviations; towards 0 = the maximum")


class Compose(Combined):
    """Its flags and requirements are those that all, or any, of its parts have."""

    Config = ComposeConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        detectors = [made(part) for part in self.config.parts]
        known = tuple(spelled(part, detector) for part, detector in zip(self.config.parts, detectors, strict=True))
        self.config = self.config.model_copy(update={"parts": known})
        self.hold(detectors)

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """Each part's configuration is brought up to date by its own plugin."""
        parts = [upgraded(part, format) for part in config.get("parts", ())]
        return {**config, "parts": parts} if parts else config

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Fit every part, then measure mean and standard deviation of its scores.

        Raises:
            DataError: the scores of a part do not vary.
        """
        context = context or FitContext()
        check_requirements(self, context)
        for place, part in enumerate(self.detectors()):
            own = None if context.checkpoint is None else context.checkpoint / f"part{place}"
            part.fit(data, context=replace(context, checkpoint=own), seed=derive_seed(seed, "part", place))
        kept = data.one_per_group(seed)
        with torch.no_grad():
            scores = torch.cat(
                [
                    self._raw(
                        batch.images.to(context.device), context, Streams(derive_seed(seed, "standardize"), batch.ids)
                    )
                    for batch in track(kept.batches(64), "scores of benign images", -(-len(kept) // 64))
                ]
            )
        spread = scores.std(0)
        flat = [part.plugin for part, value in zip(self.config.parts, spread.tolist(), strict=True) if not value > 0]
        if flat:
            raise DataError(f"the scores of {', '.join(flat)} do not vary over {len(kept)} images: bring more of them")
        self.centre, self.spread = scores.mean(0), spread
        return self.mark_fitted()

    def _raw(self, images: Tensor, context: ScoreContext, streams: Streams) -> Tensor:
        """Scores of the parts `(N, P)`, float64, logarithms where a floor is given."""
        scores = []
        for place, (part, config) in enumerate(zip(self.detectors(), self.config.parts, strict=True)):
            score = part.score(images, context=context, streams=streams.child(place)).double()
            scores.append(score if config.floor is None else (score.clamp_min(0) + config.floor).log())
        return torch.stack(scores, dim=1)

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`, in standard deviations of benign scores, about."""
        heat = self.config.temperature
        standardized = self._standardized(images, context, streams)
        largest: Tensor = heat * torch.logsumexp(standardized / heat, dim=1)
        return largest.to(images.dtype)

    def leading(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)` int64: the part whose standardized score is the largest."""
        return self._standardized(images, context, streams).argmax(1)

    def _standardized(self, images: Tensor, context: ScoreContext, streams: Streams) -> Tensor:
        """z of the parts, `(N, P)` float64."""
        return (self._raw(images, context, streams) - self.centre) / self.spread

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor | None:
        """`(N, 1, H, W)`: the mean of the maps of those parts that have one, each scaled to a largest value of 1."""
        maps = []
        for place, part in enumerate(self.detectors()):
            own = part.suspicion_map(images, context=context, streams=streams.child(place))
            if own is not None:
                maps.append(own / own.flatten(1).amax(1).clamp_min(1e-12)[:, None, None, None])
        return torch.stack(maps).mean(0) if maps else None
