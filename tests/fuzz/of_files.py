"""Parsers of files: scans, and what the project writes itself."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [path for path in (str(TESTS), str(TESTS.parent)) if path not in sys.path]

import numpy  # noqa: E402 - the tests' own helpers have to be found first
from PIL import Image  # noqa: E402
from scans import anatomy, dicom_bytes, write_nifti  # noqa: E402

from medfedpure.core.errors import MedFedPureError  # noqa: E402

Target = Callable[[bytes], object]
SHORTEST_KEPT = 30_000
"""Bytes: shipped files that are longer slow a search down."""


def dicom_seeds(_: Path) -> Iterable[bytes]:
    grey, table = anatomy(1, 16), numpy.arange(256, dtype=numpy.uint16).tobytes()
    yield dicom_bytes(grey, bits=12, PatientID="P1", WindowCenter=[40, 50], WindowWidth=[400, 10], RescaleSlope=2)
    yield dicom_bytes(numpy.stack([grey, grey]).astype(numpy.int16), PhotometricInterpretation="MONOCHROME1")
    yield dicom_bytes((grey // 16).astype(numpy.uint8), RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=0)
    yield dicom_bytes(numpy.zeros((8, 8, 3), numpy.uint8), SamplesPerPixel=3)
    palette = {f"{one}PaletteColorLookupTableDescriptor": [256, 0, 16] for one in ("Red", "Green", "Blue")}
    palette |= {f"{one}PaletteColorLookupTableData": table for one in ("Red", "Green", "Blue")}
    yield dicom_bytes((grey // 16).astype(numpy.uint8), PhotometricInterpretation="PALETTE COLOR", **palette)
    yield dicom_bytes(grey, bits=12, syntax="1.2.840.10008.1.2.5")
    yield from _shipped_dicom()


def _shipped_dicom() -> Iterable[bytes]:
    """pydicom's own small files, of every transfer syntax."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for path in sorted(folder.glob("*.dcm")):
        if path.stat().st_size <= SHORTEST_KEPT:
            yield path.read_bytes()


def nifti_seeds(folder: Path) -> Iterable[bytes]:
    volume = numpy.stack([anatomy(z, 12) for z in range(4)], axis=2).astype(numpy.int16)
    several = numpy.stack([volume, volume], axis=3).astype(numpy.float32)
    for name, values in {"a.nii": volume, "b.nii.gz": several, "c.nii": several, "d.nii": volume.astype("u1")}.items():
        yield write_nifti(folder / name, values).read_bytes()


def picture_seeds(_: Path) -> Iterable[bytes]:
    grey = Image.fromarray((anatomy(3, 20) // 16).astype(numpy.uint8))
    deep = Image.fromarray(anatomy(4, 20))
    colour = Image.merge("RGB", (grey, grey, grey))
    clear = Image.merge("RGBA", (grey, grey, grey, grey))
    for image, kinds in (
        (grey, ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")),
        (deep, ("PNG", "TIFF")),
        (colour, ("PNG", "JPEG", "TIFF", "BMP", "WEBP")),
        (clear, ("PNG", "TIFF")),
        (grey.convert("P"), ("PNG", "GIF", "BMP")),
        (grey.convert("1"), ("TIFF", "BMP")),
        (colour.convert("CMYK"), ("JPEG", "TIFF")),
    ):
        for kind in kinds:
            written = io.BytesIO()
            image.save(written, kind)
            yield written.getvalue()


def scan(kind: str) -> Callable[[Path], Target]:
    from medfedpure.data.readers.scans import ScanReader

    def target(folder: Path) -> Target:
        readers = [ScanReader(16, 1, colour_to_grey=True, force=True), ScanReader(16, 3)]
        path = folder / "scan"

        def of(content: bytes) -> None:
            path.write_bytes(content)
            readers[len(content) % 2].read(path, kind)  # type: ignore[arg-type]

        return of

    return target


# -- what the project writes itself --------------------------------------------------------------------------------


def sealed(content: bytes) -> bytes:
    """A document with the digest that it should have, so that what is behind that check is reached."""
    from medfedpure.core.storage import _digest

    try:
        told = json.loads(content)
        told["digest"] = _digest(told)
        return json.dumps(told).encode(errors="surrogatepass")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


_PLACES = ("", "classifier", "detector", "purifier")


def _defence(folder: Path) -> Path:
    import medfedpure
    from medfedpure.testing import tiny_classifier, tiny_dataset

    if not folder.exists():
        chain = medfedpure.DefendedClassifier(
            tiny_classifier(16, 1),
            detector=medfedpure.create("detector", "feature_squeezing"),
            purifier=medfedpure.create("purifier", "smoothing"),
        )
        chain.calibrate(tiny_dataset(40, size=16), 0.3, seed=1).save(folder)
    return folder


def bundle_seeds(folder: Path) -> Iterable[bytes]:
    for place in _PLACES:
        yield (_defence(folder / "sound") / place / "medfedpure.json").read_bytes()


def bundle(folder: Path) -> Target:
    import medfedpure
    from medfedpure.core.classifier import ClassifierModel
    from medfedpure.core.detector import Detector
    from medfedpure.core.purifier import Purifier

    alone = {"classifier": ClassifierModel, "detector": Detector, "purifier": Purifier}
    sound, work = _defence(folder / "sound"), folder / "work"
    kinds = {json.loads((sound / place / "medfedpure.json").read_bytes())["kind"]: place for place in _PLACES}
    shutil.copytree(sound, work, dirs_exist_ok=True)

    def of(content: bytes) -> None:
        for place in _PLACES:
            shutil.copyfile(sound / place / "medfedpure.json", work / place / "medfedpure.json")
        document = sealed(content)
        told = _told(document)
        kind = told.get("kind")
        place = kinds.get(kind, "") if isinstance(kind, str) else ""
        (work / place / "medfedpure.json").write_bytes(document)
        if place:
            above = _told((sound / "medfedpure.json").read_bytes())
            above["parts"][place] = told["digest"]
            (work / "medfedpure.json").write_bytes(sealed(json.dumps(above).encode()))
            with suppress(MedFedPureError):
                alone[place].load(work / place)
        medfedpure.DefendedClassifier.load(work)

    return of


def _told(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_COLUMNS = {"file": str, "frame": int, "frames": int, "label": int, "defence": str}


def rows_seeds(folder: Path) -> Iterable[bytes]:
    from medfedpure.verdicts.sheet import Sheet

    for kind in ("csv", "jsonl"):
        rows = [{"file": "a.png", "frame": 0, "frames": 2}, {"file": "a.png", "frame": 1, "frames": 2}, {"file": "b"}]
        with Sheet(folder / "rows", _COLUMNS, kind, "me") as sheet:  # type: ignore[arg-type]
            sheet.write(rows)
        yield (folder / "rows").read_bytes()
        (folder / "rows").unlink()


def rows(folder: Path) -> Target:
    """A sheet that is continued: what was whole stays whole, and what is none is left as it was."""
    from medfedpure.core.errors import ArtifactError
    from medfedpure.verdicts.sheet import Sheet

    path = folder / "rows"

    def of(content: bytes) -> None:
        kind = "jsonl" if content.startswith(b"{") else "csv"
        path.write_bytes(content)
        whole = content[: content.rfind(b"\n") + 1]
        try:
            with Sheet(path, _COLUMNS, kind, "me") as sheet:  # type: ignore[arg-type]
                left = sheet.left("a.png", 3)
                assert all(0 <= place < 3 for place in left)
        except ArtifactError:
            assert path.read_bytes() == content, "a file that was refused was changed"
            raise
        assert path.read_bytes().startswith(whole), "rows that were whole were lost"

    return of


def config_seeds(folder: Path) -> Iterable[bytes]:
    from medfedpure.job.presets import folder_demo, phantom_demo

    yield phantom_demo().to_toml().encode()
    yield folder_demo(folder).to_toml().encode()


def config(folder: Path) -> Target:
    from medfedpure.job.config import RunConfig

    path = folder / "run.toml"

    def of(content: bytes) -> None:
        path.write_bytes(content)
        RunConfig.from_toml(path)

    return of
