"""One file of any kind to squares of pixels: DICOM, NIfTI or a picture, told apart by its content. The one entry.

A DICOM file gives a picture for each frame, a NIfTI file for each slice, and a PNG, JPEG, TIFF, BMP, GIF or WebP one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from medfedpure.core.dataset import bits_of
from medfedpure.core.errors import DataError
from medfedpure.data.readers import dicom, nifti
from medfedpure.data.readers.folders import what_else
from medfedpure.data.readers.grey import PERCENTILES, Window
from medfedpure.data.readers.images import Decoder, is_image
from medfedpure.data.readers.nifti import Axis
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.squares import square_of_shares

Kind = Literal["dicom", "nifti", "image"]
_MOST_BYTES = 2**31
"""That the squares of one file may take: frames of one pixel become as large as any other."""


def kind_of(path: Path, force: bool = False) -> Kind | None:
    """What a file is by its content, a picture also by its ending; None for anything else.

    Args:
        path: of anything.
        force: also take DICOM data sets without a preamble.
    """
    if dicom.is_dicom(path):
        return "dicom"
    if nifti.is_nifti(path):
        return "nifti"
    if is_image(path):
        return "image"
    return "dicom" if force and dicom.is_dicom(path, force) else None


def _why_none(path: Path) -> str:
    """Why a file is of no kind."""
    if other := what_else(path):
        return f"it is {other}, not a file"
    try:
        with path.open("rb") as stream:
            return "it is neither DICOM nor NIfTI nor a picture" if stream.read(1) else "empty file"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


@dataclass(frozen=True)
class Scan:
    """What one file became.

    Attributes:
        pixels: `(F, C, S, S)` uint16, 65535 is white; F is 0 where a DICOM file holds no picture.
        deep: whether its values have more than 8 bits.
        patient: a pseudonym; None where the file names none.
        study: a pseudonym; None where the file names none.
        oriented: whether a volume says how the patient lies; True of what is no volume.
    """

    pixels: Tensor
    deep: bool
    patient: str | None = None
    study: str | None = None
    oriented: bool = True


@dataclass(frozen=True)
class ScanReader:
    """How files are read, whatever they are.

    Attributes:
        image_size: height and width of a square in pixels; pictures are padded with black, never stretched.
        channels: 1 = grey, 3 = RGB.
        window: of DICOM and NIfTI, as `DicomScan.images` and `NiftiScan.slices`; "auto" and "full" are percentiles for
            NIfTI, which has no window of its own.
        percentiles: of a file's values, where no window is given.
        colour_to_grey: whether DICOM in colour may become grey.
        force: whether DICOM data sets without a preamble are read.
        axis: that NIfTI volumes are cut across.
        volume: which one of a NIfTI file of several.
        every: n-th slice of the part.
        part: shares of the slices of a volume, from and to.
        bit_depth: bits that pictures of 16 bits really use; None = what they declare.
        pseudonyms: for patient and study.
        dim: collects the 16-bit pictures that use less than a sixteenth of their range.
    """

    image_size: int
    channels: Literal[1, 3] = 1
    window: Window = "auto"
    percentiles: tuple[float, float] = PERCENTILES
    colour_to_grey: bool = False
    force: bool = False
    axis: Axis = "axial"
    volume: int = 0
    every: int = 1
    part: tuple[float, float] = (0.0, 1.0)
    bit_depth: int | None = None
    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms, repr=False)
    dim: list[Path] = field(default_factory=list, compare=False, repr=False)

    def read(self, path: Path, kind: Kind | None = None) -> Scan:
        """Every picture of one file.

        Args:
            path: of the file.
            kind: of it, where that is known or asked for; None looks at its content.

        Raises:
            DataError: it is none of the three, damaged, or not to be read so; the text is the reason without the
                file's name, and holds no value of a header.
            MissingExtraError: a package is missing; the text names the extra.
        """
        kind = kind or kind_of(path, self.force)
        if kind == "dicom":
            return self._dicom(path)
        if kind == "nifti":
            return self._nifti(path)
        if kind is None:
            raise DataError(_why_none(path))
        decoder = Decoder(self.image_size, self.channels, self.bit_depth, 16, self.dim)
        return Scan(decoder.read(path)[None], decoder.is_deep(path))

    def _dicom(self, path: Path) -> Scan:
        found = dicom.scan_of(path, "", self.force, self.pseudonyms)
        if found.channels == 3 and self.channels == 1 and not self.colour_to_grey:
            raise DataError(
                "it is in colour and grey is wanted: convert it to grey; "
                "a data set takes channels=3 or colour_to_grey=true"
            )
        self._check_count(found.header.frames)
        images = found.images(window=self.window, percentiles=self.percentiles, colour_to_grey=self.channels == 1)
        squares = (square_of_shares(image, self.image_size) for image in images)
        return Scan(self._together(squares), found.header.bits > 8, found.header.patient, found.header.study)

    def _nifti(self, path: Path) -> Scan:
        found = nifti.scan_of(path, "")
        slices = found.slices(
            self.axis,
            volume=self.volume,
            window=None if isinstance(self.window, str) else self.window,
            percentiles=self.percentiles,
            every=self.every,
            part=self.part,
        )
        squares = (square_of_shares(image, self.image_size, aspect) for image, aspect in slices)
        return Scan(self._together(squares), found.deep, oriented=found.oriented)

    def _together(self, squares: Iterable[Tensor]) -> Tensor:
        """Squares `(1 or 3, S, S)` of one file, grey repeated where RGB is wanted."""
        planes: list[Tensor] = []
        for one in squares:
            self._check_count(len(planes) + 1)
            planes.append(bits_of(one).expand(self.channels, -1, -1))
        if not planes:
            return torch.empty(0, self.channels, self.image_size, self.image_size, dtype=torch.uint16)
        return torch.stack(planes).view(torch.uint16)

    def _check_count(self, count: int) -> None:
        """Raises DataError where so many squares are more than a file may become, however small it is."""
        most = _MOST_BYTES // (2 * self.channels * self.image_size**2)
        if count > most:
            raise DataError(
                f"it holds more than {most} pictures, which as squares of {self.image_size} pixels take more than "
                f"{_MOST_BYTES} bytes: split it"
            )
