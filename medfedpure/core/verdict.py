"""What a verdict is: of each image one class, or none. Whoever reads logits as a decision asks here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ABSTAINED = -1
"""Stands for a class where a defence refuses to say one."""


def verdicts(logits: Tensor) -> Tensor:
    """The class of each image, `(N,)` int64, from logits `(N, K)`: the largest, of equal ones the first."""
    return logits.argmax(1)


@torch.no_grad()
def verdicts_of(model: Callable[[Tensor], Tensor], images: Tensor, *, batch_size: int = 64) -> Tensor:
    """What a classifier says of images `(N, C, H, W)`, `(N,)` int64, so many at a time."""
    found = [verdicts(model(part)) for part in images.split(batch_size)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=images.device)


def fooled(found: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """`(N,)` bool: verdicts `(N,)` other than the labels `(N,)`; with targets `(N,)`, those that reach them."""
    return found != labels if targets is None else found == targets
