"""Arrays of a NumPy .npz archive, whose sizes are known and believed before any of them is read.

A member says its shape in a header and its length in the archive's directory, and neither need be true: both are
compared with each other and with what the file can hold, so that a small file never asks for much memory.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.lib import format as npy
from torch import Tensor

from medfedpure.core.errors import DataError
from medfedpure.data.readers.folders import some, what_else

_LONGEST_HEADER = 2**16
_SMALL = 2**26
"""Bytes of an array that may be packed as tightly as it likes: 64 MiB."""
_TIGHTEST = 100
"""How much smaller a larger array can be packed. Photographs and scans shrink to a half or a fifth, zeros 1000-fold."""
_ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """One array, declared: its shape and type fit the bytes that there are.

    Attributes:
        name: without ".npy".
        shape: of whole numbers >= 0.
        dtype: in NumPy's words.
        is_whole: whether it holds integers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_whole: bool
    _archive: zipfile.ZipFile
    _path: Path

    def read(self) -> Tensor:
        """Whole numbers: bytes as uint8, others as int64. DataError: it is damaged, or a number is too large."""
        try:
            with self._archive.open(f"{self.name}.npy") as stream:
                found = npy.read_array(stream, allow_pickle=False)
        except Exception as error:  # NumPy and zipfile raise almost anything on damaged files
            raise _unreadable(self._path, self.name, error) from error
        if found.shape != self.shape:
            raise DataError(f"{self._path}: {self.name} is of shape {found.shape}, and {self.shape} was declared")
        if found.dtype == numpy.uint8:
            return torch.from_numpy(numpy.ascontiguousarray(found))
        if found.size and int(found.max()) > torch.iinfo(torch.int64).max:
            raise DataError(f"{self._path}: {self.name} holds the number {int(found.max())}, which is too large")
        return torch.from_numpy(found.astype(numpy.int64))


@contextmanager
def open_npz(path: Path, names: Sequence[str]) -> Iterator[dict[str, Member]]:
    """Chosen arrays of an archive by name, each declared and not yet read.

    Raises:
        DataError: no such file or array, encrypted, damaged, or an array that claims more than the file can hold.
    """
    if not path.exists() or (other := what_else(path)):
        raise DataError(f"{path} cannot be read: it {f'is {other}' if path.exists() else 'does not exist'}")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # as above
        raise DataError(f"{path} cannot be read as a NumPy .npz archive: {error}") from error
    with archive:
        yield {name: _member(archive, path, name) for name in names}


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> Member:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        held = some(one.removesuffix(".npy") for one in archive.namelist())
        raise DataError(f"{path} cannot be read: it holds no {name}, but {held or 'nothing'}") from error
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"{path}: {name} is encrypted: unpack it and save the arrays again")
    try:
        with archive.open(info) as stream:
            head = io.BytesIO(stream.read(_LONGEST_HEADER))
        shape, dtype = _header(head)
    except Exception as error:  # as above
        raise _unreadable(path, name, error) from error
    claimed = head.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or claimed != info.file_size:
        raise DataError(
            f"{path}: {name} claims shape {shape}, {dtype}, {claimed} bytes in all, and holds {info.file_size}: it is "
            "damaged, or no array of numbers"
        )
    packed = min(info.compress_size, path.stat().st_size)
    if claimed > max(_SMALL, _TIGHTEST * packed):
        raise DataError(
            f"{path}: {name} claims {claimed} bytes and is packed into {packed}, which no images are: if you trust it, "
            "unpack it and save the arrays with numpy.savez"
        )
    return Member(name, shape, str(dtype), numpy.issubdtype(dtype, numpy.integer), archive, path)


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], Any]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _unreadable(path: Path, name: str, error: Exception) -> DataError:
    return DataError(f"{path}: {name} cannot be read: {error or type(error).__name__}")
