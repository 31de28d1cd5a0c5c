"""What a process holds at once, told after it ended."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import nn

from medfedpure.core.results import device_of


def forget_peak_memory(modules: Iterable[nn.Module]) -> None:
    """Count anew what the GPUs of these modules hold at once: what ran before is not theirs."""
    for card in _cards(modules):
        torch.cuda.reset_peak_memory_stats(card)


def peak_memory_mb(modules: Iterable[nn.Module]) -> float | None:
    """The most that was held at once, in MiB.

    By tensors on the fullest GPU since `forget_peak_memory`; or, without one, on the CPU by this process since it
    started.
    """
    cards = _cards(modules)
    if not cards:
        return held_here(torch.device("cpu"))
    return max(torch.cuda.max_memory_allocated(card) for card in cards) / 2**20


def held_here(device: torch.device) -> float | None:
    """The most that this process has held at once, in MiB: by tensors on a GPU, or on the CPU by all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # not on this platform
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _cards(modules: Iterable[nn.Module]) -> list[torch.device]:
    return list(dict.fromkeys(device for device in map(device_of, modules) if device.type == "cuda"))
