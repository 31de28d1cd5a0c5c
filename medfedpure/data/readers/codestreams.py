"""What one compressed frame declares of itself: a decoder reserves memory for this, whatever the file's header says."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_START, _LS_FRAME, _J2K_START = b"\xff\xd8", 0xF7, b"\xff\x4f\xff\x51"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {_LS_FRAME}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_BOXED, _BOX_OF_CODE = b"\0\0\0\x0cjP  ", b"jp2c"


@dataclass(frozen=True)
class Codestream:
    """Size of a frame as its codestream declares it.

    Attributes:
        height: in pixels; 0 in a JPEG that tells it at its end.
        width: in pixels.
        channels: values of a pixel.
        bits: of a value.
    """

    height: int
    width: int
    channels: int
    bits: int


def declared_by(frame: bytes) -> Codestream | None:
    """Of a JPEG, JPEG-LS or JPEG 2000 frame; None where its first bytes are none of these, or end too early."""
    try:
        if frame.startswith(_START):
            return _jpeg(frame)
        place = _unboxed(frame) if frame.startswith(_BOXED) else 0
        return _jpeg_2000(frame, place) if frame.startswith(_J2K_START, place) else None
    except (struct.error, IndexError):
        return None


def _jpeg(frame: bytes) -> Codestream | None:
    place = 2
    while True:
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if marker == 0xFF:  # markers may be filled up
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", frame, place + 4)
            return Codestream(height, width, channels, bits)
        else:
            place += 2 + struct.unpack_from(">H", frame, place + 2)[0]


def _unboxed(frame: bytes) -> int:
    """Where the codestream of a JP2 file begins; the frame's end where none does.

    A box that claims no length, which pydicom would look into for ever, leads to the end as well.
    """
    place = len(_BOXED) + 4
    while place < len(frame):
        length = int.from_bytes(frame[place : place + 4], "big")
        if frame.startswith(_BOX_OF_CODE, place + 4):
            return place + 8
        place = place + length if length >= 8 else len(frame)
    return len(frame)


def _jpeg_2000(frame: bytes, place: int) -> Codestream:
    _, _, width, height, left, top = struct.unpack_from(">HHIIII", frame, place + 4)
    channels, precision = struct.unpack_from(">HB", frame, place + 40)
    return Codestream(height - top, width - left, channels, (precision & 0x7F) + 1)
