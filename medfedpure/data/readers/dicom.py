"""DICOM files: which ones they are, and their frames as grey or colour in [0, 1].

Modality table or rescale, then the file's own table or first window, else percentiles; MONOCHROME1 is turned, padding
is black. Overlays and colour profiles are not applied. The standard: DICOM PS3.3 (NEMA 2024); decoding is pydicom's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
from numpy.typing import NDArray

from medfedpure.core.errors import DataError
from medfedpure.data.readers.dicom_frames import stored_frames
from medfedpure.data.readers.dicom_header import COLOUR, MAGIC, PALETTE, PREAMBLE, Header, header_of, is_bare
from medfedpure.data.readers.dicom_header import whose as header_whose
from medfedpure.data.readers.folders import naming, what_else
from medfedpure.data.readers.grey import PERCENTILES, Rules, Whole, Window, between, percentile_ends, rules_of
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.unheard import asked

DIRECTORY = "dicomdir"
"""Name, in small letters, of the file that lists a medium's files and is no scan."""
_ENDINGS = frozenset({".dcm", ".dicom", ".dic", ".ima"})
_LARGEST_FILE = 2**32
_LUMINANCE = (0.299, 0.587, 0.114)


def is_dicom(path: Path, force: bool = False) -> bool:
    """Whether a file is DICOM by its content: "DICM" behind 128 bytes.

    Args:
        path: of anything.
        force: also take what begins like a data set without that preamble, as old archives wrote it.
    """
    try:
        if what_else(path):
            return False
        with path.open("rb") as stream:
            head = stream.read(PREAMBLE + len(MAGIC))
    except OSError:
        return False
    return head[PREAMBLE:] == MAGIC or (force and is_bare(head))


def claims(path: Path, force: bool = False) -> bool:
    """Whether a file is DICOM by its content, or says so by its ending; the directory of a medium is none."""
    if path.name.casefold() == DIRECTORY:
        return False
    return path.suffix.lower() in _ENDINGS or is_dicom(path, force)


def read_dicom(source: Path | bytes, *, force: bool = False, pseudonyms: Pseudonyms | None = None) -> DicomScan:
    """A file's header, checked; its frames are decoded when they are asked for.

    Args:
        source: path or content of a file.
        force: read a data set that has no preamble.
        pseudonyms: for patient and study; fresh ones by default, which compare with nothing else.

    Raises:
        DataError: it is no DICOM file, is damaged, or claims more than it holds; the text names the file and what to
            do, and no value of an identifying tag.
        MissingExtraError: pydicom is not installed.
    """
    name = "the DICOM file given as bytes" if isinstance(source, bytes) else str(source)
    return scan_of(source, name, force, pseudonyms or Pseudonyms())


def scan_of(source: Path | bytes, name: str, force: bool, pseudonyms: Pseudonyms) -> DicomScan:
    """As `read_dicom`; messages begin with the name, and where that is empty they tell the reason alone."""
    with naming(name):
        return DicomScan(name, header_of(_content(source), force, pseudonyms))


def whose(path: Path, pseudonyms: Pseudonyms) -> tuple[str | None, str | None]:
    """The pseudonyms of patient and study, of a file whose picture may be unreadable; None where it names nobody."""
    try:
        return header_whose(_content(path), pseudonyms)
    except DataError:
        return None, None


@dataclass(frozen=True, repr=False)
class DicomScan:
    """One file, not yet decoded, without any identifying tag.

    Attributes:
        name: of the file, for messages.
        header: what it says of its pixels; with 0 frames there are none.
    """

    name: str
    header: Header

    @property
    def channels(self) -> Literal[1, 3]:
        """1 = grey, 3 = colour."""
        return 3 if self.header.photometric in (*COLOUR, PALETTE) else 1

    def rules(self, frame: int) -> Rules:
        """How the grey of one frame, from 0, is to be shown; DataError where the header says it wrongly."""
        head = self.header
        with naming(self.name):
            reason = "its tables or windows cannot be read: repair the header, or give a window"
            return asked(lambda: rules_of(head.dataset, frame, head.bits, head.signed, head.little), reason)

    def stored(self) -> Iterator[Whole]:
        """Stored values of each frame as `stored_frames`, which raises; its DataError names the file."""
        with naming(self.name):
            yield from stored_frames(self.header)

    def images(
        self,
        *,
        window: Window = "auto",
        percentiles: tuple[float, float] = PERCENTILES,
        colour_to_grey: bool = False,
        invert: bool = True,
        pad: bool = True,
    ) -> Iterator[NDArray[numpy.float32]]:
        """Frames `(C, H, W)` in [0, 1], white is bright.

        Args:
            window: auto = the file's own table or first window, else percentiles; full = all that its bits can say;
                or two ends, in values after the rescale (Hounsfield units of a CT). Colour has none.
            percentiles: of the values of all frames, padding left out; these become 0 and 1.
            colour_to_grey: give the luminance (ITU-R 601) of colour.
            invert: turn MONOCHROME1, whose 0 is white.
            pad: set what the file calls padding to 0.

        Raises:
            DataError: as `stored` and `rules`.
            MissingExtraError: as `stored`.
        """
        if not self.header.frames:
            return
        if self.channels == 3:
            yield from self._colours(colour_to_grey)
            return
        frames = self.stored()
        ends = None
        with naming(self.name):
            padding = self.header.padding()
        if window == "percentiles" or (window == "auto" and not self._brings_windows()):
            kept = list(frames)
            ends = self._percentile_ends(kept, percentiles, padding)
            frames = iter(kept)
        for place, stored in enumerate(frames):
            rules = self.rules(place)
            values = rules.values(stored)
            if ends is None and window == "auto":
                grey = rules.windowed(values)
            else:
                low, high = ends or (rules.ends() if isinstance(window, str) else window)
                grey = between(values, low, high)
            if invert and self.header.photometric == "MONOCHROME1":
                grey = 1.0 - grey
            if pad and padding is not None:
                grey[(stored >= padding[0]) & (stored <= padding[1])] = 0.0
            yield grey.astype(numpy.float32)[None]

    def _brings_windows(self) -> bool:
        return all(self.rules(place).has_window() for place in range(self.header.frames))

    def _percentile_ends(
        self, frames: list[Whole], percentiles: tuple[float, float], padding: tuple[int, int] | None
    ) -> tuple[float, float]:
        """Over all frames by counting: one has many pixels, and at most 65536 different values."""
        values, counts = [], []
        for place, stored in enumerate(frames):
            different, often = numpy.unique(stored, return_counts=True)
            inside = numpy.ones(len(different), bool)
            if padding is not None:
                inside = (different < padding[0]) | (different > padding[1])
            values.append(self.rules(place).values(different[inside]))
            counts.append(often[inside])
        return percentile_ends(numpy.concatenate(values), numpy.concatenate(counts), percentiles)

    def _colours(self, to_grey: bool) -> Iterator[NDArray[numpy.float32]]:
        for stored in self.stored():
            colour, top = stored, 2**self.header.bits - 1
            if self.header.photometric == PALETTE:
                colour = self._painted(stored)
                top = int(numpy.iinfo(colour.dtype).max)
            share = numpy.clip(colour[..., :3] / top, 0.0, 1.0).astype(numpy.float32)
            yield (share @ numpy.array(_LUMINANCE, numpy.float32))[None] if to_grey else share.transpose(2, 0, 1)

    def _painted(self, places: Whole) -> Whole:
        from pydicom.pixels import apply_color_lut

        with naming(self.name):
            return asked(lambda: apply_color_lut(places, self.header.dataset), "its palette cannot be read")


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if other := what_else(source):
        raise DataError(f"it is {other}, not a file")
    try:
        if (size := source.stat().st_size) > _LARGEST_FILE:
            raise DataError(f"it holds {size} bytes, at most {_LARGEST_FILE} are read: split it")
        return source.read_bytes()
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}") from None
