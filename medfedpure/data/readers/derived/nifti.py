"""Derived NIfTI: one slice as a volume one slice thick, in the axes of its source and at its place there."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.derived.placing import cut_of, whole_numbers
from medfedpure.data.readers.nifti import Axis
from medfedpure.data.readers.unheard import asked, unheard

AXES: dict[Axis, tuple[int, int, int]] = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
"""Of a volume whose axes lead to the right, anterior and superior: that of the slices, across, and down a picture."""
_GZIP = b"\x1f\x8b"
_VECTOR = "vector"


def derived_nifti(source: Path, place: int, axis: Axis, square: Tensor, deep: bool, maker: Maker) -> bytes:
    """A slice's square without its padding, as a .nii of its own; colour is a vector at each voxel.

    Values are those that the classifier read, over 8 or 16 bits; nothing of the source's texts is kept. A source that
    does not say how the patient lies gives a slice that does not say it either.

    Args:
        source: a file that the reader of scans has read.
        place: which of the slices, from 0.
        axis: that the volume was cut across.
        square: `(C, S, S)` in [0, 1], C is 1 or 3.
        deep: whether 16 bits are stored, or 8.
        maker: what is said of how it was made.

    Raises:
        DataError: the source cannot be read any more.
    """
    reason = f"{source}: its header cannot be read any more"
    with unheard:
        return asked(lambda: _derived(_head(source), place, axis, square, deep, maker), reason)


def _head(source: Path) -> Any:
    import nibabel

    with source.open("rb") as stream:
        packed = stream.read(2) == _GZIP
    with gzip.open(source) if packed else source.open("rb") as stream:
        content = stream.read(540)
    kind = nibabel.Nifti2Header if 540 in (int.from_bytes(content[:4], o) for o in _ORDERS) else nibabel.Nifti1Header
    return kind(content[: kind.template_dtype.itemsize], check=False)


_ORDERS: tuple[Any, ...] = ("little", "big")


def _derived(head: Any, place: int, axis: Axis, square: Tensor, deep: bool, maker: Maker) -> bytes:
    import nibabel

    affine, shape = head.get_best_affine(), numpy.array(head.get_data_shape()[:3])
    turn = nibabel.io_orientation(affine)
    towards = turn[:, 0].astype(int)
    lengths, spacing = numpy.ones(3, int), numpy.ones(3)
    lengths[towards], spacing[towards] = shape, numpy.sqrt((affine[:3, :3] ** 2).sum(0))
    normal, across, down = AXES[axis]
    aspect = spacing[down] / spacing[across] if min(spacing) > 0 else 1.0
    cut = cut_of(int(lengths[down]), int(lengths[across]), square.shape[1], float(aspect))
    values = whole_numbers(cut.of(square), deep)[::-1, ::-1].transpose(1, 0, 2)  # as `NiftiScan.slices` turned it
    values = numpy.expand_dims(values, normal)
    values = values[..., 0] if values.shape[3] == 1 else values[:, :, :, None, :]
    moved = numpy.eye(4)
    moved[normal, 3] = place
    for at, step, first, count in (
        (down, cut.step[0], cut.first[0], cut.rows),
        (across, cut.step[1], cut.first[1], cut.columns),
    ):
        moved[at, at] = step
        moved[at, 3] = lengths[at] - 1 - first - step * (count - 1)
    placed = affine @ nibabel.orientations.inv_ornt_aff(turn, tuple(shape)) @ moved
    upright = numpy.array([[0, 1], [1, 1], [2, 1]])
    back = nibabel.orientations.ornt_transform(upright, turn)
    image = nibabel.Nifti1Image(numpy.ascontiguousarray(values), placed).as_reoriented(back)
    code = int(head["sform_code"]) or int(head["qform_code"])
    image.set_qform(image.affine, code=0)
    image.set_sform(image.affine, code=code)
    image.header.set_xyzt_units(head.get_xyzt_units()[0])
    if values.ndim == 5:
        image.header.set_intent(_VECTOR)
    image.header["descrip"] = maker.told.encode("ascii", "replace")[:79]
    return bytes(image.to_bytes())
