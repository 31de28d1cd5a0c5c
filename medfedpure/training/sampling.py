"""Which images each training step sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import TrainingError
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import BatchSampler


class Shuffled(BatchSampler):
    """Every image equally often: shuffled epochs laid end to end, so batches are full and wrap around their ends."""

    def batches(self, data: ImageDataset, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Positions `(batch_size,)` int64, without end."""
        places = _epochs(len(data), derive_seed(seed, "order"))
        while True:
            yield torch.tensor(list(islice(places, batch_size)))


class Balanced(BatchSampler):
    """Every class that the data hold equally often: at no time do two differ by more than one image.

    Classes come in shuffled rounds, and within a class its images in shuffled epochs, both laid end to end.
    """

    def batches(self, data: ImageDataset, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Positions `(batch_size,)` int64, without end."""
        classes = [(data.labels == label).nonzero().squeeze(1).tolist() for label in data.labels.unique().tolist()]
        within = [_epochs(len(own), derive_seed(seed, "order", place)) for place, own in enumerate(classes)]
        rounds = _epochs(len(classes), derive_seed(seed, "classes"))
        while True:
            yield torch.tensor([classes[place][next(within[place])] for place in islice(rounds, batch_size)])


SAMPLERS: Mapping[str, type[BatchSampler]] = {"shuffled": Shuffled, "balanced": Balanced}
"""By what `TrainingConfig.sampling` calls them."""


def checked_batches(sampler: BatchSampler, data: ImageDataset, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The sampler's batches of positions `(M,)` int64, without end.

    Raises:
        TrainingError: it gives something else, or ends.
    """
    name = type(sampler).__name__
    for index in sampler.batches(data, batch_size, seed):
        if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype != torch.int64:
            found = f"{tuple(index.shape)} {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
            raise TrainingError(
                f"{name} must yield positions (M,) int64, torch.empty(0, dtype=torch.int64) for none; got {found}"
            )
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(data):
            raise TrainingError(
                f"{name} must yield positions in 0 ... {len(data) - 1}; got {int(index.min())} to {int(index.max())}"
            )
        yield index
    raise TrainingError(f"the batches of {name} ended, and a training wants them without end: loop in `batches`")


def _epochs(size: int, seed: int) -> Iterator[int]:
    """0 ... size - 1 shuffled, over and over."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist()
