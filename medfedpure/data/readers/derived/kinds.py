"""A derived file of any source: its kind by the source's, and its pixels again, to be looked at."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from medfedpure.core.errors import DataError
from medfedpure.data.readers.derived.dicom import derived_dicom
from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.derived.nifti import AXES, derived_nifti
from medfedpure.data.readers.derived.png import derived_png
from medfedpure.data.readers.nifti import Axis
from medfedpure.data.readers.scans import kind_of
from medfedpure.data.readers.unheard import asked

ENDINGS = (".png", ".dcm", ".nii")


def derived(source: Path, place: int, square: Tensor, deep: bool, maker: Maker, axis: Axis) -> tuple[str, bytes]:
    """The ending and the content of a file derived from one image of a source.

    Args:
        source: a file that was read.
        place: which of its images, from 0.
        square: what became of it, `(C, S, S)` in [0, 1].
        deep: whether scans are stored with 16 bits, or 8; a picture has those of its source.
        maker: what is said of how it was made.
        axis: that NIfTI volumes were cut across.

    Raises:
        DataError: the source cannot be read any more.
    """
    kind = kind_of(source)
    if kind == "dicom":
        return ".dcm", derived_dicom(source, place, square, deep, maker)
    if kind == "nifti":
        return ".nii", derived_nifti(source, place, axis, square, deep, maker)
    return ".png", derived_png(source, square, {"Software": f"medfedpure {maker.version}", "Description": maker.told})


def look_at(path: Path, axis: Axis) -> Tensor:
    """The pixels of a derived file as `(C, H, W)` float32 in [0, 1]; DataError where it cannot be read."""
    read: dict[str, Callable[[], Any]] = {
        ".png": lambda: _of_png(path),
        ".dcm": lambda: _of_dicom(path),
        ".nii": lambda: _of_nifti(path, axis),
    }
    values = asked(read[path.suffix], f"{path}: it cannot be read")
    if values.ndim != 3 or values.shape[2] not in (1, 3):
        raise DataError(f"{path}: it holds no picture that was derived here: leave these files as they were written")
    return torch.from_numpy(values.astype(numpy.float32) / numpy.iinfo(values.dtype).max).permute(2, 0, 1)


def _of_png(path: Path) -> Any:
    with Image.open(path, formats=["PNG"]) as opened:
        found = numpy.asarray(opened)
    found = found.astype(numpy.uint16) if found.dtype == numpy.int32 else found  # Pillow before 11.3
    return found[..., None] if found.ndim == 2 else found


def _of_dicom(path: Path) -> Any:
    import pydicom

    found = pydicom.dcmread(io.BytesIO(path.read_bytes())).pixel_array
    return found[..., None] if found.ndim == 2 else found


def _of_nifti(path: Path, axis: Axis) -> Any:
    import nibabel

    found = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(path.read_bytes()))
    values = numpy.asarray(found.dataobj)
    values = values.reshape(*values.shape[:3], -1)
    return numpy.take(values, 0, axis=AXES[axis][0])[::-1, ::-1].transpose(1, 0, 2)
