"""Diffusion purification with a depth of its own for each image.

After DiffPure (Nie et al. 2022, arXiv 2205.07460) and MedFedPure (arXiv 2511.11625): noise an image
to depth t*, then run the reverse process. Here t* follows the detector's score,

    t* = t_min + strength * (t_max - t_min),

continuous. The way back takes a handful of steps, ancestral (Ho et al. 2020, arXiv 2006.11239) or DDIM (Song et
al. 2021, arXiv 2010.02502), with `adaptive_steps` ceil(num_inference_steps t* / t_max) of them; or ceil(t*)
ancestral ones, one for each timestep; or one, the estimate of x0. At a fractional t the log-SNR is interpolated
between integer timesteps, where everything equals diffusers' schedulers; the network is trained on fractional
timesteps. Images are in [0, 1] outside and in [-1, 1] inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfedpure.acceleration.known import on_host
from medfedpure.core.attack import Attack
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import InputError
from medfedpure.core.results import Purification, State, device_of
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import verdicts_of
from medfedpure.figures.metrics import classification_figures
from medfedpure.plugins.purifiers.diffusion_base import DiffusionConfig, DiffusionPurifier, SamplingConfig

FEW = ("ddim", "ancestral")


class DDPMSamplingConfig(SamplingConfig):
    """The way back."""

    sampler: Literal["ddim", "ancestral", "ddpm", "one_step"] = Field(
        "ancestral",
        description="deterministic in few steps; ancestral in few steps, with fresh noise at each; ancestral with one "
        "step for each timestep; or one estimate",
    )
    num_inference_steps: int = Field(8, ge=1, description="DDIM or ancestral steps, each one network evaluation")
    adaptive_steps: bool = Field(
        False,
        description="few steps in proportion to the depth: ceil(num_inference_steps t* / t_max), not all for all",
    )


class DDPMConfig(DiffusionConfig):
    """Depth, and the way back."""

    moved: ClassVar[Mapping[str, str]] = {
        **DiffusionConfig.moved,
        "sampler": "sampling.sampler",
        "num_inference_steps": "sampling.num_inference_steps",
        "adaptive_steps": "sampling.adaptive_steps",
    }

    t_min: float = Field(100.0, ge=0, description="depth at strength 0; t = 0 leaves an image as it is")
    t_max: float = Field(150.0, ge=0, description="depth at strength 1; training covers timesteps up to here")
    sampling: DDPMSamplingConfig = Field(default_factory=DDPMSamplingConfig, description="the way back")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.t_min <= self.t_max < self.schedule.timesteps:
            raise ValueError(f"0 <= t_min <= t_max < timesteps is wanted; got {self.t_min}, {self.t_max}")
        return self

    def deepest(self) -> float:
        """t_max."""
        return self.t_max


class DDPM(DiffusionPurifier):
    """Noise to t*, then DDIM in few steps, ancestral sampling, or one estimate of x0."""

    Config = DDPMConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        c = self.config
        self.depth = Depth(c.t_min, c.t_max, c.sampling.num_inference_steps)

    def evaluations(self, timestep: Tensor) -> Tensor:
        """Network evaluations `(N,)` int64 of depths `(N,)`; none at t = 0."""
        sampling, depth, deep = self.config.sampling, self.depth, timestep.detach().double()
        if sampling.sampler == "one_step":
            return (deep > 0).long()
        if sampling.sampler in FEW and not sampling.adaptive_steps:
            return depth.steps * (deep > 0).long()
        wanted = deep if sampling.sampler == "ddpm" else depth.steps * deep / max(depth.t_max, 1e-12)
        # float noise in t* must not cost a step
        return (wanted - 1e-6).ceil().long().clamp_min(0)

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        """`(N, C, H, W)` cleaned at t* = t_min + strength (t_max - t_min)."""
        timestep, sampler = self.depth.of(strength), self.config.sampling.sampler
        alike = 1 if sampler == "one_step" else self.depth.steps
        varied = sampler == "ddpm" or (sampler in FEW and self.config.sampling.adaptive_steps)
        steps: Tensor | int = alike
        nfe = self.evaluations(timestep)
        if varied or self.depth.t_min <= 0:
            known = on_host(strength)
            steps = nfe if known is None else self.evaluations(self.depth.of(known))
        ancestral = sampler in ("ddpm", "ancestral")
        cleaned = self.clean(images, timestep, steps, ancestral=ancestral, streams=streams, stage="purify")
        return Purification(cleaned, nfe, timestep)

    def shortened(self, steps: int) -> DDPM:
        """The same network and depths, in at most so many DDIM steps: what a cheaper attacker differentiates."""
        assert self.network is not None
        sampling = {**self.config.sampling.model_dump(), "sampler": "ddim"}
        short = type(self)(self.config, sampling=sampling).adopt(self.network, (self.channels, 1, 1))
        short.depth = replace(self.depth, steps=min(steps, self.depth.steps))
        return short

    def fitted_state(self) -> State:
        """The network's tensors, and the depth as it was configured or tuned."""
        assert self.network is not None
        return State.of(self.network, channels=self.channels, depth=asdict(self.depth))

    def restore(self, state: State) -> None:
        """Rebuild the network, load it strictly, and take the depth back."""
        super().restore(state)
        self.depth = Depth(**state.values["depth"])

    @torch.no_grad()
    def tune(
        self,
        data: ImageDataset,
        attack: Attack,
        *,
        classifier: nn.Module,
        depths: Sequence[float] | None = None,
        steps: Sequence[int] = (2, 3, 5, 9),
        clean_drop: float = 0.02,
        margin: float = 0.02,
        mild_margin: float = 0.1,
        seed: int = 0,
    ) -> list[TuningRow]:
        """Choose t_min, t_max and steps on images of their own, before `calibrate`; the choice is saved.

        Every image is purified at every depth in every number of steps, benign and attacked (statically, on
        the bare classifier). Of the settings whose balanced accuracy on benign images falls by at most
        `clean_drop` the best restores most. t_max and steps are the cheapest setting, by steps, then depth, that
        restores within `margin` of it, and t_min is the smallest depth that restores within `mild_margin` of it
        in as many steps as it would get.

        Args:
            data: benign images with labels, of no other part.
            attack: crafted here on the bare classifier.
            classifier: images to logits.
            depths: up to the deepest timestep that the network was trained for; by default every 20th to t_max.
            steps: numbers of network evaluations.
            clean_drop: in balanced accuracy, in [0, 1].
            margin: likewise.
            mild_margin: likewise, at least `margin`.
            seed: of the noise.

        Returns:
            What was measured at every setting.

        Raises:
            InputError: a depth beyond what the network was trained for, no steps, margins out of order, another
                sampler than "ddim" and "ancestral", or no setting that keeps to `clean_drop`: the text says the
                smallest drop.
        """
        self.check_fitted()
        if depths is None:
            depths = [*range(20, math.ceil(self.config.t_max), 20), self.config.t_max]
        if not depths or not 0 < min(depths) <= max(depths) <= self.deepest():
            raise InputError(f"depths above 0 and up to {self.deepest():g} are wanted; got {tuple(depths)}")
        if not steps or min(steps) < 1 or not 0 <= margin <= mild_margin:
            raise InputError(
                f"steps >= 1 and 0 <= margin <= mild_margin are wanted; got {steps}, {margin}, {mild_margin}"
            )
        sampling = self.config.sampling
        if sampling.sampler not in FEW:
            raise InputError(
                f"tune chooses few steps, and sampling.sampler is {sampling.sampler!r}: set it to one of {FEW}"
            )
        images, streams = data.images.to(device_of(self)), Streams(derive_seed(seed, "tune"), data.ids)
        labels = data.labels.to(images.device)
        with torch.enable_grad():
            attacked = attack(classifier, images, labels, streams=streams).images

        def accuracy(given: Tensor) -> float:
            return classification_figures(verdicts_of(classifier, given), labels, data.num_classes).balanced_accuracy

        def cleaned(given: Tensor, depth: float, count: int) -> Tensor:
            ancestral = sampling.sampler == "ancestral"
            return torch.cat(
                [
                    self.clean(
                        given[part],
                        given.new_full((len(part),), depth),
                        count,
                        ancestral=ancestral,
                        streams=streams.select(part),
                        stage="purify",
                    )
                    for part in torch.arange(len(given)).split(64)
                ]
            )

        rows = [
            TuningRow(depth, count, accuracy(cleaned(images, depth, count)), accuracy(cleaned(attacked, depth, count)))
            for depth in depths
            for count in steps
        ]
        least, adaptive = accuracy(images) - clean_drop, sampling.adaptive_steps
        self.depth = choose_depth(rows, least, margin, mild_margin, adaptive=adaptive)
        return rows


@dataclass(frozen=True)
class Depth:
    """Depth at strength 0 and at strength 1, and network evaluations at the latter."""

    t_min: float
    t_max: float
    steps: int

    def of(self, strength: Tensor) -> Tensor:
        """t* `(N,)` of strengths `(N,)`."""
        return self.t_min + strength * (self.t_max - self.t_min)


@dataclass(frozen=True)
class TuningRow:
    """Balanced accuracy of benign and of attacked images, all purified at one depth in so many steps."""

    depth: float
    steps: int
    clean: float
    restored: float


def choose_depth(
    rows: Sequence[TuningRow], least: float, margin: float, mild_margin: float, *, adaptive: bool = False
) -> Depth:
    """The rule of `DDPM.tune`; `least` is the balanced accuracy that benign images must keep.

    Raises:
        InputError: no setting keeps it.
    """
    gentle = [row for row in rows if row.clean >= least]
    if not gentle:
        best = max(row.clean for row in rows)
        raise InputError(
            f"no setting keeps the balanced accuracy of benign images at {least:.3f}, the best keeps {best:.3f}: allow "
            "a larger clean_drop, offer smaller depths, or train the diffusion model longer"
        )
    best = max(row.restored for row in gentle)
    chosen = min((row for row in gentle if row.restored >= best - margin), key=lambda row: (row.steps, row.depth))

    def gets(row: TuningRow) -> int:
        return math.ceil(chosen.steps * row.depth / chosen.depth) if adaptive else chosen.steps

    mild = [
        row.depth
        for row in gentle
        if row.depth <= chosen.depth and row.steps == gets(row) and row.restored >= best - mild_margin
    ]
    return Depth(min(mild), chosen.depth, chosen.steps)
