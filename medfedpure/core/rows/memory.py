"""Rows that a device may not hold at once: half of them, once, and a sentence about it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def halved_once(call: Callable[[int], T], rows: int, say: Callable[[str], None]) -> T:
    """What a call makes of so many rows at a time; of half as many where the memory of a device does not hold them.

    Args:
        call: is told how many rows it may hold at a time; the second time it begins anew.
        rows: at a time.
        say: is told a sentence where half had to do.

    Raises:
        torch.OutOfMemoryError: half is too many as well, or there is but one row.
    """
    try:
        return call(rows)
    except torch.OutOfMemoryError:
        if rows < 2:
            raise
    torch.cuda.empty_cache()  # here, where no traceback holds what was computed
    say(f"the device's memory did not hold {rows} rows at once, so it went on with {rows // 2}: set a batch that small")
    return call(rows // 2)


def made_within_memory(attack: Any, make: Callable[[Any], Tensor], images: int, say: Callable[[str], None]) -> Tensor:
    """Adversarial images `(N, C, H, W)`; where the memory is out, of an attack with half the `batch_size`.

    Args:
        attack: as it is configured; one without a `batch_size` is tried once.
        make: what it makes.
        images: N.
        say: is told a sentence where half had to do.

    Raises:
        torch.OutOfMemoryError: half is too many as well.
    """
    config = attack.config
    given, looks = getattr(config, "batch_size", None), getattr(config, "eot", 1)
    rows = min(given, images * looks) if isinstance(given, int) else 1

    def made(held: int) -> Tensor:
        if held == rows:
            return make(attack)
        smaller = copy.copy(attack)
        smaller.config = config.model_copy(update={"batch_size": held})
        return make(smaller)

    return halved_once(made, rows, say)


class MeanOfLooks:
    """The log of the mean of probabilities over looks at each image; images `(N, C, H, W)` to `(N, K)`.

    Args:
        view: images to logits, noise and all.
        draws: looks at each image.
        chunk: at most so many rows are looked at together; halved once, with a warning, where the memory is out.
    """

    def __init__(self, view: Callable[[Tensor], Tensor], draws: int, chunk: int) -> None:
        self.view, self.draws, self.chunk = view, draws, chunk

    def __call__(self, images: Tensor) -> Tensor:
        rows = min(self.chunk, self.draws * len(images))

        def say(note: str) -> None:
            self.chunk = rows // 2
            warnings.warn(f"{self.draws} looks at {len(images)} images: {note}", stacklevel=2)

        return halved_once(lambda held: self._mean(images, held), rows, say)

    def _mean(self, images: Tensor, rows: int) -> Tensor:
        together = max(1, min(self.draws, rows // max(len(images), 1)))
        looked = []
        for now in (min(together, self.draws - done) for done in range(0, self.draws, together)):
            # In logarithms, so that what is nearly certain does not round to certain.
            logs = self.view(images.repeat_interleave(now, 0)).log_softmax(1)
            looked.append(logs.unflatten(0, (-1, now)).logsumexp(1))
        return torch.stack(looked).logsumexp(0) - math.log(self.draws)
