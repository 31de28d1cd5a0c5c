"""A classifier that knows how purified images look.

A purifier leaves traces: lost texture, a residue of noise. A classifier that has never seen them misreads some cleaned
images, and a detector that compares its readings before and after a cleaning sees the trace beside the attack. Training
on purified copies (as Nie et al. 2022, arXiv 2205.07460, do not, and denoised smoothing's fine-tuning does: Carlini et
al. 2023, arXiv 2206.10550) removes both.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medfedpure.core.dataset import ImageDataset, bits_of
from medfedpure.core.errors import DataError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams, derive_seed


def as_pixels(images: Tensor, data: ImageDataset) -> Tensor:
    """Images `(N, C, H, W)` in [0, 1] as pixels like the data's, on the CPU; uint16 as int16, see `bits_of`."""
    return bits_of(images.mul(data.top).round().to("cpu", torch.int32).to(data.pixels.dtype))


@torch.no_grad()
def with_purified(
    data: ImageDataset,
    purifier: Purifier,
    *,
    copies: int = 8,
    originals: int = 4,
    seed: int = 0,
    batch_size: int = 64,
) -> ImageDataset:
    """Training images, and what a purifier makes of them: `originals * N` rows, then `copies * N`.

    Every copy has noise and a strength of its own, uniform in [0, 1]. A purifier with a wide range of depths makes
    copies that serve the detector's light cleaning and the chain's deep one.

    Args:
        data: training images; a copy keeps all that its original carries and the depth of its pixels, and has an id of
            its own.
        purifier: fitted; on the device where it shall work.
        copies: purified ones of every image.
        originals: how often an image itself stands in the result, so that it is drawn more often.
        seed: of strengths and noise.
        batch_size: images that are purified at once.

    Raises:
        DataError: no image, or copies or originals below one.
        NotFittedError: the purifier was not fitted.
    """
    if copies < 1 or originals < 1:
        raise DataError(f"at least one original and one copy of each image is wanted; got {originals} and {copies}")
    if len(data) == 0:
        raise DataError(f"{data.name} holds no image to purify")
    spread = int(data.ids.max()) - int(data.ids.min()) + 1
    own = device_of(purifier)
    rows = []
    for number in range(originals + copies):
        pixels = data.pixels
        if number >= originals:
            parts = []
            for batch in data.batches(batch_size):
                streams = Streams(derive_seed(seed, "purified copy", number - originals), batch.ids)
                strength = streams.uniform((), stage="strength").to(own)
                cleaned = purifier(batch.images.to(own), strength, streams=streams).images
                parts.append(as_pixels(cleaned, data))
            pixels = torch.cat(parts).view(data.pixels.dtype)
        rows.append(replace(data, pixels=pixels, ids=data.ids + number * spread))
    return ImageDataset.concatenate(rows)
