"""A picture of how far a diffusion model has come: images, what noise makes of them, what it makes of that."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from medfedpure.core.storage import write_bytes
from medfedpure.core.streams import Streams
from medfedpure.models.diffusion import Diffusion

STEPS = 5


@torch.no_grad()
def write_samples(
    path: Path, diffusion: Diffusion, network: nn.Module, images: Tensor, depth: float, streams: Streams
) -> None:
    """Write a PNG with three rows: `(N, C, H, W)` in [0, 1], noised to `depth`, and taken back in five steps."""
    scaled, timestep = images * 2 - 1, images.new_full((len(images),), depth)
    noise = streams.normal(images.shape[1:], stage="samples", like=images)
    noisy = diffusion.add_noise(scaled, noise, timestep)
    steps = torch.full((len(images),), STEPS, device=images.device)
    cleaned = diffusion.reverse(network, scaled, timestep, steps, streams=streams, stage="samples")
    rows = [((row + 1) / 2).clamp(0, 1).mean(1).permute(1, 0, 2).flatten(1) for row in (scaled, noisy, cleaned)]
    pixels = (torch.cat(rows) * 255).round().to(torch.uint8).cpu()
    height, width = pixels.shape
    buffer = io.BytesIO()
    Image.frombytes("L", (width, height), bytes(pixels.flatten().tolist())).save(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
