"""What training images go through: moves, then what scanners differ in; every image by its own draws."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medfedpure.core.config import Config
from medfedpure.core.streams import Streams


class Augmentation(Config):
    """How much training images are varied; images are `(N, C, H, W)` in [0, 1] and stay so.

    Intensity: x -> x exp(s b(u, v)) + s/2 c x (1 - x), with b a quadratic polynomial of the position (gain and
    bias field) and c a contrast curve, their coefficients uniform in [-1, 1]. Rician noise is what the magnitude
    of a complex MR signal shows: x -> sqrt((x + n1)^2 + n2^2), n1 and n2 Gaussian (Gudbjartsson and Patz 1995,
    "The Rician distribution of noisy MRI data").
    """

    flip: bool = Field(True, description="mirror left-right with probability one half")
    quarter_turns: bool = Field(False, description="turn by 0, 90, 180 or 270 degrees, for data without an upright")
    shift: int = Field(2, ge=0, description="largest shift in pixels, either way, filled by wrapping around")
    rotation: float = Field(0.0, ge=0, le=45, description="largest rotation in degrees, either way, filled with 0")
    stretch: float = Field(0.0, ge=0, le=0.5, description="largest logarithm of the scale of each axis, and shear")
    intensity: float = Field(0.0, ge=0, le=1, description="s: how far gain, bias field and contrast vary")
    noise: float = Field(0.0, ge=0, le=1, description="largest standard deviation of added Gaussian noise")
    rician: float = Field(0.0, ge=0, le=1, description="largest standard deviation of Rician noise")

    def apply(self, images: Tensor, streams: Streams) -> Tensor:
        """Images `(N, C, H, W)` in [0, 1], each moved and rescanned by its own draws."""
        return self.rescan(self.turn(self.move(images, streams), streams), streams)

    def move(self, images: Tensor, streams: Streams) -> Tensor:
        """Flip and shift `(N, C, H, W)` by whole pixels."""
        if not self.flip and not self.shift:
            return images
        draws = streams.uniform((3,), stage="augment", like=images)
        columns = torch.arange(images.shape[3], device=images.device).expand(len(images), -1)
        rows = torch.arange(images.shape[2], device=images.device).expand(len(images), -1)
        if self.flip:
            columns = torch.where(draws[:, :1] < 0.5, columns, columns.flip(1))
        if self.shift:
            offset = ((draws[:, 1:] * 2 - 1) * (self.shift + 0.5)).round().long().clamp(-self.shift, self.shift)
            columns = (columns + offset[:, :1]) % images.shape[3]
            rows = (rows + offset[:, 1:]) % images.shape[2]
        batch_index = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel_index = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return images[batch_index, channel_index, rows[:, None, :, None], columns[:, None, None, :]]

    def turn(self, images: Tensor, streams: Streams) -> Tensor:
        """Rotate, stretch and shear `(N, C, H, W)`, square, about the centre: one bilinear interpolation."""
        if not (self.quarter_turns or self.rotation or self.stretch):
            return images
        draws = streams.uniform((4,), stage="turn", like=images) * 2 - 1
        angle = draws[:, 0] * self.rotation * math.pi / 180
        if self.quarter_turns:
            angle = angle + (streams.uniform((), stage="quarter", like=images) * 4).floor() * math.pi / 2
        cosine, sine, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
        wide, high = (self.stretch * draws[:, 1:3]).exp().unbind(1)
        shear = self.stretch * draws[:, 3]
        across = torch.stack((cosine * wide, cosine * shear - sine * high, none), 1)
        down = torch.stack((sine * wide, sine * shear + cosine * high, none), 1)
        grid = functional.affine_grid(torch.stack((across, down), 1), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    def rescan(self, images: Tensor, streams: Streams) -> Tensor:
        """Vary intensity and noise of `(N, C, H, W)`, as another scanner would."""
        if self.intensity:
            draws = streams.uniform((7,), stage="intensity", like=images) * 2 - 1
            v, u = (torch.linspace(-1, 1, side, device=images.device, dtype=images.dtype) for side in images.shape[2:])
            v, u = torch.meshgrid(v, u, indexing="ij")
            terms = torch.stack((torch.ones_like(u), u, v, u * v, u * u - 1 / 3, v * v - 1 / 3))
            field = torch.einsum("nk,khw->nhw", draws[:, :6], terms)[:, None]
            curve = 0.5 * draws[:, 6, None, None, None] * images * (1 - images)
            images = images * torch.exp(self.intensity * field) + self.intensity * curve
        if self.noise:
            level = self.noise * streams.uniform((1, 1, 1), stage="noise level", like=images)
            images = images + level * streams.normal(images.shape[1:], stage="noise", like=images)
        if self.rician:
            level = self.rician * streams.uniform((1, 1, 1), stage="rician level", like=images)
            real, imaginary = streams.normal((2, *images.shape[1:]), stage="rician", like=images).unbind(1)
            images = ((images + level * real).square() + (level * imaginary).square()).sqrt()
        return images.clamp(0, 1)


def robust_augmentation() -> Augmentation:
    """For MR images of few patients: small affine moves, bias field, contrast and Rician noise."""
    return Augmentation(shift=4, rotation=15, stretch=0.15, intensity=0.3, rician=0.03)
