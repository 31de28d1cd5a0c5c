"""Randomness as an argument: one independent, reproducible stream per image.

The key of a draw is a hash of (seed, image id, stage, draw), so what an image receives depends on
nothing but itself: not on its batch, its position, the device, or what ran before. The global
random state is never read nor written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from medfedpure.core.errors import InputError


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any integers and strings, equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For code that can only draw from the global state: weight initialization, dropout.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Streams:
    """A seed and one int64 id per image.

    Args:
        seed: any integer.
        ids: `(N,)` int64; images with equal ids receive equal noise.
    """

    seed: int
    ids: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != torch.int64:
            raise InputError(f"ids must be int64 of shape (N,); got {self.ids.dtype} of shape {tuple(self.ids.shape)}")
        object.__setattr__(self, "ids", self.ids.detach().cpu())

    @classmethod
    def for_batch(cls, seed: int, size: int) -> Streams:
        """Streams for `size` images with ids 0 ... size - 1."""
        return cls(seed, torch.arange(size))

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, index: Tensor) -> Streams:
        """The streams of a subset; `index` is `(M,)` int64 positions or an `(N,)` bool mask."""
        return Streams(self.seed, self.ids[index.detach().cpu()])

    def child(self, name: str | int) -> Streams:
        """Independent streams for the same images, e.g. one vote among several."""
        return Streams(derive_seed(self.seed, "child", name), self.ids)

    def repeat(self, draws: int) -> Streams:
        """Streams for `draws` independent copies of each image, copies side by side; the first is the image itself."""
        if draws == 1:
            return self
        ids = [
            key if draw == 0 else derive_seed(key, "draw", draw) for key in self.ids.tolist() for draw in range(draws)
        ]
        return Streams(self.seed, torch.tensor(ids, dtype=torch.int64))

    def generators(self, stage: str, draw: int = 0) -> Iterator[torch.Generator]:
        """One freshly seeded CPU generator per image."""
        for image_id in self.ids.tolist():
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, image_id, stage, draw))
            yield generator

    def normal(self, shape: Sequence[int], *, stage: str, draw: int = 0, like: Tensor | None = None) -> Tensor:
        """Standard normal noise `(N, *shape)`.

        Drawn in float32 on the CPU image by image, then moved to the device and dtype of `like`.
        """
        noise = torch.empty(len(self), *shape)
        for row, generator in zip(noise, self.generators(stage, draw), strict=True):
            torch.randn(tuple(shape), generator=generator, out=row)
        return noise if like is None else noise.to(like)

    def uniform(self, shape: Sequence[int], *, stage: str, draw: int = 0, like: Tensor | None = None) -> Tensor:
        """Uniform noise in [0, 1) of shape `(N, *shape)`, drawn as `normal` is."""
        noise = torch.empty(len(self), *shape)
        for row, generator in zip(noise, self.generators(stage, draw), strict=True):
            torch.rand(tuple(shape), generator=generator, out=row)
        return noise if like is None else noise.to(like)

    def permutations(self, size: int, *, stage: str, draw: int = 0, device: torch.device | None = None) -> Tensor:
        """A random permutation of 0 ... size - 1 for each image, `(N, size)` int64."""
        rows = [torch.randperm(size, generator=g) for g in self.generators(stage, draw)]
        stacked = torch.stack(rows) if rows else torch.empty(0, size, dtype=torch.int64)
        return stacked.to(device) if device is not None else stacked
