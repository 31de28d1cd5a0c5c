"""What a DICOM file says of its pixels, checked against the bytes that there are before anything is decoded.

Only tags that say how pixels are stored are read (DICOM PS3.3 C.7.6.3, C.11; NEMA 2024), and two more, which become
pseudonyms at once: PatientID and StudyInstanceUID.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.unheard import asked, unheard

MAGIC, PREAMBLE = b"DICM", 128
SMALL, TIGHTEST = 2**26, 1000
"""Decoded bytes that any file may claim, and how much smaller a larger one may be packed; a blank JPEG is at 100."""
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
BASELINE, EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
J2K = tuple(f"1.2.840.10008.1.2.4.{one}" for one in (90, 91, 201, 202, 203))
RLE = "1.2.840.10008.1.2.5"
COMPRESSED = (BASELINE, EXTENDED, *LOSSLESS, *LS, *J2K, RLE)
_NATIVE = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
"""Transfer syntaxes of files that name none, by whether types are implied and numbers little endian."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PALETTES = tuple(
    f"{kind}PaletteColorLookupTable{part}"
    for kind, part in (
        *((colour, part) for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
        *((f"Segmented{colour}", "Data") for colour in ("Red", "Green", "Blue")),
    )
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_IDENTITY = ("PatientID", "StudyInstanceUID")
_FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_TAGS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *_FRAME_GROUPS,
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(*_PALETTES, *_PIXELS, *_IDENTITY),
)


@dataclass(frozen=True, repr=False)
class Header:
    """A file's own description, without any identifying tag.

    Attributes:
        dataset: pydicom's, of the tags above.
        frames: how many pictures; 0 for what holds none, such as a report, a plan or a DICOMDIR.
        height: in pixels.
        width: in pixels.
        samples: values stored of a pixel.
        allocated: bits of a value, 8 or 16.
        bits: stored of a value, 2 to 16.
        signed: whether values may be negative.
        photometric: what the values mean, in the standard's words.
        syntax: UID of the transfer syntax.
        little: byte order of numbers.
        patient: a pseudonym; None where the file has no PatientID.
        study: a pseudonym within the patient's; None where it has no StudyInstanceUID.
    """

    dataset: Any
    frames: int = 0
    height: int = 0
    width: int = 0
    samples: int = 1
    allocated: int = 8
    bits: int = 8
    signed: bool = False
    photometric: str = GREY[1]
    syntax: str = ""
    little: bool = True
    patient: str | None = None
    study: str | None = None

    def padding(self) -> tuple[int, int] | None:
        """Least and largest stored value that stands for no tissue at all; None where the file names none."""
        value = _whole(self.dataset, "PixelPaddingValue", -(2**15), 2**16 - 1, None)
        if value is None:
            return None
        other = _whole(self.dataset, "PixelPaddingRangeLimit", -(2**15), 2**16 - 1, value)
        # Some write a signed value with the type of an unsigned one.
        ends = sorted(one - 2**16 if self.signed and one >= 2**15 else one for one in (value, other))
        return ends[0], ends[1]


def is_bare(head: bytes) -> bool:
    """Whether bytes begin like a data set without a preamble: an element of group 2 or 8 of a plausible kind."""
    group = head[:2]
    if len(head) < 12 or group not in (b"\2\0", b"\x08\0", b"\0\x08"):
        return False
    order: Literal["little", "big"] = "big" if group == b"\0\x08" else "little"
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return int.from_bytes(head[2:4], order) < 2**15 and (explicit or int.from_bytes(head[4:8], order) <= 2**10)


def header_of(content: bytes, force: bool, pseudonyms: Pseudonyms) -> Header:
    """The header of a whole file's bytes.

    Raises:
        DataError: as `read_dicom`, without the file's name.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtraError("DICOM files need pydicom: pip install 'medfedpure[medical]'") from error
    with unheard:
        return _read(pydicom, content, force, pseudonyms)


def whose(content: bytes, pseudonyms: Pseudonyms) -> tuple[str | None, str | None]:
    """Patient and study of a file whose picture cannot be read; None for what cannot be read either."""
    try:
        import pydicom

        _check_deflated(content)
        with unheard:
            head = asked(
                lambda: pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(_IDENTITY)),
                "its identity cannot be read",
            )
            return _identity(head, pseudonyms)
    except (ImportError, DataError):
        return None, None


def _read(pydicom: Any, content: bytes, force: bool, pseudonyms: Pseudonyms) -> Header:
    if not content:
        raise DataError("empty file")
    if content[PREAMBLE : PREAMBLE + 4] != MAGIC and not (force and is_bare(content[:PREAMBLE])):
        raise DataError("it is no DICOM file: DICM does not stand behind 128 bytes, and force reads some without")
    if content[PREAMBLE : PREAMBLE + 4] == MAGIC and len(content) <= _behind_meta(content):
        raise DataError("it ends within its head, or right behind it: it is cut off")
    _check_deflated(content)
    reason = "its header cannot be read: it is damaged, or cut off"
    tags: list[Any] = list(_TAGS)
    dataset = asked(lambda: pydicom.dcmread(io.BytesIO(content), force=force, specific_tags=tags), reason)
    patient, study = _identity(dataset, pseudonyms)
    is_image = asked(lambda: _says_image(dataset), "its kind cannot be read: it is damaged")
    dataset = _only_pixels(dataset)
    pixels = [name for name in _PIXELS if name in dataset]
    if not pixels and not is_image and "Rows" not in dataset:
        return Header(None, patient=patient, study=study)
    if pixels != ["PixelData"]:
        held = " and ".join(pixels) or "no pixels"
        raise DataError(f"it holds {held}, PixelData is wanted: it is cut off, or no picture")
    syntax, little = asked(lambda: _syntax_of(dataset), "its transfer syntax is none that is known")
    header = _described(dataset, syntax, little, patient, study)
    _check_size(header)
    return header


def _described(dataset: Any, syntax: str, little: bool, patient: str | None, study: str | None) -> Header:
    """The numbers of a header, each in the range that it may have."""
    photometric = str(
        asked(lambda: dataset.get("PhotometricInterpretation"), "its PhotometricInterpretation is no text")
    )
    known = (*GREY, *COLOUR, PALETTE)
    if photometric not in known:
        raise DataError(f"its PhotometricInterpretation is missing, or none of {', '.join(known)}: convert it")
    height, width = (_whole(dataset, tag, 1, 2**16 - 1) for tag in ("Rows", "Columns"))
    allocated = _whole(dataset, "BitsAllocated", 1, 64)
    bits = _whole(dataset, "BitsStored", 1, 64, allocated)
    if allocated not in (8, 16) or not 2 <= bits <= allocated:
        raise DataError(
            f"it stores {bits} bits of {allocated} a value, and 2 to 16 bits of 8 or 16 are read: it is a mask, a dose "
            "or another map and no scan, so leave it out"
        )
    samples = _whole(dataset, "SamplesPerPixel", 1, 4, 1)
    if samples != (3 if photometric in COLOUR else 1):
        raise DataError(f"it has {samples} values a pixel, which {photometric} has not: it is damaged")
    frames = _whole(dataset, "NumberOfFrames", 0, 2**24, 1) or 1
    signed = bool(_whole(dataset, "PixelRepresentation", 0, 1, 0))
    return Header(
        dataset, frames, height, width, samples, allocated, bits, signed, photometric, syntax, little, patient, study
    )


def _identity(dataset: Any, pseudonyms: Pseudonyms) -> tuple[str | None, str | None]:
    """Patient and study as pseudonyms."""
    found = []
    for tag in _IDENTITY:
        value = asked(lambda tag=tag: dataset.get(tag), f"its {tag} cannot be read: it is damaged")  # type: ignore[misc]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):  # a backslash parts values
            value = "\\".join(map(str, value))
        found.append("" if value is None else str(value).strip(" \0"))
    patient, study = found
    return pseudonyms.of(patient) if patient else None, pseudonyms.of(patient, study) if study else None


def _says_image(dataset: Any) -> bool:
    """Whether the kind of object is one of pictures, by the standard's name of it; so is one that tells no kind."""
    kind = dataset.file_meta.get("MediaStorageSOPClassUID")
    return not kind or str(kind.name).endswith("Image Storage")


def _only_pixels(dataset: Any) -> Any:
    """A new data set of what says how pixels are stored: pydicom's own also holds the whole file and its UIDs."""
    from pydicom.dataset import Dataset, FileMetaDataset

    kept = Dataset()
    for tag in (one for one in _TAGS if one in dataset and one not in _IDENTITY):
        kept[tag] = asked(lambda tag=tag: dataset[tag], f"its {tag} cannot be read: it is damaged")  # type: ignore[misc]
    for sequence in _FRAME_GROUPS:
        asked(lambda tag=sequence: _strip(kept.get(tag) or ()), "its frames' groups cannot be read")  # type: ignore[misc]
    kept.file_meta = FileMetaDataset()
    if syntax := asked(lambda: dataset.file_meta.get("TransferSyntaxUID"), "its transfer syntax cannot be read"):
        kept.file_meta.TransferSyntaxUID = syntax
    kept.set_original_encoding(*dataset.original_encoding)
    return kept


def _strip(groups: Any) -> None:
    """Take from the groups of frames what is not of pixels; what is no sequence of data sets raises almost anything."""
    for item in groups:
        for element in [one.tag for one in item if one.keyword not in _OF_FRAMES]:
            del item[element]


def _syntax_of(dataset: Any) -> tuple[str, bool]:
    """The transfer syntax, known to be one that is read, and whether numbers are little endian."""
    from pydicom.uid import UID

    implicit, little = (bool(one) for one in dataset.original_encoding)
    told = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    if not told:
        told = _NATIVE.get((implicit, little), _NATIVE[True, True])
        dataset.file_meta.TransferSyntaxUID = told
    uid = UID(told)
    if told not in COMPRESSED and (not uid.is_transfer_syntax or uid.is_encapsulated):
        name = uid.name if uid.is_transfer_syntax else "private"
        raise DataError(f"its transfer syntax is {name}; JPEG, JPEG-LS, JPEG 2000, RLE or none is wanted: convert it")
    return told, little


def _check_size(header: Header) -> None:
    """That a file can hold what its header claims."""
    side, limit = max(header.height, header.width), Image.MAX_IMAGE_PIXELS
    if limit is not None and side * side > limit:
        raise DataError(
            f"{header.width}x{header.height} would be a square of more than {limit} pixels: shrink it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    data = asked(lambda: header.dataset.PixelData, "its pixels cannot be read")
    packed = len(data) if isinstance(data, bytes) else 0
    claimed = header.frames * header.height * header.width * header.samples * header.allocated // 8
    if header.syntax in COMPRESSED:
        if claimed > max(SMALL, TIGHTEST * packed):
            raise DataError(f"its frames claim {claimed} bytes and are packed into {packed}, which no scan is")
        return
    if header.photometric == "YBR_FULL_422":
        claimed = claimed // 3 * 2
    if claimed > packed:
        raise DataError(f"its frames claim {claimed} bytes and {packed} are there: it is cut off")


def _behind_meta(content: bytes) -> int:
    """Where the data set begins, if the length of group 2 is told; else right behind the preamble."""
    told = content[PREAMBLE + 4 : PREAMBLE + 8] == b"\2\0\0\0"
    return PREAMBLE + 4 + (12 + int.from_bytes(content[140:144], "little") if told else 0)


def _check_deflated(content: bytes) -> None:
    """Inflates the data set of such a file piece by piece, keeping nothing, as long as a scan might be."""
    start = _behind_meta(content)
    if _DEFLATED not in content[PREAMBLE : min(start, 2**16)]:
        return
    inflate, rest, total = zlib.decompressobj(-zlib.MAX_WBITS), content[start:], 0
    while rest and not inflate.eof:
        piece = asked(lambda rest=rest: inflate.decompress(rest, 2**20), "it cannot be inflated: it is damaged")  # type: ignore[misc]
        rest, total = inflate.unconsumed_tail, total + len(piece)
        if total > max(SMALL, TIGHTEST * len(content)):
            raise DataError(f"it inflates to more than {total} bytes from {len(content)}, which no scan does")


def _whole(dataset: Any, tag: str, low: int, high: int, missing: Any = ...) -> Any:
    """A whole number of a tag, or what stands for a missing one; the error quotes no value: it may be anything."""
    found = asked(lambda: dataset.get(tag), f"its {tag} is no number: it is damaged")
    if found is None or found == "":
        if missing is ...:
            raise DataError(f"it has no {tag}: it is damaged")
        return missing
    try:
        value = int(found)
    except (TypeError, ValueError):
        value = low - 1
    if not low <= value <= high:
        raise DataError(f"its {tag} is no whole number from {low} to {high}: it is damaged")
    return value
