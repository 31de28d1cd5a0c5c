"""What training images go through: moves, then what scanners differ in; every image by its own draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from medfedpure.core.settings import Augmentation
from medfedpure.core.streams import Streams

_BLACK = 1 / 256


def augment(images: Tensor, how: Augmentation, streams: Streams) -> Tensor:
    """Images `(N, C, H, W)` in [0, 1], each moved, rescanned and cut by its own draws."""
    return cut(rescan(turn(move(images, how, streams), how, streams), how, streams), how, streams)


def move(images: Tensor, how: Augmentation, streams: Streams) -> Tensor:
    """Flip and shift `(N, C, H, W)` by whole pixels."""
    if not how.flip and not how.shift:
        return images
    draws = streams.uniform((3,), stage="augment", like=images)
    columns = torch.arange(images.shape[3], device=images.device).expand(len(images), -1)
    rows = torch.arange(images.shape[2], device=images.device).expand(len(images), -1)
    if how.flip:
        columns = torch.where(draws[:, :1] < 0.5, columns, columns.flip(1))
    if how.shift:
        offset = ((draws[:, 1:] * 2 - 1) * (how.shift + 0.5)).round().long().clamp(-how.shift, how.shift)
        columns = (columns + offset[:, :1]) % images.shape[3]
        rows = (rows + offset[:, 1:]) % images.shape[2]
    batch_index = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel_index = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[batch_index, channel_index, rows[:, None, :, None], columns[:, None, None, :]]


def turn(images: Tensor, how: Augmentation, streams: Streams) -> Tensor:
    """Rotate, stretch and shear `(N, C, H, W)`, square, about the centre: one bilinear interpolation."""
    if not (how.quarter_turns or how.rotation or how.stretch):
        return images
    draws = streams.uniform((4,), stage="turn", like=images) * 2 - 1
    angle = draws[:, 0] * how.rotation * math.pi / 180
    if how.quarter_turns:
        angle = angle + (streams.uniform((), stage="quarter", like=images) * 4).floor() * math.pi / 2
    cosine, sine, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    wide, high = (how.stretch * draws[:, 1:3]).exp().unbind(1)
    shear = how.stretch * draws[:, 3]
    across = torch.stack((cosine * wide, cosine * shear - sine * high, none), 1)
    down = torch.stack((sine * wide, sine * shear + cosine * high, none), 1)
    grid = functional.affine_grid(torch.stack((across, down), 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def rescan(images: Tensor, how: Augmentation, streams: Streams) -> Tensor:
    """Vary intensity and noise of `(N, C, H, W)`, as another scanner would."""
    if how.intensity:
        draws = streams.uniform((7,), stage="intensity", like=images) * 2 - 1
        v, u = (torch.linspace(-1, 1, side, device=images.device, dtype=images.dtype) for side in images.shape[2:])
        v, u = torch.meshgrid(v, u, indexing="ij")
        terms = torch.stack((torch.ones_like(u), u, v, u * v, u * u - 1 / 3, v * v - 1 / 3))
        field = torch.einsum("nk,khw->nhw", draws[:, :6], terms)[:, None]
        curve = 0.5 * draws[:, 6, None, None, None] * images * (1 - images)
        images = images * torch.exp(how.intensity * field) + how.intensity * curve
    if how.gamma:
        exponent = torch.exp(how.gamma * (streams.uniform((1, 1, 1), stage="gamma", like=images) * 2 - 1))
        # A root has no slope at black, where attacks through this function need one.
        images = images.clamp_min(_BLACK) ** exponent * (images / _BLACK).clamp(0, 1)
    if how.brightness:
        images = images * torch.exp(how.brightness * (streams.uniform((1, 1, 1), stage="light", like=images) * 2 - 1))
    if how.noise:
        level = how.noise * streams.uniform((1, 1, 1), stage="noise level", like=images)
        images = images + level * streams.normal(images.shape[1:], stage="noise", like=images)
    if how.rician:
        level = how.rician * streams.uniform((1, 1, 1), stage="rician level", like=images)
        real, imaginary = streams.normal((2, *images.shape[1:]), stage="rician", like=images).unbind(1)
        images = ((images + level * real).square() + (level * imaginary).square()).sqrt()
    return images.clamp(0, 1)


def cut(images: Tensor, how: Augmentation, streams: Streams) -> Tensor:
    """Of some images `(N, C, H, W)` a square, as far as it lies inside, is black; its centre is anywhere."""
    if not how.cut_out:
        return images
    draws = streams.uniform((4,), stage="cut", like=images)
    height, width = images.shape[2:]
    half = (how.cut_size * (1 + draws[:, 1]) / 2 * height * width).sqrt() / 2
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    inside = ((rows - draws[:, 2:3] * height).abs() < half[:, None])[:, :, None]
    inside = inside & ((columns - draws[:, 3:4] * width).abs() < half[:, None])[:, None, :]
    return images.masked_fill((inside & (draws[:, 0] < how.cut_out)[:, None, None])[:, None], 0.0)


def robust_augmentation() -> Augmentation:
    """For MR images of few patients: small affine moves, bias field, contrast and Rician noise."""
    return Augmentation(shift=4, rotation=15, stretch=0.15, intensity=0.3, rician=0.03)
