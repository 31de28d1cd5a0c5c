"""One entry for files of any kind, told apart by their content."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from scans import anatomy, dicom_bytes, write_nifti

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from medfedpure.core.errors import DataError
from medfedpure.data.readers.scans import ScanReader, kind_of
from medfedpure.data.readers.squares import square_of_shares, to_eight_bits

DEEP = anatomy(5, 24, top=65535)


def tiff(values: numpy.ndarray, order: str) -> Image.Image:
    mode = "I;16" if order == "<" else "I;16B"
    return Image.frombytes(mode, values.shape[::-1], values.astype(f"{order}u2").tobytes())


def kinds(folder: Path) -> dict[str, Path]:
    """A file of each kind, without an ending."""
    found = {name: folder / name for name in ("dicom", "nifti", "png", "tiff", "big-endian", "packed")}
    found["dicom"].write_bytes(dicom_bytes(DEEP))
    write_nifti(folder / "a.nii", DEEP.T[::-1, ::-1, None].astype(numpy.uint16)).rename(found["nifti"])
    tiff(DEEP, "<").save(found["png"], format="PNG")
    tiff(DEEP, "<").save(found["tiff"], format="TIFF")
    tiff(DEEP, ">").save(found["big-endian"], format="TIFF")
    tiff(DEEP, "<").save(found["packed"], format="TIFF", compression="tiff_adobe_deflate")
    return found


def test_sixteen_bits_survive_in_every_format(tmp_path):
    reader = ScanReader(24, window=(0.0, 65535.0))
    for name, path in kinds(tmp_path).items():
        scan = reader.read(path)
        assert scan.deep, name
        assert scan.pixels.shape == (1, 1, 24, 24), name
        assert numpy.array_equal(scan.pixels[0, 0].numpy(), DEEP), name
        assert kind_of(path) == ("image" if name not in ("dicom", "nifti") else name)


def test_a_tiff_of_signed_or_several_pictures_is_refused(tmp_path):
    one = tiff(DEEP, "<")
    one.save(tmp_path / "two.tif", save_all=True, append_images=[tiff(DEEP, "<")])
    with pytest.raises(DataError, match="holds 2 pictures"):
        ScanReader(24).read(tmp_path / "two.tif")
    Image.fromarray(DEEP.astype(numpy.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(DataError, match="have no known range"):
        ScanReader(24).read(tmp_path / "wide.tif")


def test_endings_do_not_deceive_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(dicom_bytes(DEEP))
    assert kind_of(tmp_path / "a.png") == "dicom"
    assert len(ScanReader(24).read(tmp_path / "a.png").pixels) == 1
    (tmp_path / "notes").write_text("of a patient")
    assert kind_of(tmp_path / "notes") is None
    with pytest.raises(DataError, match=r"^it is neither DICOM nor NIfTI nor a picture$"):
        ScanReader(24).read(tmp_path / "notes")
    (tmp_path / "cut").write_bytes(dicom_bytes(DEEP)[:-50])
    with pytest.raises(DataError, match=r"^its frames claim|^its header"):
        ScanReader(24).read(tmp_path / "cut")


def test_grey_becomes_rgb_and_colour_is_asked_about(tmp_path):
    (tmp_path / "grey").write_bytes(dicom_bytes(numpy.stack([DEEP, DEEP // 2])))
    found = ScanReader(24, 3, window="full").read(tmp_path / "grey").pixels
    assert found.shape == (2, 3, 24, 24)
    assert (found.int() == found[:, :1].int()).all()
    (tmp_path / "colour").write_bytes(dicom_bytes(numpy.full((8, 8, 3), 99, numpy.uint8), SamplesPerPixel=3))
    with pytest.raises(DataError, match=r"in colour and grey is wanted: .* takes channels=3 or colour_to_grey"):
        ScanReader(24).read(tmp_path / "colour")
    grey = ScanReader(24, colour_to_grey=True).read(tmp_path / "colour")
    assert not grey.deep
    assert (to_eight_bits(grey.pixels) == 99).all()


def test_shares_become_squares_with_black_beside_them():
    found = square_of_shares(numpy.ones((1, 10, 20), numpy.float32), 20)
    assert found.dtype == torch.uint16
    assert (found[0, 5:15].int() == 65535).all()
    assert found[0, :5].int().max() == 0
    assert found[0, 15:].int().max() == 0
    deep = torch.tensor([0, 128, 129, 65535 - 128, 65535], dtype=torch.int32).to(torch.uint16)
    assert to_eight_bits(deep).tolist() == [0, 0, 1, 255, 255]
    everyone = torch.arange(256, dtype=torch.int32) * 257
    assert to_eight_bits(everyone.to(torch.uint16)).tolist() == list(range(256))


def test_data_sets_without_preamble_are_the_last_guess(tmp_path):
    bare = tmp_path / "bare"
    whole = dicom_bytes(DEEP)
    start = 144 + struct.unpack_from("<I", whole, 140)[0]
    bare.write_bytes(whole[start:])
    assert kind_of(bare) is None
    assert kind_of(bare, force=True) == "dicom"
    assert len(ScanReader(24, force=True).read(bare).pixels) == 1
