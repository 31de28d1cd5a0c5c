"""The files of `benchmarks.many_files`: pictures, DICOM and NIfTI drawn from a seed, and some that cannot be read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image
from scans import PLAIN, dicom_bytes

import medfedpure

SIZES = (96, 128, 160, 192)
"""Heights and widths in pixels, which the defence's reader shrinks."""
FRAMES, SLICES = 5, 6
CORRUPT_SHARE = 0.01
_RLE, _J2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"
Drawn = Callable[[int], numpy.ndarray]
"""From a place to a picture, `(H, W)` uint8."""


@dataclass(frozen=True)
class Made:
    """A file that was written.

    Attributes:
        name: below the folder.
        kind: of `KINDS`.
        images: rows that it must get; a file that cannot be read gets one.
        broken: how it was spoilt; None of a sound one.
        size: in bytes.
    """

    name: str
    kind: str
    images: int
    broken: str | None
    size: int


def _png8(drawn: Drawn) -> bytes:
    return _saved(Image.fromarray(drawn(0)), "PNG")


def _png16(drawn: Drawn) -> bytes:
    return _saved(Image.fromarray(drawn(0).astype(numpy.uint16) * 257), "PNG")


def _jpeg(drawn: Drawn) -> bytes:
    return _saved(Image.fromarray(drawn(0)), "JPEG")


def _tiff(drawn: Drawn) -> bytes:
    return _saved(Image.fromarray(drawn(0)), "TIFF")


def _dicom(drawn: Drawn, syntax: str = PLAIN, frames: int = 1) -> bytes:
    pixels = numpy.stack([drawn(place) for place in range(frames)]).astype(numpy.uint16) * 16
    content: bytes = dicom_bytes(pixels if frames > 1 else pixels[0], bits=12, syntax=syntax)
    return content


def _nifti(drawn: Drawn) -> bytes:
    import nibabel

    volume = numpy.stack([drawn(place) for place in range(SLICES)], axis=2).astype(numpy.int16)
    content: bytes = nibabel.Nifti1Image(volume, numpy.eye(4)).to_bytes()
    return content


KINDS: dict[str, tuple[str, int, int, Callable[[Drawn], bytes]]] = {
    "png, 8 bits": (".png", 6, 1, _png8),
    "png, 16 bits": (".png", 3, 1, _png16),
    "jpeg": (".jpg", 4, 1, _jpeg),
    "tiff": (".tif", 2, 1, _tiff),
    "dicom": (".dcm", 2, 1, _dicom),
    "dicom, RLE": (".dcm", 1, 1, lambda drawn: _dicom(drawn, _RLE)),
    "dicom, JPEG 2000": (".dcm", 1, 1, lambda drawn: _dicom(drawn, _J2K)),
    "dicom, frames": ("", 1, FRAMES, lambda drawn: _dicom(drawn, PLAIN, FRAMES)),
    "dicom, frames, RLE": ("", 1, FRAMES, lambda drawn: _dicom(drawn, _RLE, FRAMES)),
    "nifti": (".nii", 1, SLICES, _nifti),
    "nifti, gzip": (".nii.gz", 1, SLICES, lambda drawn: gzip.compress(_nifti(drawn), 1, mtime=0)),
}
"""By name: ending, parts of the whole, images a file, how it is made. Files of frames have no ending."""

BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda content: content[: len(content) // 2],
    "cut after its head": lambda content: content[:200],
    "empty": lambda _: b"",
    "zeros for its head": lambda content: bytes(400) + content[400:],
    "not what its ending says": lambda _: b"Dear colleague, please find attached what we spoke of.\n" * 20,
}
KEEPS_ITS_HEAD = 2
"""So many of them, and only those, leave a file without an ending one that is found by its content."""


def pictures(seed: int) -> list[numpy.ndarray]:
    """Phantoms, some of each of `SIZES`, uint8."""
    found = []
    for size in SIZES:
        data = medfedpure.create("dataset", "phantom", {"images": 16, "image_size": size, "seed": seed}).read()
        found += [picture.numpy() for picture in data.pixels[:, 0]]
    return found


def make_files(folder: Path, count: int, seed: int) -> list[Made]:
    """Write so many files into folders of a hundred, in an order of kinds that is drawn."""
    generator = numpy.random.default_rng(seed)
    base = pictures(seed)
    weights = numpy.array([parts for _, parts, _, _ in KINDS.values()], float)
    kinds = generator.choice(list(KINDS), count, p=weights / weights.sum())
    broken = set(generator.choice(count, round(count * CORRUPT_SHARE), replace=False).tolist())
    made = []
    for place, kind in enumerate(map(str, kinds)):
        picture = base[int(generator.integers(len(base)))]
        gain, shift = generator.uniform(0.6, 1.0), int(generator.integers(8))
        ending, _, images, write = KINDS[kind]

        def drawn(z: int, picture: numpy.ndarray = picture, gain: float = gain, shift: int = shift) -> numpy.ndarray:
            return (numpy.roll(picture, shift + z, 0) * gain).astype(numpy.uint8)

        content = write(drawn)
        how = None
        if place in broken:
            how, content = spoilt(kind, content, int(generator.integers(len(BREAKS))))
        path = folder / f"{place // 100:04}" / f"{place:06}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made.append(Made(f"{path.parent.name}/{path.name}", kind, 1 if how else images, how, len(content)))
    return made


def spoilt(kind: str, content: bytes, choice: int) -> tuple[str, bytes]:
    """How a file was spoilt, and what is left of it: nothing that can be read.

    Args:
        kind: of `KINDS`.
        content: of a sound file.
        choice: any number from 0.
    """
    how = list(BREAKS)[choice % (len(BREAKS) if KINDS[kind][0] else KEEPS_ITS_HEAD)]
    return how, BREAKS[how](content)


def _saved(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()
