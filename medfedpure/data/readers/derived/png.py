"""PNG files of 8 or 16 bits, grey or colour: Pillow writes no colour of 16 bits. The format: ISO/IEC 15948 (2004)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from medfedpure.core.errors import DataError
from medfedpure.data.readers.derived.placing import cut_of, whole_numbers
from medfedpure.data.readers.images import Decoder

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _LYING = 274, range(5, 9)
_COLOURS = {1: 0, 3: 2}


def derived_png(source: Path, square: Tensor, notes: Mapping[str, str]) -> bytes:
    """A picture's square without its padding, as PNG of the source's depth.

    Args:
        source: the picture.
        square: `(C, S, S)` in [0, 1], C is 1 or 3.
        notes: texts by keyword, of printable ASCII; nothing of the source's own is kept.

    Raises:
        DataError: the source cannot be read any more.
    """
    height, width = _upright(source)
    deep = Decoder(square.shape[1], square.shape[0]).is_deep(source)
    return png_of(cut_of(height, width, square.shape[1]).of(square), deep, notes)


def png_of(image: Tensor, deep: bool, notes: Mapping[str, str]) -> bytes:
    """An image `(C, H, W)` in [0, 1], C is 1 or 3, as PNG of 16 or 8 bits."""
    values = whole_numbers(image, deep)
    height, width, channels = values.shape
    head = struct.pack(">2I5B", width, height, 16 if deep else 8, _COLOURS[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(values.dtype.newbyteorder(">")))
    texts = [_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1", "replace")) for key, text in notes.items()]
    return b"".join(
        (_SIGNATURE, _chunk(b"IHDR", head), *texts, _chunk(b"IDAT", zlib.compress(rows, 6)), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _upright(source: Path) -> tuple[int, int]:
    """Height and width of a picture as its EXIF orientation turns it."""
    try:
        with Image.open(source) as opened:
            width, height = opened.size
            lying = opened.getexif().get(_ORIENTATION) in _LYING
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        raise DataError(f"{source}: it cannot be read any more ({type(error).__name__})") from error
    return (width, height) if lying else (height, width)
