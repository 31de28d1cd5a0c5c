"""Scans and pictures that are wrong, each a function that writes one to a path."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from scans import anatomy, dicom_bytes, write_nifti

Writer = Callable[[Path], object]
GREY = anatomy(1, 16)
SECRET = "SECRET^NAME"  # noqa: S105 - a name
"""A patient, who may be in no message."""


def _dicom(**tags: Any) -> Writer:
    return lambda path: path.write_bytes(dicom_bytes(GREY, PatientID=SECRET, PatientName=SECRET, **tags))


def _cut(length: int) -> Writer:
    return lambda path: path.write_bytes(dicom_bytes(GREY, PatientID=SECRET)[:length])


def _patched(old: bytes, new: bytes, **tags: Any) -> Writer:
    """A valid file in which some bytes, which stand there once, are others."""

    def write(path: Path) -> None:
        content = dicom_bytes(GREY, PatientID=SECRET, **tags)
        assert content.count(old) >= 1, old
        path.write_bytes(content.replace(old, new, 1))

    return write


def _element(tag: int, kind: str, value: Any) -> Writer:
    """A valid file with one element of another type."""

    def write(path: Path) -> None:
        import pydicom

        data = pydicom.dcmread(io.BytesIO(dicom_bytes(GREY, PatientID=SECRET)))
        data.add_new(tag, kind, value)
        data.save_as(path, enforce_file_format=True)

    return write


def _deflated_bomb(path: Path) -> None:
    head = dicom_bytes(GREY)
    start = 132 + 12 + int.from_bytes(head[140:144], "little")
    meta = head[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1)
    meta = meta.replace(b"\x14\0" + b"1.2.840.10008.1.2.1.99", b"\x16\0" + b"1.2.840.10008.1.2.1.99")
    meta = meta[:140] + (len(meta) - 144).to_bytes(4, "little") + meta[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(meta + packer.compress(bytes(2**28)) + packer.flush())


def _nested_sequences(path: Path) -> None:
    import pydicom

    content = dicom_bytes(GREY)
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    place = content.index(b"\x28\0\x02\0US")
    path.write_bytes(content[:place] + item * 3000 + end * 3000 + content[place:])
    assert pydicom


def _encapsulated_without_end(path: Path) -> None:
    content = dicom_bytes(GREY, bits=12, syntax="1.2.840.10008.1.2.5")
    path.write_bytes(content.replace(b"\xfe\xff\xdd\xe0\0\0\0\0", b"")[:-40])


def _table(descriptor: list[int], data: bytes) -> list[Any]:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor, item.LUTData = descriptor, data
    item["LUTData"].VR = "OW"
    return [item]


DICOM: dict[str, Writer] = {
    "DICOM: no byte": lambda path: path.write_bytes(b""),
    "DICOM: cut off in its preamble": _cut(100),
    "DICOM: cut off in its head": _cut(200),
    "DICOM: cut off in its tags": _cut(420),
    "DICOM: cut off in its pixels": lambda path: path.write_bytes(dicom_bytes(GREY, PatientID=SECRET)[:-100]),
    "DICOM: a text with its ending": lambda path: path.write_text("no scan at all, " * 20),
    "DICOM: zeros behind a right head": lambda path: path.write_bytes(dicom_bytes(GREY)[:132] + bytes(4000)),
    "DICOM: no row": _dicom(Rows=0),
    "DICOM: a negative number of rows": _element(0x00280010, "SS", -5),
    "DICOM: rows in words": _element(0x00280010, "LO", SECRET),
    "DICOM: frames of 65535 pixels squared": _dicom(Rows=65535, Columns=65535),
    "DICOM: 16 million frames": _dicom(NumberOfFrames=2**24),
    "DICOM: a negative number of frames": _dicom(NumberOfFrames=-3),
    "DICOM: deflated, a bomb of 256 MiB": _deflated_bomb,
    "DICOM: a rescale by NaN": _patched(b"2.75", b"nan ", RescaleSlope="2.75", RescaleIntercept="0"),
    "DICOM: a rescale by infinity": _patched(b"2.75", b"inf ", RescaleSlope="2.75", RescaleIntercept="0"),
    "DICOM: a rescale by a word": _patched(b"2.75", b"abcd", RescaleSlope="2.75", RescaleIntercept="0"),
    "DICOM: a window of width 0": _dicom(WindowCenter=40, WindowWidth=0),
    "DICOM: a window around NaN": _patched(b"2.75", b"nan ", WindowCenter="2.75", WindowWidth="9"),
    "DICOM: MONOCHROME1 with a palette": _dicom(
        PhotometricInterpretation="MONOCHROME1", RedPaletteColorLookupTableDescriptor=[256, 0, 16]
    ),
    "DICOM: a palette that is not there": _dicom(PhotometricInterpretation="PALETTE COLOR"),
    "DICOM: no Rows": _dicom(Rows=None),
    "DICOM: no BitsAllocated": _dicom(BitsAllocated=None),
    "DICOM: no PhotometricInterpretation": _dicom(PhotometricInterpretation=None),
    "DICOM: an unknown PhotometricInterpretation": _dicom(PhotometricInterpretation="ULTRAVIOLET"),
    "DICOM: three values a pixel in grey": _dicom(SamplesPerPixel=2),
    "DICOM: 17 bits of 16": _dicom(BitsStored=17),
    "DICOM: 32 bits a value": _dicom(BitsAllocated=32),
    "DICOM: native pixels that say JPEG": _patched(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
    "DICOM: explicit types that say implicit": _patched(
        b"\x14\x001.2.840.10008.1.2.1\0", b"\x14\x001.2.840.10008.1.2\0\0\0"
    ),
    "DICOM: an unknown transfer syntax": _patched(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.1\0"),
    "DICOM: a frame without its end": _encapsulated_without_end,
    "DICOM: sequences 3000 deep": _nested_sequences,
    "DICOM: a table shorter than it says": _dicom(VOILUTSequence=_table([4096, 0, 16], bytes(10))),
    "DICOM: a table without its numbers": _dicom(VOILUTSequence=_table([0, 0, 99], b"")),
}


def _nifti(values: numpy.ndarray, affine: numpy.ndarray | None = None, rescale: Any = None, cut: int = 0) -> Writer:
    def write(path: Path) -> None:
        write_nifti(path, values, affine, rescale)
        if cut:
            path.write_bytes(path.read_bytes()[:-cut])

    return write


def _head(place: int, form: str, *values: Any) -> Writer:
    """A valid volume in whose header numbers are others."""

    def write(path: Path) -> None:
        content = bytearray(write_nifti(path, VOLUME).read_bytes())
        struct.pack_into(form, content, place, *values)
        path.write_bytes(content)

    return write


def _packed(times: int, cut: int = 0) -> Writer:
    def write(path: Path) -> None:
        content = write_nifti(path, VOLUME).read_bytes()
        for _ in range(times):
            content = gzip.compress(content)
        path.write_bytes(content[: len(content) - cut])

    return write


def _packed_bomb(path: Path) -> None:
    head = bytearray(write_nifti(path, VOLUME).read_bytes()[:352])
    struct.pack_into("<8h", head, 40, 3, 3000, 3000, 3000, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(head) + bytes(2**26)))


def _packed_volume(path: Path) -> None:
    """16 KiB that become 256 slices of 256 pixels squared: nothing forbids that."""
    head = bytearray(write_nifti(path, VOLUME.astype(numpy.uint8)).read_bytes()[:352])
    struct.pack_into("<8h", head, 40, 3, 256, 256, 256, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(head) + bytes(256**3)))


VOLUME = numpy.stack([anatomy(z, 12) for z in range(4)], axis=2).astype(numpy.int16)
NIFTI: dict[str, Writer] = {
    "NIfTI: no byte": lambda path: path.write_bytes(b""),
    "NIfTI: a text with its ending": lambda path: path.write_text("no volume at all, " * 40),
    "NIfTI: cut off": _nifti(VOLUME, cut=100),
    "NIfTI: cut off in its header": _nifti(VOLUME, cut=VOLUME.nbytes + 100),
    "NIfTI: packed and cut off": _packed(1, cut=60),
    "NIfTI: packed twice": _packed(2),
    "NIfTI: packed, a bomb of 27 billion voxels": _packed_bomb,
    "NIfTI: packed a thousandfold, 16 million voxels": _packed_volume,
    "NIfTI: values in another file": _head(344, "4s", b"ni1\0"),
    "NIfTI: complex numbers": _nifti(VOLUME.astype(numpy.complex64)),
    "NIfTI: five dimensions": _nifti(numpy.zeros((4, 4, 4, 2, 3), numpy.int16)),
    "NIfTI: several volumes": _nifti(numpy.zeros((4, 4, 4, 2), numpy.int16)),
    "NIfTI: an affine of zeros": _head(280, "<12f", *12 * [0.0]),
    "NIfTI: an affine of NaN": _head(280, "<12f", *12 * [float("nan")]),
    "NIfTI: a rescale by NaN": _nifti(VOLUME, rescale=(float("nan"), 0.0)),
    "NIfTI: a rescale by infinity": _nifti(VOLUME, rescale=(float("inf"), 1.0)),
    "NIfTI: nothing but NaN": _nifti(numpy.full((4, 4, 4), numpy.nan, numpy.float32)),
    "NIfTI: numbers near the end of float64": _nifti(VOLUME.astype(numpy.float64) * 1e304),
    "NIfTI: a negative size": _head(42, "<h", -12),
    "NIfTI: a size of 0": _head(42, "<h", 0),
    "NIfTI: 32767 voxels each way": _head(42, "<3h", 32767, 32767, 32767),
    "NIfTI: 200 dimensions": _head(40, "<h", 200),
    "NIfTI: values that begin behind the end": _head(108, "<f", 1e9),
    "NIfTI: values that begin at NaN": _head(108, "<f", float("nan")),
    "NIfTI: values that begin before the file": _head(108, "<f", -400.0),
    "NIfTI: an unknown type of values": _head(70, "<h", 999),
}


def chunk(kind: bytes, content: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    """A PNG whose head claims a square of that side, and whose body is a few bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def picture(kind: str = "PNG", mode: str = "L", size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    """A valid one."""
    written = io.BytesIO()
    Image.new(mode, size, 1).save(written, kind, **options)
    return written.getvalue()


def _bytes(content: Callable[[], bytes]) -> Writer:
    return lambda path: path.write_bytes(content())


def _text_bomb() -> bytes:
    sound = picture()
    return sound[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28))) + sound[33:]


def _looped_tiff() -> bytes:
    sound = bytearray(picture("TIFF"))
    first = struct.unpack_from("<I", sound, 4)[0]
    count = struct.unpack_from("<H", sound, first)[0]
    struct.pack_into("<I", sound, first + 2 + 12 * count, first)
    return bytes(sound)


def _frames(kind: str) -> bytes:
    others = [Image.new("L", (16, 16), 200)]
    return picture(kind, save_all=True, append_images=others)


PICTURES: dict[str, Writer] = {
    "PNG: no byte": _bytes(bytes),
    "PNG: cut off": _bytes(lambda: picture()[:-30]),
    "PNG: a wrong check sum": _bytes(lambda: picture()[:30] + b"\0" + picture()[31:]),
    "PNG: a PDF with its ending": _bytes(lambda: b"%PDF-1.7 and more"),
    "PNG: claims 60000 pixels squared": _bytes(lambda: bomb(60000)),
    "PNG: claims 5000 pixels squared, holds 99 bytes": _bytes(lambda: bomb(5000)),
    "PNG: a text in it, a bomb of 256 MiB": _bytes(_text_bomb),
    "PNG: 1 by 13000 pixels": _bytes(lambda: picture(size=(1, 13000))),
    "PNG: no pixel": _bytes(lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b"")),
    "GIF: two pictures": _bytes(lambda: _frames("GIF")),
    "TIFF: two pages": _bytes(lambda: _frames("TIFF")),
    "TIFF: a page that follows itself": _bytes(_looped_tiff),
    "TIFF: numbers without a range": _bytes(lambda: picture("TIFF", "F")),
    "JPEG: cut off": _bytes(lambda: picture("JPEG")[:-60]),
    "JPEG: its first bytes alone": _bytes(lambda: b"\xff\xd8\xff"),
    "BMP: a negative width": _bytes(lambda: picture("BMP")[:18] + struct.pack("<i", -16) + picture("BMP")[22:]),
    "WebP: cut off": _bytes(lambda: picture("WEBP")[:-10]),
}
MAY_BE_READ = frozenset(
    {
        "DICOM: a window of width 0",
        "DICOM: MONOCHROME1 with a palette",
        "DICOM: sequences 3000 deep",
        "DICOM: explicit types that say implicit",
        "NIfTI: several volumes",
        "NIfTI: a rescale by NaN",
        "NIfTI: a rescale by infinity",
        "NIfTI: nothing but NaN",
        "NIfTI: numbers near the end of float64",
        "NIfTI: packed a thousandfold, 16 million voxels",
        "NIfTI: values that begin before the file",
        "PNG: 1 by 13000 pixels",
        "TIFF: a page that follows itself",
    }
)
"""What a reader may also answer with a picture: it is odd, and not wrong or not knowably so."""
