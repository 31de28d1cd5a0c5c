"""Arrays from the wire, read without believing what they say of themselves."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from medfedpure.core.errors import FederationError

_NUMPY = "numpy.ndarray"
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_SIZES = (2, 4, 8)


def shown(text: object, longest: int = 80) -> str:
    """A text that is not ours as it may be printed: escaped, and cut off where it is long."""
    plain = str(text)[: longest + 1]
    escaped = plain if plain.isprintable() else ascii(plain)[1:-1]
    return escaped if len(escaped) <= longest else escaped[:longest] + " ..."


def read_array(array: Array, shape: tuple[int, ...], what: str) -> Tensor:
    """A floating tensor of the wanted shape, any shape; nothing is allocated before the array's header agrees.

    Args:
        array: what came; type and shape are read from its bytes.
        shape: the one that is wanted.
        what: who sent which tensor, for the message: "client a sent a tensor w".

    Raises:
        FederationError: bytes that are no array, another shape, a type that is not floating, too few or too many bytes.
    """
    if array.stype != _NUMPY:
        raise FederationError(f"{what} packed as {shown(array.stype)!r}; {_NUMPY!r} is wanted")
    stream = io.BytesIO(array.data)
    try:
        found, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:
        raise FederationError(f"{what} that is no array of numpy ({type(error).__name__} in its header)") from error
    if found != shape:
        raise FederationError(f"{what} of another shape than wanted: {shown(found)}, not {shape}")
    if dtype.kind != "f" or dtype.itemsize not in _SIZES:
        raise FederationError(f"{what} of type {shown(dtype)}; float16, float32 or float64 is wanted")
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(array.data) - start != size:
        raise FederationError(f"{what} with {len(array.data) - start} bytes of numbers; its header says {size}")
    values: np.ndarray[Any, Any] = np.ndarray(shape, dtype, array.data, start, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(dtype.newbyteorder("="), order="C"))
