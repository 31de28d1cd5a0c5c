"""Randomness as an argument: one independent, reproducible stream per image.

The key of a draw is a hash of (seed, image id, stage, draw), so what an image receives depends on
nothing but itself: not on its batch, its position, or what ran before. The global random state is
never read nor written. Two backends draw from equal keys, and give different noise:

- "reference" draws on the CPU, image by image, and moves the result: every device sees the same.
  Its generator is torch's Mersenne Twister (Matsumoto and Nishimura 1998), the whole state of which
  is filled from 128 bits of key by SplitMix64 (Steele et al. 2014).
- "device" draws all images at once where they are, by Philox4x32-10 (Salmon et al. 2011, "Parallel
  random numbers: as easy as 1, 2, 3"): key and counter hold 96 bits of (seed, id), 64 bits of (stage,
  draw), and the place. It computes with integers and with operations that IEEE 754 rounds exactly, so
  that all devices draw equal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from medfedpure.core import philox
from medfedpure.core.errors import ConfigError, InputError, MedFedPureError

Backend = Literal["reference", "device", "format_1"]
"""Who draws. "format_1" draws as version 0.1 did, with 32 bits of key: only to read what that version wrote."""

_WORDS = slice(24, 24 + 8 * 624)
"""Where the state of torch's CPU generator keeps the Twister's 624 words, each in 8 bytes."""
_TOGETHER = 64
"""Images whose words are mixed at a time: few enough that they stay in the processor's cache."""
_AT_ONCE = 2**22
"""Most values that the device backend draws in one go: each takes some forty bytes while it is made."""
_LOW = 2**32 - 1


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any integers and strings, equal on every machine."""
    return int.from_bytes(_hash(parts, 8), "big") >> 1


def _hash(parts: Sequence[int | str], size: int) -> bytes:
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{int(part)}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


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
        backend: who draws; see the module.
    """

    seed: int
    ids: Tensor
    backend: Backend = "reference"

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != torch.int64:
            raise InputError(f"ids must be int64 of shape (N,); got {self.ids.dtype} of shape {tuple(self.ids.shape)}")
        if self.backend not in get_args(Backend):
            raise ConfigError(f"no backend of streams is named {self.backend!r}: reference or device is wanted")
        object.__setattr__(self, "ids", self.ids.detach().cpu())

    @classmethod
    def for_batch(cls, seed: int, size: int, backend: Backend = "reference") -> Streams:
        """Streams for `size` images with ids 0 ... size - 1, drawn by that backend."""
        return cls(seed, torch.arange(size), backend)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, index: Tensor) -> Streams:
        """The streams of a subset; `index` is `(M,)` int64 positions or an `(N,)` bool mask."""
        return replace(self, ids=self.ids[index.detach().cpu()])

    def child(self, name: str | int) -> Streams:
        """Independent streams for the same images, e.g. one vote among several."""
        return replace(self, seed=derive_seed(self.seed, "child", name))

    def repeat(self, draws: int) -> Streams:
        """Streams for `draws` independent copies of each image, copies side by side; the first is the image itself.

        To be asked once: copies of copies would not all be independent.
        """
        if draws == 1:
            return self
        ids = [
            key if draw == 0 else derive_seed(key, "draw", draw) for key in self.ids.tolist() for draw in range(draws)
        ]
        return replace(self, ids=torch.tensor(ids, dtype=torch.int64))

    def normal(self, shape: Sequence[int], *, stage: str, draw: int = 0, like: Tensor | None = None) -> Tensor:
        """Standard normal noise `(N, *shape)`, drawn in float32, on the device and in the dtype of `like`."""
        if self.backend == "device":
            return _like(self._drawn(philox.normal, shape, stage, draw, like), like)
        noise = torch.empty(len(self), *shape, dtype=torch.float32, device="cpu")
        for row, generator in zip(noise, self._generators(stage, draw), strict=True):
            row.normal_(generator=generator)
        return _like(noise, like)

    def uniform(self, shape: Sequence[int], *, stage: str, draw: int = 0, like: Tensor | None = None) -> Tensor:
        """Uniform noise `(N, *shape)`, drawn as `normal` is: in [0, 1), and 1 only where `like` has so few digits."""
        if self.backend == "device":
            return _like(self._drawn(philox.uniform, shape, stage, draw, like), like)
        noise = torch.empty(len(self), *shape, dtype=torch.float32, device="cpu")
        for row, generator in zip(noise, self._generators(stage, draw), strict=True):
            row.uniform_(generator=generator)
        return _like(noise, like)

    def permutations(self, size: int, *, stage: str, draw: int = 0, device: torch.device | None = None) -> Tensor:
        """A random permutation of 0 ... size - 1 for each image, `(N, size)` int64."""
        if self.backend == "device":
            like = torch.empty(0, device=device)
            keys = self._drawn(lambda words: words[..., 0] << 31 | words[..., 1] >> 1, (size, 2), stage, draw, like)
            return keys.argsort(dim=1, stable=True)
        rows = [torch.randperm(size, generator=g) for g in self._generators(stage, draw)]
        stacked = torch.stack(rows) if rows else torch.empty(0, size, dtype=torch.int64)
        return stacked.to(device) if device is not None else stacked

    # -- keys ----------------------------------------------------------------------------------

    def _keys(self, *parts: int | str) -> bytes:
        """16 bytes for each image, a hash of the seed, the parts and the image's id."""
        start = hashlib.blake2b(_hash((self.seed, *parts), 32), digest_size=16)
        keys = []
        for image_id in self.ids.tolist():
            own = start.copy()
            own.update(image_id.to_bytes(8, "little", signed=True))
            keys.append(own.digest())
        return b"".join(keys)

    @cached_property
    def _images(self) -> dict[torch.device, Tensor]:
        """The three words of (seed, id) of each image, `(N, 3)`, by the device where they were wanted."""
        words = torch.frombuffer(bytearray(self._keys() or bytes(16)), dtype=torch.int32).view(-1, 4)
        return {torch.device("cpu"): (words[: len(self), :3].to(torch.int64) & _LOW)}

    def _drawn(
        self, made: Callable[[Tensor], Tensor], shape: Sequence[int], stage: str, draw: int, like: Tensor | None
    ) -> Tensor:
        """What is made of 32 random bits for each value `(N, *shape)` int64, on the device of `like`, in portions."""
        device = torch.device("cpu") if like is None else like.device
        if device not in self._images:
            self._images[device] = self._images[torch.device("cpu")].to(device, non_blocking=True)
        place = int.from_bytes(_hash((stage, draw), 8), "little")
        size = torch.Size(shape).numel()
        portions = self._images[device].split(max(1, _AT_ONCE // max(1, size)))
        return torch.cat([made(philox.words(some, place, size).view(len(some), *shape)) for some in portions])

    def _generators(self, stage: str, draw: int) -> Iterator[torch.Generator]:
        """One CPU generator after another, at the start of each image's stream; to be used before the next is asked."""
        generator = torch.Generator()
        if self.backend == "format_1":
            for image_id in self.ids.tolist():
                yield generator.manual_seed(derive_seed(self.seed, image_id, stage, draw))
            return
        if not len(self):
            return
        _check_layout()
        state = generator.manual_seed(0).get_state()
        own = state[_WORDS].view(torch.int64)
        keys = torch.frombuffer(bytearray(self._keys(stage, draw)), dtype=torch.int64).view(-1, 2)
        for some in keys.split(_TOGETHER):
            for words in _twister_words(some):
                own.copy_(words)
                generator.set_state(state)
                yield generator


def _like(noise: Tensor, like: Tensor | None) -> Tensor:
    return noise if like is None else noise.to(like, non_blocking=True)


def _twister_words(keys: Tensor) -> Tensor:
    """624 words of 32 bits for each key `(N, 2)` int64: SplitMix64 from each half, in turns, `(N, 624)` int64."""
    mixed = _mix(keys[:, None, :] + _STEPS)
    return torch.stack((mixed & _LOW, mixed >> 32 & _LOW), 3).flatten(1)


_STEPS = torch.arange(1, 157)[:, None] * -0x61C8864680B583EB
"""What SplitMix64 adds, 2^64 over the golden ratio, in int64 that wraps around."""


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer of int64 of any shape, in place; shifts bring in zeros."""
    z ^= (z >> 30).bitwise_and_(2**34 - 1)
    z *= -0x40A7B892E31B1A47
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= -0x6B2FB644ECCEEE15
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


@cache
def _check_layout() -> None:
    """Raise MedFedPureError where torch keeps its generator's state in another way than this module fills it."""
    words = torch.Generator().manual_seed(5489).get_state()
    if words.numel() != 5056 or words[_WORDS].view(torch.int64)[:2].tolist() != [5489, 1301868182]:
        raise MedFedPureError(
            f"torch {torch.__version__} keeps the state of its CPU generator in another way than this version of "
            "medfedpure knows: install another torch, or a newer medfedpure"
        )
