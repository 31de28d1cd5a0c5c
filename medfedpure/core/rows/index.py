"""What may stand in square brackets: one place, a slice, places, or a mask."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.errors import InputError

Index = slice | Tensor | Sequence[int] | Sequence[bool]
"""Of several rows: a slice, int64 or bool tensor, list or array; negative places count from the end."""

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_BITS = (torch.uint8, "uint8")


def places_of(index: Any, size: int) -> int | Tensor:
    """One place in 0 ... size - 1, or several as `(M,)` int64.

    Args:
        index: a whole number or an `Index`.
        size: how many rows there are.

    Raises:
        IndexError: a place that is not there, so that iteration ends.
        InputError: anything else; a mask of another length; uint8, a mask to torch and places to numpy.
    """
    if isinstance(index, slice):
        return torch.tensor(range(size)[index], dtype=torch.int64)
    if (one := _whole(index)) is not None:
        if not -size <= one < size:
            raise IndexError(f"there are {size} rows, so places lie in {-size} ... {size - 1}; got {one}")
        return one % size
    several = _several(index)
    if several.dtype == torch.bool:
        if several.shape != (size,):
            raise InputError(f"a mask has one value for each of {size} rows; got {_shown(index)}")
        return several.nonzero().squeeze(1)
    if several.numel() and not -size <= int(several.min()) <= int(several.max()) < size:
        low, high = int(several.min()), int(several.max())
        raise IndexError(f"there are {size} rows, so places lie in {-size} ... {size - 1}; got {low} ... {high}")
    return several.remainder(max(size, 1))


def _whole(index: Any) -> int | None:
    if isinstance(index, bool) or (isinstance(index, Tensor) and (index.ndim or index.dtype not in _WHOLE)):
        return None
    try:
        return operator.index(index)
    except TypeError:
        return None


def _several(index: Any) -> Tensor:
    found = index
    if getattr(index, "dtype", None) in _BITS:
        raise InputError("uint8 may be a mask or places: convert it, to bool or to int64")
    if not isinstance(index, (Tensor, str, bytes, tuple)):
        try:
            # An array as plain values: torch knows not every dtype and order, and reads a series by its labels.
            plain = index.tolist() if hasattr(index, "tolist") else index
            found = torch.as_tensor(plain) if len(plain) else torch.empty(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError):
            found = None
    if not isinstance(found, Tensor) or found.ndim != 1 or found.dtype not in (*_WHOLE, torch.bool):
        raise InputError(f"rows are asked for by a whole number, a slice, places (M,) or a mask; got {_shown(index)}")
    return found if found.dtype == torch.bool else found.long()


def _shown(index: Any) -> str:
    return f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else f"a {type(index).__name__}"
