"""From uploaded bytes to an image, as the defence was fitted; no byte of it ever lies on a disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor

from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.data.readers.dicom import scan_of
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.scans import Kind, kind_of
from medfedpure.defence.images import ImageFacts
from medfedpure.service.limits import Refusal
from medfedpure.verdicts.decoding import NO_PICTURE, FileDecoder, Shown

WANTED = "DICOM, JPEG, PNG, TIFF, BMP, GIF or WebP"
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")


class Reader:
    """Reads what somebody sent: files as `predict` reads them, a DICOM file only of one frame.

    Args:
        facts: what images the defence is for.
        most_pixels: of a picture, padded to a square.
        shown: the window of DICOM files.

    Raises:
        ConfigError: the defence is for images that no file is read as.
    """

    def __init__(self, facts: ImageFacts, most_pixels: int, shown: Shown = Shown()) -> None:  # noqa: B008
        self.most_pixels = most_pixels
        self._decoder = FileDecoder(facts, shown=shown)

    def read(self, content: bytes) -> Tensor:
        """`(C, S, S)` float32 in [0, 1].

        Raises:
            Refusal: 422 where it is empty or damaged, 415 where it is of no kind that is read here, 413 where it has
                too many pixels, which is known before any of them is decoded.
        """
        if not content:
            raise Refusal(422, f"an empty file came; {WANTED} is wanted")
        with _in_memory(content) as path:
            kind = kind_of(path)
            if kind == "nifti":
                told = "a volume of NIfTI came, and one image is wanted: send its slices one by one"
                raise Refusal(415, f"{told}, or have `medfedpure predict` read it")
            if kind not in _SIDES:
                raise Refusal(415, f"the file is no {WANTED} by its first bytes: convert it to one of them")
            try:
                sides = _SIDES[kind](path)
                if sides is None or max(sides) ** 2 > self.most_pixels:
                    told = "it" if sides is None else f"{sides[0]} x {sides[1]}"
                    raise Refusal(
                        413, f"{told} would be a square of more than {self.most_pixels} pixels: send it smaller"
                    )
                return self._decoder.read(path, kind).image(0)
            except DataError as error:
                raise Refusal(422, f"the file cannot be read: {error}") from error
            except MissingExtraError as error:
                raise Refusal(415, f"the file cannot be read by this service: {error}") from error


def _sides_of_picture(path: Path) -> tuple[int, int] | None:
    """Width and height, of which the head of a file tells; None for more pixels than Pillow takes from anybody.

    Of what is damaged they are 0: the decoder says what is wrong.
    """
    try:
        with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as opened:
            return opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except Exception:
        return 0, 0


def _sides_of_dicom(path: Path) -> tuple[int, int]:
    """Width and height of the one frame, as the header says; the reader holds every frame against it.

    Raises:
        DataError: it is damaged, or holds no frame or several.
        MissingExtraError: pydicom is not installed.
    """
    header = scan_of(path, "", False, Pseudonyms()).header
    if header.frames == 0:
        raise DataError(NO_PICTURE)
    if header.frames != 1:
        raise DataError(f"it holds {header.frames} pictures, one is wanted: send its frames one by one")
    return header.width, header.height


_SIDES: dict[Kind | None, Callable[[Path], tuple[int, int] | None]] = {
    "image": _sides_of_picture,
    "dicom": _sides_of_dicom,
}


@contextmanager
def _in_memory(content: bytes) -> Iterator[Path]:
    """A path that leads to these bytes, and to nothing outside this process's memory."""
    handle = os.memfd_create("scan")
    try:
        with os.fdopen(os.dup(handle), "wb") as stream:
            stream.write(content)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
