"""Derived DICOM: one frame as a secondary capture that lies where its source lies, and says of the patient nothing.

Of the source are kept: geometry, modality, number in its series, whether annotations are burned in, whether it was
compressed with loss. UIDs are replaced, equal ones by equal ones under a key, and no reference to the source is
written: a UID finds the patient in the archive that it is of. The standard: DICOM PS3.3 C.7.6.1, C.7.6.2, C.8.6 (NEMA
2024).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from medfedpure.core.errors import DataError
from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.derived.placing import Cut, cut_of, whole_numbers
from medfedpure.data.readers.dicom_header import BASELINE, EXTENDED
from medfedpure.data.readers.unheard import asked, unheard

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_LOSSY = (BASELINE, EXTENDED, "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_MODALITIES = (
    "CR",
    "CT",
    "DX",
    "ES",
    "GM",
    "IO",
    "MG",
    "MR",
    "NM",
    "OCT",
    "OP",
    "PT",
    "PX",
    "RF",
    "SM",
    "US",
    "XA",
    "XC",
)
"""Of images, as the standard writes them; any other text may be anything."""
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "InstanceNumber", "Modality", "BurnedInAnnotation", "LossyImageCompression"),
    *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelAspectRatio", *_SPACINGS, *_GROUPS),
)
_GROUP_OF = {
    **dict.fromkeys(("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"), "PixelMeasuresSequence"),
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
}
_MOST = 2**31
"""That a number of geometry, or in a series, may not reach; NaN is not less either."""
_UNKNOWN = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "SeriesNumber", "PatientOrientation", "PositionReferenceIndicator"),
)
"""Elements that have to be there and may be empty."""


def derived_dicom(source: Path, place: int, square: Tensor, deep: bool, maker: Maker) -> bytes:
    """A frame's square without its padding, as a file of its own.

    Grey is MONOCHROME2 with the window of the reading applied, over all its bits. Pixel spacings grow as pixels do, and
    the position is that of the first pixel's centre; where the source says no geometry that can be right, none is said.

    Args:
        source: a file that the reader of scans has read.
        place: which of its frames, from 0.
        square: `(C, S, S)` in [0, 1], C is 1 or 3.
        deep: whether 16 bits are stored, or 8.
        maker: what is said of how it was made.

    Raises:
        DataError: the source cannot be read any more; no value of its header is quoted.
    """
    reason = f"{source}: its header cannot be read any more"
    told = asked(lambda: _header_of(source, *_stamp_of(source)), reason)
    height, width = (asked(lambda tag=tag: int(told[tag].value), reason) for tag in ("Rows", "Columns"))  # type: ignore[misc]
    cut = cut_of(height, width, square.shape[1])
    with unheard:  # once for all that is asked of the header
        return asked(lambda: _written(told, place, cut.of(square), cut, deep, maker), reason)


def _stamp_of(source: Path) -> tuple[int, int, int]:
    """By which a file is known to be the one that was read before."""
    found = source.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _header_of(source: Path, *_stamp: int) -> Any:
    """The last one is kept: of a thousand frames each asks for it, and each would read the groups of all."""
    import pydicom

    tags: list[Any] = list(_TAGS)
    return pydicom.dcmread(source, stop_before_pixels=True, specific_tags=tags)


def _written(told: Any, place: int, image: Tensor, cut: Cut, deep: bool, maker: Maker) -> bytes:
    made = _identity(told, place, maker)
    _add_pixels(made, image, deep)
    _add_geometry(made, _Frame(told, place), cut, maker)
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


class _Frame:
    """What a file says of one frame: in the frame's own groups, else in the shared ones, else in the file itself.

    Of several frames without groups the file's own position is that of the first at most, and is not taken.
    """

    def __init__(self, told: Any, place: int) -> None:
        shared, own = (_quiet(lambda tag=tag: list(told.get(tag) or ())) or [] for tag in _GROUPS)  # type: ignore[misc]
        self._places = [*own[place : place + 1], *shared[:1]]
        self.told, self._single = told, (_number(told, "NumberOfFrames") or 1) == 1

    def numbers(self, tag: str, count: int) -> list[float] | None:
        """So many numbers of a tag; None where there are none such."""
        for place in self._places:
            inner = _quiet(lambda place=place: place.get(_GROUP_OF.get(tag, tag)))  # type: ignore[misc]
            if inner and (found := _numbers(inner[0], tag, count)):
                return found
        return _numbers(self.told, tag, count) if self._single or tag in _SPACINGS else None


def _identity(told: Any, place: int, maker: Maker) -> Any:
    """Everything but pixels and geometry."""
    from pydicom.dataset import Dataset, FileMetaDataset

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = _EXPLICIT_LITTLE
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = _SECONDARY_CAPTURE
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = _uid(maker, "instance", maker.name)
    for tag in _UNKNOWN:
        setattr(made, tag, None)
    made.PatientID = maker.patient
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = ["geometry, modality and encoding of the source kept", "UIDs replaced under a key"]
    made.StudyInstanceUID = _uid(maker, "study", _text(told, "StudyInstanceUID") or maker.name)
    made.SeriesInstanceUID = _uid(maker, "series", _text(told, "SeriesInstanceUID") or maker.name)
    made.SeriesDescription = "Purified for a classifier, not for diagnosis"
    modality = _text(told, "Modality")
    made.Modality = modality if modality in _MODALITIES else "OT"
    frames, number = _number(told, "NumberOfFrames") or 1, _number(told, "InstanceNumber")
    made.InstanceNumber = int(number) if frames == 1 and number is not None and 0 <= number < 2**31 else place + 1
    made.ConversionType = "WSD"
    made.Manufacturer = "medfedpure"
    made.SoftwareVersions = maker.version
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.DerivationDescription = maker.told
    made.DerivationCodeSequence = [
        _code("113085", "DCM", "Spatial resampling"),
        _code("PURIFIED", "99MEDFEDPURE", "Purification before classification"),
    ]
    if (burned := _text(told, "BurnedInAnnotation")) in ("YES", "NO"):
        made.BurnedInAnnotation = burned
    lossy = _text(told, "LossyImageCompression")
    syntax = _quiet(lambda: str(told.file_meta.get("TransferSyntaxUID")))
    if lossy == "01" or syntax in _LOSSY:
        made.LossyImageCompression = "01"
    elif lossy == "00":
        made.LossyImageCompression = "00"
    return made


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _uid(maker: Maker, kind: str, value: str) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[maker.pseudonyms.of("purified", kind, value)]))


def _add_pixels(made: Any, image: Tensor, deep: bool) -> None:
    values = whole_numbers(image, deep)
    bits = 16 if deep else 8
    made.Rows, made.Columns, made.SamplesPerPixel = values.shape
    made.BitsAllocated = made.BitsStored = bits
    made.HighBit, made.PixelRepresentation = bits - 1, 0
    if made.SamplesPerPixel == 3:
        made.PhotometricInterpretation, made.PlanarConfiguration = "RGB", 0
    else:
        made.PhotometricInterpretation = "MONOCHROME2"
        made.WindowCenter, made.WindowWidth = 2 ** (bits - 1), 2**bits
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    made["PixelData"].VR = "OW" if deep else "OB"


def _add_geometry(made: Any, frame: _Frame, cut: Cut, maker: Maker) -> None:
    """Spacing, position, orientation and frame of reference, as far as the source says them rightly."""
    spacing = None
    for tag in _SPACINGS:
        found = frame.numbers(tag, 2)
        if found and min(found) > 0:
            spacing = found if tag == "PixelSpacing" else spacing
            setattr(made, tag, _decimals([one * step for one, step in zip(found, cut.step, strict=True)]))
    ratio = _numbers(frame.told, "PixelAspectRatio", 2)
    if ratio and spacing is None and min(ratio) >= 1:
        made.PixelAspectRatio = [int(one) for one in ratio]
    for tag in ("SliceThickness", "SpacingBetweenSlices"):
        if (found := frame.numbers(tag, 1)) and found[0] > 0:
            setattr(made, tag, _decimals(found)[0])
    position, axes = frame.numbers("ImagePositionPatient", 3), frame.numbers("ImageOrientationPatient", 6)
    if spacing is None or position is None or axes is None or not _are_axes(axes[:3], axes[3:]):
        return
    down, across = cut.first
    moved = [
        at + along * spacing[1] * across + below * spacing[0] * down
        for at, along, below in zip(position, axes[:3], axes[3:], strict=True)
    ]
    made.ImagePositionPatient, made.ImageOrientationPatient = _decimals(moved), _decimals(axes)
    if reference := _text(frame.told, "FrameOfReferenceUID"):
        made.FrameOfReferenceUID = _uid(maker, "frame of reference", reference)


def _are_axes(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two directions are of length 1 and at right angles, as far as they are written."""
    products = [sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((one, one), (other, other), (one, other))]
    return all(abs(found - wanted) < 1e-3 for found, wanted in zip(products, (1, 1, 0), strict=True))


def _decimals(values: Sequence[float]) -> list[str]:
    """Numbers as DICOM writes them, of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(one)) for one in values]


def _numbers(place: Any, tag: str, count: int) -> list[float] | None:
    def read() -> list[float]:
        found = place.get(tag)
        return [float(one) for one in ([found] if count == 1 else found)]

    found = _quiet(read)
    return found if found and len(found) == count and all(abs(one) < _MOST for one in found) else None


def _number(place: Any, tag: str) -> float | None:
    found = _numbers(place, tag, 1)
    return found[0] if found else None


def _text(place: Any, tag: str) -> str:
    return _quiet(lambda: str(place.get(tag) or "").strip(" \0")) or ""


def _quiet(read: Callable[[], Any]) -> Any:
    """What pydicom makes of a value; None where it is none."""
    try:
        return asked(read, "unread")
    except DataError:
        return None
