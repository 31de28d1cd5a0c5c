"""Float32 in full: PyTorch convolves float32 in TF32 on NVIDIA cards since Ampere, whose mantissa has 10 bits.

A classifier then answers a few images in a thousand unlike on a CPU, and a detector's score moves in its third digit
with the size of the batch, for every size has its own kernel. Matrix products are left alone: PyTorch computes them in
full unless it is told otherwise. So is the backward pass of an attack, which runs after the block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


@contextmanager
def full_precision(on: bool) -> Iterator[None]:
    """The block convolves float32 in float32; the switch is the process's, and the last block to end puts it back."""
    global _inside
    if not on:
        yield
        return
    with _lock:
        if not _inside:
            _before[:] = _found()
            _set_full()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _put_back(_before)


def _found() -> list[Any]:
    """One switch before PyTorch 2.9; two since then, and where they differ the old one cannot even be read."""
    cudnn: Any = torch.backends.cudnn
    return [part.fp32_precision for part in (cudnn.conv, cudnn.rnn)] if hasattr(cudnn, "conv") else [cudnn.allow_tf32]


def _set_full() -> None:
    cudnn: Any = torch.backends.cudnn
    cudnn.allow_tf32 = False
    if hasattr(cudnn, "conv"):  # the old switch only says "as PyTorch is set", which may be TF32
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"


def _put_back(found: list[Any]) -> None:
    cudnn: Any = torch.backends.cudnn
    if found in ([True], ["tf32", "tf32"]):
        cudnn.allow_tf32 = True  # moves the old switch and both new ones
    elif len(found) == 2:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = found
