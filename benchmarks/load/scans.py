"""What clients send: scans of which they know the verdict, and what is none and gets a status."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from scans import dicom_bytes
from torch import Tensor

import medfedpure
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.verdicts.decoding import FileDecoder

SIZE = 32
CLOSE = 1e-4
"""What a score or a probability may differ by among other images of a batch; of a strength, which divides by a small
number, that is a rounding of float32."""
FORMATS = ("PNG", "JPEG", "TIFF", "DICOM")


@dataclass(frozen=True)
class Scan:
    """A file, and what `predict` says of it.

    Attributes:
        name: that no other has; None where it is sent without.
        content: its bytes.
        verdict: by column.
        picture: the image as the defence is given it, `(S, S)` uint8.
    """

    name: str | None
    content: bytes
    verdict: dict[str, Any]
    picture: Tensor

    def faults(self, row: dict[str, Any]) -> list[str]:
        """What is wrong with a row that was answered for it."""
        found = [] if row["file"] == self.name else [f"{self.name} was answered the row of {row['file']}"]
        for key, wanted in self.verdict.items():
            given = row[key]
            alike = abs(given - wanted) < CLOSE if isinstance(wanted, float) and given is not None else given == wanted
            if not alike:
                found.append(f"{self.name}: {key} is {given}, {wanted} is right")
        if "scan_png" in row:
            shown = Image.open(io.BytesIO(base64.b64decode(row["scan_png"])))
            if list(shown.tobytes()) != self.picture.flatten().tolist():
                found.append(f"{self.name} came back as another picture")
        return found


def make_defence(folder: Path) -> medfedpure.DefendedClassifier:
    """A chain that flags about a third of its images, and whose purifier draws noise; also written into a folder."""
    made = medfedpure.DefendedClassifier(
        tiny_classifier(SIZE, 1),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "smoothing"),
    )
    made.calibrate(tiny_dataset(120, size=SIZE), 0.3, seed=1).save(folder)
    return medfedpure.DefendedClassifier.load(folder)


def make_scans(
    chain: medfedpure.DefendedClassifier, clients: int, each: int, seed: int, folder: Path
) -> list[list[Scan]]:
    """For every client its own scans, in turn of each of FORMATS.

    Args:
        chain: says what is right of each of them, alone and under this seed.
        clients: how many lists are wanted.
        each: scans of a client.
        seed: of the noise.
        folder: a scan lies there while it is read, as `predict` reads it.
    """
    assert chain.image_facts is not None
    decoder, pixels = FileDecoder(chain.image_facts), tiny_dataset(clients * each, size=SIZE, seed=5).pixels[:, 0]
    found: list[list[Scan]] = [[] for _ in range(clients)]
    for place, square in enumerate(pixels):
        client, number = divmod(place, each)
        format = FORMATS[number % len(FORMATS)]
        path = folder / f"{client}-{number}.{format.lower()}"
        path.write_bytes(written(square, format))
        frames = decoder.read(path)
        (row,) = chain.predict(frames.image(0)[None], seed=seed).rows()
        verdict = {key: value for key, value in row.items() if key != "image"}
        found[client].append(Scan(path.name, path.read_bytes(), verdict, frames.pixels[0, 0]))
        path.unlink()
    return found


def written(pixels: Tensor, format: str) -> bytes:
    """The file of grey pixels `(H, W)`, or for DICOM of frames `(F, H, W)`, uint8."""
    if format != "DICOM":
        stream = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(stream, format)
        return stream.getvalue()
    return dicom_bytes(pixels.numpy(), WindowCenter=128, WindowWidth=256)


def bomb(side: int) -> bytes:
    """A PNG whose head claims a square of that side, and whose body is a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
