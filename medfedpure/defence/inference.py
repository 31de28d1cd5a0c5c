"""The plumbing of `DefendedClassifier.predict`: batches in, inspected batches, clock, one prediction out."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medfedpure.acceleration.known import picked
from medfedpure.core.checks import check_facts, check_image_layout, check_range, facts_about
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import InputError
from medfedpure.core.progress import Observation
from medfedpure.core.results import Prediction, Trace
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import verdicts
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.voting import Cleaned

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
        decided: the same on the CPU.
        strength: `(N,)` in [0, 1].
        selected: `(M,)` int64 on the CPU, the positions that enter the purifier.
    """

    images: Tensor
    streams: Streams
    logits: Tensor
    scores: Tensor | None
    flagged: Tensor
    decided: Tensor
    strength: Tensor
    selected: Tensor

    def take_selected(self) -> tuple[Tensor, Tensor, Streams]:
        """Images `(M, C, H, W)`, strengths `(M,)` and streams of the selected positions."""
        return self.images[self.places()], picked(self.strength, self.selected), self.streams.select(self.selected)

    def places(self) -> Tensor:
        """The selected positions `(M,)` int64 where the images are."""
        return self.selected.to(self.images.device, non_blocking=True)

    def observation(self, seconds: float) -> Observation:
        """What an observer is told of this batch, found in so many seconds."""
        scores = None if self.scores is None else self.scores.detach().clone()
        return Observation(self.streams.ids.clone(), scores, self.decided.clone(), seconds)


class FreshSeeds:
    """A new seed at every call, in every thread and in every forked process.

    Args:
        seed: of a sequence that repeats; None begins from the operating system, anew in each process.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._begun: tuple[int, int, Iterator[int]] | None = None

    def next(self) -> int:
        """The next seed."""
        process = os.getpid()
        if self._begun is None or (self.seed is None and self._begun[0] != process):
            start = secrets.randbits(128) if self.seed is None else self.seed
            self._begun = process, start, itertools.count(1)
        _, start, calls = self._begun
        return derive_seed(start, next(calls))

    def __reduce__(self) -> tuple[type[FreshSeeds], tuple[int | None]]:
        """A copied or pickled defence draws noise of its own, or the same sequence from its start."""
        return FreshSeeds, (self.seed,)


class Clock:
    """Wall-clock seconds by stage, on the host: work still queued on a device counts where it is awaited."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lap = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or since the clock was made."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def told_on_cpu(images: Tensor, flagged: Tensor, strength: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`flagged` and `strength` `(N,)` on the CPU; what must be known of images and logits travels along.

    That is checked. It is the one time that a batch waits for its device.

    Raises:
        InputError: images outside [0, 1] or NaN, or logits that are not finite.
    """
    if images.numel() == 0:
        return flagged.cpu(), strength.detach().cpu()
    low, high = torch.aminmax(images.detach())
    kind = torch.promote_types(strength.dtype, torch.float32)
    told = (flagged, strength.detach(), torch.stack((low, high)), facts_about(logits))
    flags, strengths, rest = torch.cat([part.to(kind) for part in told]).cpu().split((len(images), len(images), 4))
    low_pixel, high_pixel, bad, probable = rest.double().tolist()
    check_range(low_pixel, high_pixel)
    check_facts(bad, probable, len(images))
    return flags.bool(), strengths.to(strength.dtype)


def count_batches(images: Images, batch_size: int) -> int | None:
    """How many batches `as_batches` will give of a tensor `(N, C, H, W)` or a data set; None of a loader.

    Raises:
        InputError: no images, or no size of a batch.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    if isinstance(images, Tensor):
        check_image_layout(images)
    return -(-len(images) // batch_size) if isinstance(images, Tensor | ImageDataset) else None


def as_batches(images: Images, ids: Tensor | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images `(N, C, H, W)` with their ids `(N,)`, from a tensor, a data set or a loader.

    Raises:
        InputError: ids that do not fit the images, or given beside a loader.
    """
    count_batches(images, batch_size)
    if isinstance(images, Tensor):
        keys = torch.arange(len(images)) if ids is None else ids
        if not isinstance(keys, Tensor) or keys.dtype != torch.int64 or keys.shape != (len(images),):
            came = f"{keys.dtype} {tuple(keys.shape)}" if isinstance(keys, Tensor) else type(keys).__name__
            raise InputError(f"ids must be int64 of shape ({len(images)},), one for each image; got {came}")
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], keys[start : start + batch_size]
        return
    if ids is not None:
        raise InputError("ids are given with a tensor; a data set or a loader of Batch objects carries its own")
    if not isinstance(images, ImageDataset | Iterable):
        raise InputError(
            "images must be a tensor (N, C, H, W), an ImageDataset, or batches one after another; got "
            f"{type(images).__name__}"
        )
    count = 0
    for item in images.batches(batch_size) if isinstance(images, ImageDataset) else images:
        part = item.images if isinstance(item, Batch) else item[0] if isinstance(item, (tuple, list)) else item
        check_image_layout(part)
        yield part, item.ids if isinstance(item, Batch) else torch.arange(count, count + len(part))
        count += len(part)


def assemble(
    parts: list[Inspection],
    cleaned: list[Cleaned],
    maps: list[Tensor | None],
    trace: Trace,
    calibration: Calibration | None,
    least: float,
) -> Prediction:
    """One prediction of `N` images from inspected batches and what became of their selected images.

    Args:
        parts: the batches in order, `(N,)` images together.
        cleaned: of the selected images, in order.
        maps: of each batch, where the detector has one.
        trace: policy, seed and seconds; evaluations and depths are filled in.
        calibration: gives p-values where there are scores.
        least: share of a vote's draws that must agree; below it the defence abstains.
    """
    images = torch.cat([part.images for part in parts])
    bare_logits = torch.cat([part.logits for part in parts])
    flagged = torch.cat([part.flagged for part in parts])
    logits = bare_logits
    purified = torch.zeros_like(flagged)
    agreement = images.new_ones(len(images))
    nfe, timestep = _untouched(parts)
    if cleaned:
        starts = [0, *itertools.accumulate(len(part.images) for part in parts)]
        places = torch.cat([p.selected + start for p, start in zip(parts, starts, strict=False)])
        index = places.to(images.device, non_blocking=True)
        known = [c.timestep for c in cleaned if c.timestep is not None]
        images = images.index_copy(0, index, torch.cat([c.images for c in cleaned]))
        logits = logits.index_copy(0, index, torch.cat([c.logits for c in cleaned]))
        agreement = agreement.index_copy(0, index, torch.cat([c.agreement for c in cleaned]).to(agreement))
        purified = purified.index_fill(0, index, True)
        nfe = nfe.index_copy(0, index, torch.cat([c.nfe for c in cleaned]).to(nfe))
        if known:
            timestep = timestep.index_copy(0, index, torch.cat(known).to(timestep))
    scores = None if parts[0].scores is None else torch.cat([p.scores for p in parts if p.scores is not None])
    abstained = agreement < least
    drawn = [suspicion for suspicion in maps if suspicion is not None]
    return Prediction(
        labels=verdicts(logits),
        probabilities=logits.softmax(1),
        logits=logits,
        bare_logits=bare_logits,
        scores=scores,
        p_values=None if scores is None or calibration is None else calibration.p_values(scores),
        flagged=flagged,
        strength=torch.cat([part.strength for part in parts]),
        purified=purified,
        images=images,
        abstained=flagged if trace.policy == "abstain" else abstained,
        agreement=agreement,
        trace=replace(trace, nfe=nfe, timestep=timestep),
        suspicion_map=torch.cat(drawn) if drawn else None,
        ids=torch.cat([part.streams.ids for part in parts]),
    )


def _untouched(parts: list[Inspection]) -> tuple[Tensor, Tensor]:
    """NFE and timestep of images that met no purifier."""
    size, like = sum(len(part.images) for part in parts), parts[0].images
    return torch.zeros(size, dtype=torch.int64, device=like.device), like.new_full((size,), torch.nan)
