"""Frames of a DICOM file as they are stored, decoded by pydicom's decoders, after a look at what each declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy

from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.data.readers.codestreams import declared_by
from medfedpure.data.readers.dicom_header import BASELINE, COLOUR, EXTENDED, J2K, LOSSLESS, LS, RLE, Header
from medfedpure.data.readers.grey import Whole
from medfedpure.data.readers.unheard import asked

_DECODERS = {
    **dict.fromkeys((BASELINE, EXTENDED), ("pillow", "pylibjpeg")),
    **dict.fromkeys(LOSSLESS, ("pylibjpeg",)),
    **dict.fromkeys(LS, ("pyjpegls", "pylibjpeg")),
    **dict.fromkeys(J2K, ("pylibjpeg",)),
    RLE: ("pylibjpeg", "pydicom"),
}
"""Plugins by transfer syntax, first choice first, so that a file has the same pixels wherever it is read."""


def stored_frames(header: Header) -> Iterator[Whole]:
    """Each frame `(H, W)`, colour as RGB `(H, W, 3)`, palettes as places in them.

    Raises:
        DataError: a frame is damaged or of another size than declared.
        MissingExtraError: its compression needs a decoder that is not installed; the text names the extra.
    """
    from pydicom.pixels import get_decoder

    if not header.frames:
        return
    decoder = get_decoder(header.syntax)
    plugin = _plugin(header, decoder) if decoder.is_encapsulated else ""
    found = decoder.iter_array(header.dataset, decoding_plugin=plugin, allow_excess_frames=False)
    for place in range(header.frames):
        array, facts = asked(lambda: next(found), f"frame {place + 1} of {header.frames} cannot be decoded")
        if header.photometric in COLOUR and facts["photometric_interpretation"] != "RGB":
            raise DataError(f"its colour is stored as {header.photometric}, which cannot be turned into RGB")
        yield numpy.asarray(array, dtype=array.dtype.newbyteorder("="))


def _plugin(header: Header, decoder: Any) -> str:
    """Which of pydicom's plugins decodes."""
    bits = _check_frames(header)
    choices, licensed = _DECODERS[header.syntax], header.syntax in LOSSLESS
    if bits > 8 and header.syntax in (BASELINE, EXTENDED):  # Pillow reads 8 bits only
        choices, licensed = ("pylibjpeg",), True
    there = decoder.available_plugins
    if found := [one for one in choices if one in there]:
        return found[0]
    if licensed:
        raise MissingExtraError(
            f"{decoder.UID.name} of {bits} bits needs pylibjpeg-libjpeg, which is under the GPL and not in the extra "
            "medical: pip install 'medfedpure[medical-gpl]'"
        )
    raise MissingExtraError(f"{decoder.UID.name} needs a decoder: pip install 'medfedpure[medical]'")


def _check_frames(header: Header) -> int:
    """Compares each compressed frame with the header; the most bits that one declares."""
    from pydicom.encaps import generate_frames

    data, bits = header.dataset.PixelData, 0
    tables = [header.dataset.get(tag) for tag in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = None if None in tables else tuple(tables)
    frames = generate_frames(data, number_of_frames=header.frames, extended_offsets=offsets)
    for place in range(header.frames):
        where = f"frame {place + 1} of {header.frames}"
        frame = asked(lambda: next(frames), f"{where} is not there")
        if header.syntax == RLE:  # its segments fill what the header declares, and nothing more
            continue
        found = declared_by(frame)
        if found is None:
            raise DataError(f"{where} does not begin as its compression does: it is damaged")
        if (found.height, found.width, found.channels) != (header.height, header.width, header.samples):
            raise DataError(
                f"{where} declares {found.width}x{found.height} pixels of {found.channels} values, and the header "
                f"{header.width}x{header.height} of {header.samples}: it is damaged, or no picture"
            )
        bits = max(bits, found.bits)
    return bits
