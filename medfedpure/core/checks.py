"""Input checks shared by all public methods; each error says what came and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from medfedpure.core.errors import InputError


def check_images(images: Tensor) -> None:
    """Raise InputError unless `images` is `(N, C, H, W)`, floating, finite and in [0, 1].

    Costs one device synchronization.
    """
    check_image_layout(images)
    if images.numel() == 0:
        return
    low, high = torch.aminmax(images.detach())
    low_value, high_value = torch.stack((low, high)).tolist()
    if not (low_value >= 0.0 and high_value <= 1.0):
        if low_value != low_value or high_value != high_value:
            raise InputError("images contain NaN: check how they were read")
        raise InputError(
            f"images must lie in [0, 1]; got [{low_value:.4g}, {high_value:.4g}]: "
            "pass them before normalization (normalization lives inside the classifier)"
        )


def check_image_layout(images: Tensor) -> None:
    """Raise InputError unless `images` is a floating tensor of shape `(N, C, H, W)`."""
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch tensor of shape (N, C, H, W); got {type(images).__name__}")
    if images.ndim != 4:
        hint = "add a batch dimension with images.unsqueeze(0)" if images.ndim == 3 else "a volume is read slice by slice"
        raise InputError(f"images must have shape (N, C, H, W); got {tuple(images.shape)}: {hint}")
    if not images.is_floating_point():
        raise InputError(f"images must be floating in [0, 1]; got {images.dtype}: divide by the largest value first")


def check_labels(labels: Tensor, size: int) -> None:
    """Raise InputError unless `labels` is int64 `(N,)`."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (size,):
        found = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels must be int64 of shape ({size},), one class per image; got {found}")


def check_scores(scores: Tensor, size: int, who: str) -> None:
    """Raise InputError unless `scores` is floating and of shape `(N,)`."""
    if not isinstance(scores, Tensor) or scores.shape != (size,) or not scores.is_floating_point():
        found = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"{who} must return floating scores of shape ({size},); got {found}")


def check_logits(logits: Tensor, size: int) -> None:
    """Raise InputError unless a classifier's output is `(N, K)` with K >= 2."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != size or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the classifier must map images to logits of shape ({size}, K) with K >= 2; got {found}: "
            "multi-label, segmentation and 3-D models are out of scope"
        )
