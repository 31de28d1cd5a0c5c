"""Every file that pydicom ships: pixels equal those of its own functions, and the page says what became of each."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("openjpeg")
pytest.importorskip("jpeg_ls")

from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array  # noqa: E402
from shipped import HAS_GPL, PAGE, dicom_files, outcome, rows, table  # noqa: E402

from medfedpure.core.errors import DataError, MissingExtraError  # noqa: E402
from medfedpure.data.readers.dicom import DicomScan, read_dicom  # noqa: E402
from medfedpure.data.readers.grey import percentile_ends  # noqa: E402

FILES = dicom_files()
READ = [path for path in FILES if outcome(path).startswith("read")]


def by_pydicom(path: Path) -> tuple[pydicom.Dataset, numpy.ndarray]:
    """Its data set, and its stored values with an axis of frames, colour as RGB."""
    header = pydicom.dcmread(path)
    stored = pixel_array(header)
    single = stored.ndim == (3 if header.SamplesPerPixel == 3 else 2)
    return header, stored[None] if single else stored


def steps(scan: DicomScan) -> int:
    return 2**scan.header.bits - 1


def test_enough_of_them_are_read() -> None:
    assert len(READ) >= 72, "the comparison below is about all that pydicom ships and can decode"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.filterwarnings("ignore::UserWarning:medfedpure")
@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_pixels_are_those_of_pydicom(path: Path) -> None:
    scan = read_dicom(path)
    header, stored = by_pydicom(path)
    if scan.channels == 3:
        colour = apply_color_lut(stored, header) if "PALETTE" in header.PhotometricInterpretation else stored
        top = numpy.iinfo(colour.dtype).max
        found = numpy.stack(list(scan.images())).transpose(0, 2, 3, 1)
        assert numpy.abs(found * top - colour[..., :3]).max() <= 1.001
        return
    wanted = apply_modality_lut(stored, header).astype(numpy.float64)
    ours = numpy.stack([scan.rules(place).values(one) for place, one in enumerate(scan.stored())])
    assert numpy.array_equal(ours, wanted), "the modality's table or rescale"
    low, high = scan.rules(0).ends()
    assert low <= high
    if scan.rules(0).has_window():
        shown = (apply_voi_lut(apply_modality_lut(stored, header), header) - low) / (high - low)
        found = numpy.stack(list(scan.images(invert=False, pad=False)))[:, 0]
        assert numpy.abs(found - shown).max() * steps(scan) <= 1, "the window"
    found = numpy.stack(list(scan.images(window="full", invert=False, pad=False)))[:, 0]
    assert numpy.abs(found - numpy.clip((wanted - low) / (high - low), 0, 1)).max() * steps(scan) <= 1
    found = numpy.stack(list(scan.images(window="percentiles", invert=False, pad=False)))[:, 0]
    padding = scan.header.padding()
    inside = wanted if padding is None else wanted[(stored < padding[0]) | (stored > padding[1])]
    black, white = numpy.percentile(inside, (0.5, 99.5), method="inverted_cdf")
    assert (black, white) == percentile_ends(inside), "the same by counting and by sorting"
    shown = numpy.clip((wanted - black) / max(white - black, 1), 0, 1)
    assert numpy.abs(found - shown).max() * steps(scan) <= 1, "percentiles"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_what_is_turned_is_the_opposite() -> None:
    turned = [path for path in READ if read_dicom(path).header.photometric == "MONOCHROME1"]
    assert turned
    for path in turned:
        scan = read_dicom(path)
        bright, dark = (next(scan.images(invert=invert)) for invert in (True, False))
        assert numpy.allclose(bright, 1 - dark)


@pytest.mark.parametrize("path", [path for path in FILES if path not in READ], ids=lambda path: path.name)
def test_what_is_not_read_says_why(path: Path) -> None:
    reason = outcome(path)
    if reason == "no picture, passed over":
        assert list(read_dicom(path).images()) == []
        return
    with pytest.raises((DataError, MissingExtraError)) as caught:
        list(read_dicom(path).images())
    told = str(caught.value)
    assert "medfedpure[medical-gpl]" in told or told.startswith(f"{path}: "), "the extra, or the file"
    assert caught.value.__cause__ is None, "pydicom's own errors quote values"


def test_the_page_tells_each_file() -> None:
    """Rows of files that only another version ships may stand there; `python tests/shipped.py` writes the table."""
    written = rows(PAGE.read_text(encoding="utf-8"))
    for name, told in rows(table()).items():
        same = written.get(name) == told or (HAS_GPL and "medical-gpl" in written.get(name, ""))
        assert same, f"{PAGE.name} says of {name}: {written.get(name)}, and it is {told}: run `python tests/shipped.py`"
