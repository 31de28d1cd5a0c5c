"""NIfTI files: which ones they are, and one volume slice by slice as grey in [0, 1].

    values = stored * scl_slope + scl_inter

Volumes are turned to the nearest axes of the patient by their affine, and slices lie as radiologists look at them: the
patient's right is at the left of the picture, anterior is up in axial slices, superior is up in coronal and sagittal
ones, where anterior is at the left. The format: Cox et al. 2004, NIfTI-1; reading is nibabel's (Brett et al. 2024).
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.data.readers.folders import naming, what_else
from medfedpure.data.readers.grey import PERCENTILES, Floats, between, percentile_ends
from medfedpure.data.readers.unheard import asked

Axis = Literal["axial", "coronal", "sagittal"]
SMALL, TIGHTEST = 2**26, 1000
"""Bytes that any volume may claim, and how much smaller a larger one may be packed: masks shrink to a hundredth."""
_ENDINGS = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
_LONGEST_HEADER = 544
_PAIRED = (b"ni1\0", b"ni2\0")
_LARGEST = 2**33


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI by its content, packed by gzip or not; of a pair of files the header is."""
    try:
        if what_else(path):
            return False
        with path.open("rb") as stream:
            return _version(_head(stream.read(2**16))) is not None
    except OSError:
        return False


def claims(path: Path) -> bool:
    """Whether a file is NIfTI by its content, or says so by its ending."""
    return path.name.lower().endswith(_ENDINGS) or is_nifti(path)


def _head(content: bytes) -> bytes:
    """The first bytes of what is in a file."""
    if not content.startswith(_GZIP):
        return content[:_LONGEST_HEADER]
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, _LONGEST_HEADER)
    except zlib.error:
        return b""


def _version(head: bytes) -> Literal[1, 2] | None:
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size == 348 and head[344:348] in (b"n+1\0", b"ni1\0"):
            return 1
        if size == 540 and head[4:8] in (b"n+2\0", b"ni2\0"):
            return 2
    return None


def read_nifti(path: Path) -> NiftiScan:
    """A file's header, checked; its values are read when they are asked for.

    Raises:
        DataError: it is no NIfTI file, is damaged, one of a pair, of another kind than grey, or claims more than it
            holds; the text names the file and what to do.
        MissingExtraError: nibabel is not installed.
    """
    return scan_of(path, str(path))


def scan_of(path: Path, name: str) -> NiftiScan:
    """As `read_nifti`; messages begin with the name, and where that is empty they tell the reason alone."""
    with naming(name):
        return _checked(path, name)


def _checked(path: Path, name: str) -> NiftiScan:
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("NIfTI files need nibabel: pip install 'medfedpure[medical]'") from error
    try:
        if other := what_else(path):
            raise DataError(f"it is {other}, not a file")
        with path.open("rb") as stream:
            head = _head(stream.read(2**16))
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}") from None
    version = _version(head)
    if version is None:
        raise DataError(f"{'it is no NIfTI file' if size else 'empty file'}; .nii or .nii.gz is wanted")
    if head[344:348] in _PAIRED or head[4:8] in _PAIRED:
        raise DataError("its values are in another file, .img: join the two into one .nii")
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    length = kind.header_class.template_dtype.itemsize
    header = asked(lambda: kind.header_class(head[:length], check=False), "its header cannot be read")
    shape, dtype, start = asked(
        lambda: (tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype(), header.get_data_offset()),
        "its header says no shape and type: it is damaged",
    )
    claimed = int(start) + math.prod(shape) * dtype.itemsize
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise DataError(f"its values are {dtype}, grey is wanted: convert it")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 3 <= len(shape) <= 4 or min(shape) < 1:
        raise DataError(f"its shape is {shape}, a volume or several of one shape are wanted: convert it")
    if claimed > min(max(SMALL, TIGHTEST * size), _LARGEST):
        raise DataError(f"its values claim {claimed} bytes and the file is of {size}, which no scan is")
    if claimed > size and not _is_packed(path):
        raise DataError(f"its values claim {claimed} bytes and {size} are there: it is cut off")
    return NiftiScan(path, name, shape, dtype.itemsize > 1, _is_oriented(header), kind, claimed)


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP


def _is_oriented(header: Any) -> bool:
    return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0


@dataclass(frozen=True, repr=False)
class NiftiScan:
    """One file, not yet read.

    Attributes:
        path: of the file.
        name: of it, for messages.
        shape: of its volume, `(X, Y, Z)`, or of several, `(X, Y, Z, T)`.
        deep: whether a value is stored with more than 8 bits.
        oriented: whether it says how the patient lies; else the order of its axes is taken for left, posterior,
            inferior first, as nibabel does.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    deep: bool
    oriented: bool
    _kind: Any
    _claimed: int

    def values(self, volume: int = 0) -> tuple[Floats, tuple[float, float, float]]:
        """One volume, `(X, Y, Z)` float64, its axes to the right, anterior and superior, and its spacing in mm.

        Raises:
            DataError: it holds no such volume, is damaged or cut off, or its affine turns nothing.
        """
        with naming(self.name):
            return self._read(volume)

    def _read(self, volume: int) -> tuple[Floats, tuple[float, float, float]]:
        volumes = self.shape[3] if len(self.shape) == 4 else 1
        if not 0 <= volume < volumes:
            raise DataError(f"it holds {volumes} volumes, 0 to {volumes - 1}; volume {volume} was asked for")
        content = self._content()
        image = asked(lambda: self._kind.from_bytes(content), "it cannot be read: it is damaged")
        return asked(lambda: self._turned(image, volume), "it cannot be read or turned: it is damaged")

    def _turned(self, image: Any, volume: int) -> tuple[Floats, tuple[float, float, float]]:
        import nibabel

        place = (..., *((volume,) if len(self.shape) == 4 else ()), *((0,) * (len(image.shape) - len(self.shape))))
        values = numpy.asarray(image.dataobj[place], dtype=numpy.float64)
        turn = nibabel.io_orientation(image.affine)
        if not numpy.isfinite(turn).all():
            raise DataError("its affine maps two axes to one: give it a proper one")
        values = nibabel.apply_orientation(values, turn)
        spacing = numpy.ones(3)
        spacing[turn[:, 0].astype(int)] = numpy.sqrt((image.affine[:3, :3] ** 2).sum(0))
        return values, (float(spacing[0]), float(spacing[1]), float(spacing[2]))

    def _content(self) -> bytes:
        """All of the file, unpacked; never more than its header claims."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"it cannot be read: {error.strerror}") from None
        if not content.startswith(_GZIP):
            return content
        whole, rest = io.BytesIO(), content
        while rest and whole.tell() < self._claimed:
            unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
            wanted = self._claimed - whole.tell()
            piece = asked(
                lambda rest=rest, unpack=unpack, wanted=wanted: unpack.decompress(rest, wanted),  # type: ignore[misc]
                "it cannot be unpacked: it is damaged",
            )
            whole.write(piece)
            rest = unpack.unused_data
            if not piece:
                break
        if whole.tell() < self._claimed:
            raise DataError(f"its values claim {self._claimed} bytes and {whole.tell()} are there: cut off")
        return whole.getvalue()

    def slices(
        self,
        axis: Axis = "axial",
        *,
        volume: int = 0,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = PERCENTILES,
        every: int = 1,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> Iterator[tuple[NDArray[numpy.float32], float]]:
        """Slices `(1, H, W)` in [0, 1], and how much higher than wide a pixel is.

        Args:
            axis: from inferior to superior, posterior to anterior, or left to right.
            volume: which one of several.
            window: values that become 0 and 1.
            percentiles: of the volume's finite values, where no window is given.
            every: n-th slice of the part.
            part: shares of the slices, from and to: (0.25, 0.75) is the middle half.

        Raises:
            DataError: as `values`; or the part holds no slice.
        """
        values, spacing = self.values(volume)
        ends = window or percentile_ends(values[numpy.isfinite(values)], percentiles=percentiles)
        normal, across, down = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}[axis]
        count = values.shape[normal]
        places = range(math.floor(part[0] * count), math.ceil(part[1] * count), every)
        if not places:
            with naming(self.name):
                raise DataError(f"of {count} {axis} slices none lies in the part {part[0]} to {part[1]}: widen it")
        aspect = spacing[down] / spacing[across] if min(spacing) > 0 else 1.0
        planes = numpy.moveaxis(values, normal, 0)  # numpy.take would copy all of a volume for each slice
        for place in places:
            # What is left is (across, down), both towards right, anterior or superior.
            flat = planes[place][::-1, ::-1].T
            yield between(flat, *ends).astype(numpy.float32)[None], aspect
