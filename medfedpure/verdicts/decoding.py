"""From a file to images as a defence was fitted on: the one decoder of `predict` and of the service.

A picture is one image, a DICOM file one for each frame, a NIfTI volume one for each slice.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from torch import Tensor

from medfedpure.core.errors import ConfigError, DataError, MissingExtraError
from medfedpure.data.readers import dicom, nifti
from medfedpure.data.readers.grey import Window
from medfedpure.data.readers.images import Decoder
from medfedpure.data.readers.nifti import Axis
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.scans import Kind, ScanReader, kind_of
from medfedpure.data.readers.squares import to_eight_bits
from medfedpure.defence.images import ImageFacts


def is_scan(path: Path) -> bool:
    """Whether a file is to be read: by its content or its ending; so is one that nobody may look into, to be told."""
    if path.name.casefold() == dicom.DIRECTORY:
        return False
    if kind_of(path) is not None or dicom.claims(path) or nifti.claims(path):
        return True
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK)


@dataclass(frozen=True)
class Frames:
    """The images of one file.

    Attributes:
        pixels: `(F, C, S, S)` uint8 or uint16.
        patient: a pseudonym under the key that was given; None without a key, or where the file names nobody.
        study: likewise.
        dim: whether it is a picture of 16 bits that uses less than a sixteenth of its range, and is almost black.
    """

    pixels: Tensor
    patient: str | None = None
    study: str | None = None
    dim: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, place: int) -> Tensor:
        """One of them, `(C, S, S)` float32 in [0, 1]."""
        one = self.pixels[place]
        return one.float().div_(255.0 if one.element_size() == 1 else 65535.0)


NO_PICTURE = "it holds no picture: it is a report, a plan or the like"


@dataclass(frozen=True)
class Shown:
    """How files are shown: as what the defence was fitted on, or its threshold means nothing.

    Args:
        window: of DICOM and NIfTI, as `ScanReader` has it: "auto" is a DICOM file's own table or window, else
            percentiles; two values become black and white. NIfTI has percentiles in place of "auto" and "full".
        axis: that NIfTI volumes are cut across.
        bit_depth: bits that pictures of 16 bits really use, 8 to 16; None = what the defence's own images say, else
            what each file declares.

    Raises:
        ConfigError: no such window, axis or depth.
    """

    window: Window = "auto"
    axis: Axis = "axial"
    bit_depth: int | None = None

    def __post_init__(self) -> None:
        if self.axis not in get_args(Axis):
            raise ConfigError(f"volumes are cut as {', '.join(get_args(Axis))}; got {self.axis!r}")
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 16:
            raise ConfigError(f"pictures of 16 bits use 8 to 16 of them; got {self.bit_depth}")
        named = [name for name in ("auto", "percentiles", "full") if name == self.window]
        if not named and (isinstance(self.window, str) or not -math.inf < self.window[0] < self.window[1] < math.inf):
            raise ConfigError(
                "a window is auto, percentiles, full, or the values that become black and white, the lower first; "
                f"got {self.window!r}"
            )

    @classmethod
    def parse(cls, window: str, axis: str, bit_depth: int | None = None) -> Shown:
        """From words: a window of two values is "LOW,HIGH". Raises ConfigError as above."""
        ends: Window | str = window
        if "," in window:
            try:
                low, high = (float(part) for part in window.split(","))
            except ValueError:
                pass
            else:
                ends = low, high
        return cls(ends, axis, bit_depth)  # type: ignore[arg-type]

    def told(self) -> list[str]:
        """What is not the default, for the rows."""
        window = self.window if isinstance(self.window, str) else ",".join(f"{end:g}" for end in self.window)
        told = {"window": window, "axis": self.axis, "bit_depth": self.bit_depth}
        return [f"{key}={value}" for key, value in told.items() if value not in ("auto", "axial", None)]


class UnreadError(DataError):
    """A file that cannot be read, of somebody who is known.

    Args:
        reason: why.
        who: pseudonyms of patient and study.
    """

    def __init__(self, reason: str, who: tuple[str | None, str | None]) -> None:
        super().__init__(reason)
        self.who = who


class FileDecoder:
    """Reads files as those that a defence was fitted on: size, channels, depth; of NIfTI the first volume.

    Args:
        facts: what images the defence is for.
        pseudonyms: for patient and study; without them neither is told.
        shown: window, axis and depth.

    Raises:
        ConfigError: the defence is for images that no file is read as.
    """

    def __init__(self, facts: ImageFacts, pseudonyms: Pseudonyms | None = None, shown: Shown = Shown()) -> None:
        channels, height, width = facts.image_shape
        if height != width or channels not in (1, 3):
            raise ConfigError(f"files are read as squares, grey or RGB; this defence is for {facts.describe()}")
        self._deep = facts.top > 255
        scaled = self._deep and facts.top < 65535 and facts.top & (facts.top + 1) == 0
        bits = shown.bit_depth or (facts.top.bit_length() if scaled else None)
        self._pictures = Decoder(height, channels, bits, 16 if self._deep else 8)
        self._named = pseudonyms is not None
        self._scans = ScanReader(
            height,
            3 if channels == 3 else 1,
            window=shown.window,
            axis=shown.axis,
            pseudonyms=pseudonyms or Pseudonyms(),
        )

    def read(self, path: Path, kind: Kind | None = None) -> Frames:
        """Every image of a file; at least one.

        Args:
            path: of the file.
            kind: of it, where that is known; None looks at its content.

        Raises:
            DataError: it cannot be read, or holds no picture; the text is the reason without the file's name, and
                holds no value of a header. UnreadError where it says of whom it is, and that may be told.
            MissingExtraError: a package is missing; the text names the extra.
        """
        kind = kind or kind_of(path)
        try:
            return self._read(path, kind)
        except DataError as error:
            if not self._named or kind != "dicom":
                raise
            raise UnreadError(str(error), dicom.whose(path, self._scans.pseudonyms)) from None

    def _read(self, path: Path, kind: Kind | None) -> Frames:
        try:
            if kind == "image":
                decoder = replace(self._pictures, dim=[])
                return Frames(decoder.read(path)[None], dim=bool(decoder.dim))
            found = self._scans.read(path, kind)
        except MemoryError:
            raise DataError("it needs more memory than there is: shrink it, or read it on a larger machine") from None
        except (DataError, MissingExtraError):
            raise
        except Exception as error:  # strangers' files: none ends the call that reads thousands; its text may name one
            raise DataError(f"it cannot be read ({type(error).__name__}): it is damaged") from None
        if not len(found.pixels):
            raise DataError(NO_PICTURE)
        pixels = found.pixels if self._deep else to_eight_bits(found.pixels)
        return Frames(pixels, found.patient, found.study) if self._named else Frames(pixels)
