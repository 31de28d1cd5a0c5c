"""Input checks shared by all public methods; each error says what came and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from medfedpure.core.errors import InputError

TOLERANCE = 1e-6


def check_images(images: Tensor) -> None:
    """Raise InputError unless `images` is `(N, C, H, W)`, floating, finite and in [0, 1].

    Costs one device synchronization.
    """
    check_image_layout(images)
    if images.numel() == 0:
        return
    low, high = torch.aminmax(images.detach())
    check_range(*torch.stack((low, high)).tolist())


def check_range(low: float, high: float) -> None:
    """Raise InputError unless the smallest and largest pixel lie in [0, 1], rounding error aside."""
    if low != low or high != high:
        raise InputError("images contain NaN: check how they were read")
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise InputError(
            f"images must lie in [0, 1]; got [{low:.4g}, {high:.4g}]: "
            "pass them before normalization (normalization lives inside the classifier)"
        )


def check_image_layout(images: Tensor) -> None:
    """Raise InputError unless `images` is a floating tensor of shape `(N, C, H, W)`."""
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch tensor of shape (N, C, H, W); got {type(images).__name__}")
    if images.ndim != 4:
        hint = "add a batch dimension: images.unsqueeze(0)" if images.ndim == 3 else "a volume is read slice by slice"
        raise InputError(f"images must have shape (N, C, H, W); got {tuple(images.shape)}: {hint}")
    if not images.is_floating_point():
        raise InputError(f"images must be floating in [0, 1]; got {images.dtype}: divide by the largest value first")


def check_labels(labels: Tensor, size: int) -> None:
    """Raise InputError unless `labels` is int64 `(N,)`."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (size,):
        raise InputError(f"labels must be int64 of shape ({size},), one class per image; got {_kind_of(labels)}")


def check_scores(scores: Tensor, size: int, who: str) -> None:
    """Raise InputError unless `scores` is floating and of shape `(N,)`."""
    if not isinstance(scores, Tensor) or scores.shape != (size,) or not scores.is_floating_point():
        raise InputError(f"{who} must return floating scores of shape ({size},); got {_kind_of(scores)}")


def check_logits(logits: Tensor, size: int) -> None:
    """Raise InputError unless a classifier's output is `(N, K)` with K >= 2."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != size or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the classifier must map images to logits of shape ({size}, K) with K >= 2; got {found}: "
            "multi-label, segmentation and 3-D models are out of scope"
        )


def _kind_of(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
