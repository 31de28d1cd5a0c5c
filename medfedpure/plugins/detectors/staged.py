"""A cheap detector clears most images, and an expensive one is asked about the rest.

    u = (s1(x) - q) / std(s1),    z = (s2(x) - mean(s2)) / std(s2)
    score(x) = u                                  where u <= 0: cleared, the second is not asked
               u / (u + r) log(1 + exp z)         where u > 0

q is the quantile `clear` of the first's benign scores, so that a share of about `clear` of benign images pays for the
first alone; q, means and deviations are those of groups that neither stage was fitted on. A cascade as in Viola and
Jones 2001 ("Rapid object detection using a boosted cascade of simple features"). The score is one number: every cleared
image lies at or below 0, in the order of the first, every other one above it. It rises with both stages and has no jump
at u = 0, where the factor u / (u + r) is 0 too. So an attacker differentiates what is deployed, no relaxation stands in
for a hard branch, and above 0 the gradient has both parts, how to be cleared and how to please the second. Where an
image is cleared it has the first's alone: the second has no say there.

It is worth what its weaker part is: an image that the first clears is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext, ScoreContext, check_requirements
from medfedpure.core.errors import DataError
from medfedpure.core.progress import track
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.plugins.detectors.parts import Combined, PartConfig, made, spelled, upgraded


class StagedConfig(Config):
    """Which two detectors, and how many images the first clears."""

    first: PartConfig = Field(PartConfig(plugin="distilled"), description="cheap, asked about every image")
    second: PartConfig = Field(PartConfig(plugin="compose"), description="expensive, asked about what is not cleared")
    clear: float = Field(0.85, gt=0, lt=1, description="share of benign images that the first clears, about")
    ramp: float = Field(0.25, gt=0, description="r, in standard deviations of the first: where the second counts half")
    held_out: float = Field(0.25, gt=0, lt=1, description="share of the groups that are kept from both fits to measure")


class Staged(Combined):
    """Its flags and requirements are those that both stages, or any, have.

    On an accelerator the choice of whom to ask costs one device synchronization for each batch, under gradients too.
    """

    Config = StagedConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        c = self.config
        stages = [made(part) for part in (c.first, c.second)]
        known = {name: spelled(getattr(c, name), part) for name, part in zip(("first", "second"), stages, strict=True)}
        self.config = c.model_copy(update=known)
        self.hold(stages)

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """The stages' configurations are brought up to date by their own plugins."""
        return {**config, **{name: upgraded(config[name], format) for name in ("first", "second") if name in config}}

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Fit both stages on most groups, then measure both on one image of each of the others.

        Raises:
            DataError: too few groups to keep some out, or the scores of a stage do not vary over them.
        """
        context = context or FitContext()
        check_requirements(self, context)
        share, stages = self.config.held_out, self.detectors()
        try:
            parts = data.split({"fit": 1 - share, "measure": share}, seed=derive_seed(seed, "staged"))
            kept = parts["measure"].one_per_group(seed)
        except DataError as error:
            raise DataError(
                f"{error}: staged keeps out groups to measure its stages on, so bring more images"
            ) from error
        if len(kept) < 2:
            raise DataError(
                f"staged measures its stages on two groups or more that it keeps out, and of {data.num_groups} it "
                "keeps out one: bring more images, or raise held_out"
            )
        for place, part in enumerate(stages):
            own = None if context.checkpoint is None else context.checkpoint / f"stage{place}"
            part.fit(parts["fit"], context=replace(context, checkpoint=own), seed=derive_seed(seed, "stage", place))
        rows = []
        with torch.no_grad():
            for batch in track(kept.batches(64), "scores of benign images", -(-len(kept) // 64)):
                images, streams = batch.images.to(context.device), Streams(derive_seed(seed, "measure"), batch.ids)
                scores = [
                    part.score(images, context=context, streams=streams.child(place)).double()
                    for place, part in enumerate(stages)
                ]
                rows.append(torch.stack(scores, 1))
        found = torch.cat(rows)
        spread = found.std(0)
        names = (self.config.first.plugin, self.config.second.plugin)
        if flat := [name for name, value in zip(names, spread.tolist(), strict=True) if not value > 0]:
            raise DataError(
                f"the scores of {', '.join(flat)} do not vary over the {len(found)} images that staged keeps out: "
                "bring more of them, or raise held_out"
            )
        self.centre = torch.stack((found[:, 0].quantile(self.config.clear), found[:, 1].mean()))
        self.spread = spread
        return self.mark_fitted()

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`: at most 0 where the first stage clears, above 0 elsewhere."""
        second = self.detectors()[1]
        excess = self._excess(images, context, streams)
        asked = torch.nonzero((excess.detach() > 0).cpu()).squeeze(1)
        if not len(asked):
            return excess.to(images.dtype)
        rows = asked.to(images.device)
        own = replace(context, logits=None if context.logits is None else context.logits[rows])
        scores = second.score(images[rows], context=own, streams=streams.child(1).select(asked))
        level = functional.softplus((scores.double() - self.centre[1]) / self.spread[1])
        above = excess[rows]
        joined = above / (above + self.config.ramp) * level
        return excess.index_copy(0, rows, joined).to(images.dtype)

    def leading(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)` int64: 1, the second stage, wherever it is asked, for its word is the last; 0 elsewhere."""
        return (self._excess(images, context, streams) > 0).long()

    def _excess(self, images: Tensor, context: ScoreContext, streams: Streams) -> Tensor:
        """u, `(N,)` float64."""
        scores = self.detectors()[0].score(images, context=context, streams=streams.child(0))
        return (scores.double() - self.centre[0]) / self.spread[0]

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor | None:
        """`(N, 1, H, W)`: the second stage's map, also of images that the first clears; else the first's."""
        for place, part in reversed(list(enumerate(self.detectors()))):
            found = part.suspicion_map(images, context=context, streams=streams.child(place))
            if found is not None:
                return found
        return None
