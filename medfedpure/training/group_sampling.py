"""Batches in which images of a group stand together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import BatchSampler


class Partnered(BatchSampler):
    """Every image equally often, and always beside another of its group and class where there is one.

    In each epoch the images of a group are shuffled and cut into parts of `images` to `2 images - 1`; a smaller group
    is one part. Parts are shuffled and laid end to end. One that no longer fits opens the next batch, so that batches
    are a little smaller than was aimed at; larger only where that is less than a part.

    Args:
        unit: whose images belong together: "group", or a level of the data.
        images: so many of one stand together.
        balanced: draw every class equally often, to within a part, and within it every image.
    """

    def __init__(self, unit: str = "group", images: int = 2, *, balanced: bool = False) -> None:
        self.unit, self.images, self.balanced = unit, images, balanced

    def recipe(self) -> dict[str, Any]:
        """With its settings."""
        return {**super().recipe(), "unit": self.unit, "images": self.images, "balanced": self.balanced}

    def batches(self, data: ImageDataset, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Positions `(M,)` int64, without end."""
        labels = data.labels if self.balanced else torch.zeros_like(data.labels)
        units = units_of(data, self.unit)
        together = torch.stack((units, data.labels), 1).unique(dim=0, return_inverse=True)[1]
        classes = [(labels == label).nonzero().squeeze(1) for label in labels.unique().tolist()]
        streams = [
            self._parts(places, together[places], batch_size, derive_seed(seed, "parts", number))
            for number, places in enumerate(classes)
        ]
        batch: list[int] = []
        for part in _in_turn(streams, derive_seed(seed, "classes")):
            if batch and len(batch) + len(part) > batch_size:
                yield torch.tensor(batch)
                batch = []
            batch = batch + part

    def _parts(self, places: Tensor, together: Tensor, batch_size: int, seed: int) -> Iterator[list[int]]:
        """Images that stand together, all of them once in each epoch, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(places), generator=generator)
            order = order[together[order].argsort(stable=True)]
            sizes = together[order].unique_consecutive(return_counts=True)[1].tolist()
            parts = [
                part.tolist()
                for group in places[order].split(sizes)
                for part in group.tensor_split(_cuts(len(group), self.images, batch_size))
            ]
            for place in torch.randperm(len(parts), generator=generator).tolist():
                yield parts[place]


def units_of(data: ImageDataset, unit: str) -> Tensor:
    """`(N,)` int64, which images belong together: the groups, or a level of the data.

    Raises:
        DataError: the data have no such level.
    """
    if unit == "group":
        return data.groups
    if unit not in data.levels:
        levels = ", ".join(map(repr, ("group", *data.levels)))
        raise DataError(f"{data.name} knows which images are of one {levels}; got {unit!r}: name one of these")
    return data.levels[unit]


def _cuts(size: int, images: int, most: int) -> int:
    """Into how many parts a group is cut: of at least `images`, of at most `most` where pairs stay together."""
    return max(1, min(max(size // images, -(-size // most)), size // 2))


def _in_turn(streams: Sequence[Iterator[list[int]]], seed: int) -> Iterator[list[int]]:
    """One part after another, of the class that is behind; of several that are, by chance."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(streams), dtype=torch.int64)
    while True:
        chance = torch.rand(len(streams), generator=generator, dtype=torch.float64)
        behind = int((drawn + chance * 0.5).argmin())
        part = next(streams[behind])
        drawn[behind] += len(part)
        yield part
