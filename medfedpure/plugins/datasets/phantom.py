"""Phantom: brain-like slices with and without lesions, drawn from a seed; nothing to download.

Each image is a patient of its own: an axial slice of a head with its own size, asymmetry, folds,
ventricles and level, T1-like or T2-like, on one of several scanners. The positive class carries
one to three lesions, faint ones and clear ones; both classes carry benign vessels,
calcifications and other dots. The picture is a formula of the coordinates (signed distances and
smooth edges), so an image shows the same anatomy at every size.

A scanner turns the signal x into pixels by

    x -> gain x^gamma          contrast curve
    x -> x exp(b(u, v))        bias field, b a quadratic polynomial
    x -> sqrt((x + n1)^2 + n2^2)    Rician noise, n1 and n2 Gaussian (Gudbjartsson and Patz 1995)

with its own resolution, orientation and mirroring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import Dataset, ImageDataset
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.plugins.datasets.phantom_anatomy import draw_head, draw_lesions
from medfedpure.plugins.datasets.phantom_shapes import Canvas, Draws

_CHUNK_PIXELS = 2**16
# Powers of the root of g^3 = g + 1: the R2 sequence, evenly spread in two dimensions (Roberts 2018).
_R2 = (0.7548776662466927, 0.5698402909980532)


class PhantomConfig(Config):
    """What the phantom draws."""

    images: int = Field(3000, ge=1, description="how many images; image i does not depend on it")
    image_size: int = Field(48, ge=16, description="height and width in pixels")
    channels: Literal[1, 3] = Field(1, description="1, or 3 equal ones for networks that want colour")
    scanners: int = Field(3, ge=1, description="how many scanners the images come from")
    scanner_shift: float = Field(1.0, ge=0.0, le=3.0, description="how much scanners differ; 0 = all the same")
    lesion_fraction: float = Field(0.5, ge=0.0, le=1.0, description="share of images with a lesion")
    lesion_contrast: float = Field(1.0, gt=0.0, le=4.0, description="multiplies how far lesions stand out")
    lesion_size: float = Field(1.0, gt=0.0, le=3.0, description="multiplies the radius of lesions")
    noise: float = Field(0.015, ge=0.0, le=0.2, description="standard deviation of the scanners' noise, about")
    seed: int = Field(0, description="equal seeds give equal images")
    noise_source: Literal["reference", "format_1"] = Field(
        "reference", description="format_1 repeats the images of runs that were saved before version 0.2"
    )


class Phantom(Dataset):
    """Brain-like slices, classes "healthy" and "lesion", with lesion masks and scanners as sites.

    Deterministic for a configuration; the first images of a larger set are those of a smaller one.
    """

    Config = PhantomConfig
    deterministic = True

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """A run of format 1 had its images drawn by other streams; they are repeated."""
        return {**config, "noise_source": "format_1"} if format == 1 else config

    def read(self) -> ImageDataset:
        """Draw everything.

        Returns:
            pixels `(N, C, S, S)` uint8, labels `(N,)` (1 = lesion), groups 0 ... N - 1, sites
            `(N,)` in 0 ... scanners - 1 and masks `(N, 1, S, S)`.
        """
        config: PhantomConfig = self.config
        ids = torch.arange(config.images)
        start = torch.rand(2, generator=torch.Generator().manual_seed(derive_seed(config.seed, "phantom")))
        labels = (_spread(ids, 0, start) < config.lesion_fraction).long()
        sites = (_spread(ids, 1, start) * config.scanners).long()
        scanners = _Scanners.draw(config)
        # Chunks are always full, so that an image is computed alike whatever the number of images.
        chunk = max(1, _CHUNK_PIXELS // config.image_size**2)
        parts = []
        for begin in range(0, config.images, chunk):
            index = torch.arange(begin, begin + chunk).clamp_max(config.images - 1)
            parts.append(_draw(config, index, labels[index], scanners.select(sites[index])))
        pixels, masks = (torch.cat(part)[: config.images].unsqueeze(1) for part in zip(*parts, strict=True))
        return ImageDataset(
            pixels=pixels.repeat(1, config.channels, 1, 1),
            labels=labels,
            groups=ids.clone(),
            class_names=("healthy", "lesion"),
            ids=ids,
            sites=sites,
            masks=masks,
            name="phantom",
        )


@dataclass(frozen=True)
class _Scanners:
    """One scanner per row: gain, gamma, turn, mirror, blur, noise `(M, 1, 1)`; bias field `(M, 5)`."""

    gain: Tensor
    gamma: Tensor
    turn: Tensor
    mirror: Tensor
    blur: Tensor
    noise: Tensor
    bias: Tensor

    @classmethod
    def draw(cls, config: PhantomConfig) -> _Scanners:
        draws = Draws(Streams(config.seed, torch.arange(config.scanners), config.noise_source), "scanner", 16)
        shift = config.scanner_shift
        return cls(
            gain=0.8 + shift * draws.between(-0.08, 0.06),
            gamma=torch.exp(shift * draws.between(-0.25, 0.25)),
            turn=shift * draws.between(-0.14, 0.14),
            mirror=1.0 - 2.0 * draws.chance(0.4 if shift > 0 else 0.0),
            blur=0.012 * torch.exp(shift * draws.between(-0.5, 0.5)),
            noise=config.noise * torch.exp(shift * draws.between(-0.35, 0.35)),
            bias=shift * draws.several(5, -0.12, 0.12),
        )

    def select(self, index: Tensor) -> _Scanners:
        return _Scanners(**{name: value[index] for name, value in vars(self).items()})


def _draw(config: PhantomConfig, ids: Tensor, labels: Tensor, scanners: _Scanners) -> tuple[Tensor, Tensor]:
    """Pixels `(N, S, S)` uint8 and lesion masks `(N, S, S)` bool of chosen images."""
    streams = Streams(derive_seed(config.seed, "phantom"), ids, config.noise_source)
    draws = Draws(streams, "position", 16)
    turn = scanners.turn + draws.between(-0.09, 0.09)
    shift_x, shift_y = draws.between(-0.03, 0.03), draws.between(-0.03, 0.03)
    canvas = Canvas.place(config.image_size, scanners.blur, turn, scanners.mirror, shift_x, shift_y)
    head = draw_head(streams, canvas)
    present = labels.float().view(-1, 1, 1)
    signal, masks = draw_lesions(streams, canvas, head, present, config.lesion_contrast, config.lesion_size)

    u, v = canvas.axis_x, canvas.axis_y.unsqueeze(1)
    one, two, three, four, five = (scanners.bias + draws.several(5, -0.04, 0.04)).unsqueeze(2).unsqueeze(3).unbind(1)
    bias = one * u + two * v + three * u * v + four * (u * u - v * v) + five * (u * u + v * v - 0.5)
    signal = scanners.gain * signal.clamp_min(1e-3) ** scanners.gamma * torch.exp(bias)
    real, imaginary = streams.normal((2, *signal.shape[1:]), stage="noise").mul_(scanners.noise.unsqueeze(1)).unbind(1)
    signal = ((signal + real) ** 2 + imaginary**2).sqrt()
    return signal.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8), masks


def _spread(ids: Tensor, coordinate: int, start: Tensor) -> Tensor:
    """Evenly spread numbers in [0, 1), `(N,)` float64, so that every prefix has all classes and scanners."""
    return (ids.double() * _R2[coordinate] + start[coordinate]) % 1.0
