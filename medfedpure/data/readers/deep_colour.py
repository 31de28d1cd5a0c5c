"""Colour files of 16 bits a value, whole: Pillow unpacks one byte of each value, so it is asked for both in turn."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageOps
from torch import Tensor

_LAYOUT = re.compile(r"(?:RGBA?|LA);16([BLN])")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_BITS_PER_SAMPLE = 258
_DEEP_GREY_ALPHA = (16, 4)
_PLAIN_RGBA = (8, 6)


def layout_of(image: Image.Image) -> str | None:
    """How an opened, not yet loaded picture keeps 16-bit colour, such as "RGB;16B"; "" in a way that cannot be read.

    None: it is grey, or of 8 bits.
    """
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return None
    tiles = getattr(image, "tile", ())
    found = {tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in tiles if tile[3]}
    declared = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8)
    bits = max(declared) if isinstance(declared, tuple) else int(declared)
    if bits <= 8 and not any(";16" in str(one) for one in found):
        return None
    known = len(found) == 1 and _LAYOUT.fullmatch(str(next(iter(found))))
    return str(next(iter(found))) if known else ""


def read_values(stream: BinaryIO, layout: str, formats: Sequence[str]) -> Tensor:
    """All values of an upright picture, `(H, W, C)` int32: 3 of colour, 4 with opacity, 2 of grey with opacity."""
    stream.seek(0)
    if layout.startswith("LA"):
        # No unpacker knows its lower bytes. Two values of 16 bits are as long as four of 8, filters and all.
        content = bytearray(stream.read())
        if struct.unpack_from(">BB", content, 24) != _DEEP_GREY_ALPHA:
            raise ValueError("grey with opacity of 16 bits is read from PNG files only")
        struct.pack_into(">BB", content, 24, *_PLAIN_RGBA)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
        four = _bytes_of(io.BytesIO(bytes(content)), None, formats)
        return four[..., 0::2] * 256 + four[..., 1::2]
    swapped = layout[:-1] + _OTHER_BYTE[layout[-1]]
    high = _bytes_of(stream, None, formats)
    stream.seek(0)
    return high * 256 + _bytes_of(stream, swapped, formats)


def _bytes_of(stream: BinaryIO, raw_mode: str | None, formats: Sequence[str]) -> Tensor:
    """One byte of each value, `(H, W, C)` int32; which one is the raw mode's choice, if it is given."""
    with Image.open(stream, formats=list(formats)) as opened:
        if raw_mode is not None:
            opened.tile = [_unpacked_by(raw_mode, tile) for tile in opened.tile]
        image = ImageOps.exif_transpose(opened)
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.reshape(image.height, image.width, len(image.getbands())).to(torch.int32)


def _unpacked_by(raw_mode: str, tile: Any) -> Any:
    """The same piece of a file through another unpacker; older versions of Pillow keep it as a plain tuple."""
    options = raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:])
    return tile._replace(args=options) if hasattr(tile, "_replace") else (*tile[:3], options)
