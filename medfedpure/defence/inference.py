"""The plumbing of `DefendedClassifier.predict`: batches in, inspected batches, clock, records out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.checks import check_image_layout, check_range
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import InputError
from medfedpure.core.streams import Streams

Images = Tensor | ImageDataset | Iterable[Any]


@dataclass(frozen=True)
class Inspection:
    """What is known of a batch before anything is purified.

    Attributes:
        images: `(N, C, H, W)`.
        streams: of these images.
        logits: `(N, K)` of the bare classifier.
        scores: `(N,)`, or None without a detector.
        flagged: `(N,)` bool.
        strength: `(N,)` in [0, 1].
        selected: `(M,)` int64 on the CPU, the positions that enter the purifier.
    """

    images: Tensor
    streams: Streams
    logits: Tensor
    scores: Tensor | None
    flagged: Tensor
    strength: Tensor
    selected: Tensor

    def take_selected(self) -> tuple[Tensor, Tensor, Streams]:
        """Images `(M, C, H, W)`, strengths `(M,)` and streams of the selected positions."""
        index = self.selected.to(self.images.device)
        return self.images[index], self.strength[index], self.streams.select(self.selected)


class Clock:
    """Wall-clock seconds by stage, on the host: work still queued on a device counts where it is awaited."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def flags_on_cpu(images: Tensor, flagged: Tensor) -> Tensor:
    """`flagged` `(N,)` on the CPU; the range of the images `(N, C, H, W)` travels along, and is checked.

    Raises:
        InputError: images outside [0, 1] or NaN.
    """
    if images.numel() == 0:
        return flagged.cpu()
    low, high = torch.aminmax(images.detach())
    packed = torch.cat((flagged.to(torch.float64), torch.stack((low, high)).to(torch.float64))).cpu()
    check_range(*packed[-2:].tolist())
    return packed[:-2].bool()


def as_batches(images: Images, ids: Tensor | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images `(N, C, H, W)` with their ids `(N,)`, from a tensor, a data set or a loader.

    Raises:
        InputError: ids that do not fit the images, or given beside a loader.
    """
    if isinstance(images, Tensor):
        check_image_layout(images)
        keys = torch.arange(len(images)) if ids is None else ids
        if keys.shape != (len(images),):
            raise InputError(f"ids must have shape ({len(images)},); got {tuple(keys.shape)}")
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], keys[start : start + batch_size]
        return
    if ids is not None:
        raise InputError("ids are given with a tensor; a data set or a loader of Batch objects carries its own")
    count = 0
    for item in images.batches(batch_size) if isinstance(images, ImageDataset) else images:
        part = item.images if isinstance(item, Batch) else item[0] if isinstance(item, (tuple, list)) else item
        check_image_layout(part)
        yield part, item.ids if isinstance(item, Batch) else torch.arange(count, count + len(part))
        count += len(part)
