"""DiffPure (Nie et al. 2022, arXiv 2205.07460): one fixed depth for all, ancestral sampling step by step.

    x_t* = sqrt(abar_t*) x + sqrt(1 - abar_t*) e,   then  x_{t-1} ~ p(x_{t-1} | x_t)  for t = t*, ..., 1

The anchor: a hundred network evaluations for each image, where the adaptive purifier spends a handful.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.plugins.purifiers.ddpm import DDPM
from medfedpure.plugins.purifiers.diffusion_base import DiffusionConfig, DiffusionPurifier


class DiffPureConfig(DiffusionConfig):
    """The fixed depth."""

    timestep: float = Field(100.0, gt=0, description="t*, for every image; one network evaluation for each timestep")

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.timestep >= self.schedule.timesteps:
            raise ValueError(f"timestep < timesteps is wanted; got {self.timestep} of {self.schedule.timesteps}")
        return self

    def deepest(self) -> float:
        """The fixed depth."""
        return self.timestep


class DiffPure(DiffusionPurifier):
    """Noise every image to t*, and sample the whole way back; the strength is not used."""

    Config = DiffPureConfig

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)` cleaned in ceil(t*) evaluations each."""
        timestep = images.new_full((len(images),), self.config.timestep)
        steps = math.ceil(self.config.timestep)
        cleaned = self.clean(images, timestep, steps, ancestral=True, streams=streams, stage="purify")
        return Purification(cleaned, torch.full((len(images),), steps, device=images.device), timestep)

    def shortened(self, steps: int) -> DDPM:
        """The same network and depth, in at most so many DDIM steps: what a cheaper attacker differentiates."""
        assert self.network is not None
        same = self.config.model_dump(include=set(DiffusionConfig.model_fields))
        depth, count = self.config.timestep, min(steps, math.ceil(self.config.timestep))
        sampling = {**same.pop("sampling"), "sampler": "ddim", "num_inference_steps": count}
        short = DDPM(same, t_min=depth, t_max=depth, sampling=sampling)
        return short.adopt(self.network, (self.channels, 1, 1))
