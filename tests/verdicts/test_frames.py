"""A row for each DICOM frame and NIfTI slice, exactly one however often the writing was ended, and nobody's name."""

import os
import sys

import numpy
import pytest
import torch
from PIL import Image
from scans import anatomy, dicom_bytes, write_nifti
from written import DATA, defence, rows_of

import medfedpure
from medfedpure.core.errors import ConfigError, DataError, MissingExtraError
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.scans import kind_of
from medfedpure.defence.images import ImageFacts
from medfedpure.verdicts.decoding import FileDecoder, is_scan
from medfedpure.verdicts.files import files_of
from medfedpure.verdicts.predict import predict_files

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")
NAMES = ["MUSTERMANN^ERIKA", "P-4711"]


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def inbox(tmp_path):
    """A DICOM file of one frame and one of five without endings, a volume of four slices, a picture, a report."""
    folder = tmp_path / "inbox"
    (folder / "study").mkdir(parents=True)
    told = {"PatientName": NAMES[0], "PatientID": NAMES[1], "StudyInstanceUID": "1.2.3", "bits": 12}
    (folder / "study" / "IM1").write_bytes(dicom_bytes(anatomy(1), **told))
    many = numpy.stack([anatomy(place) for place in range(2, 7)])
    (folder / "study" / "IM5").write_bytes(dicom_bytes(many, **told))
    (folder / "DICOMDIR").write_bytes(dicom_bytes(anatomy(1)))
    (folder / "notes.txt").write_text("no scan")
    volume = numpy.stack([anatomy(place, 24) for place in range(4)], axis=2).astype(numpy.int16)
    write_nifti(folder / "volume.nii.gz", volume)
    Image.fromarray(DATA.pixels[0, 0].numpy()).save(folder / "picture.png")
    return folder


def keys_of(rows):
    return [(row["file"].rpartition("/")[2], row["frame"], row["frames"]) for row in rows]


WANTED = [
    ("picture.png", 0, 1),
    ("IM1", 0, 1),
    *(("IM5", place, 5) for place in range(5)),
    *(("volume.nii.gz", place, 4) for place in range(4)),
]


def test_a_row_for_each_frame_and_slice(chain, inbox, tmp_path):
    tally = predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7, batch_size=3)
    rows = rows_of(tmp_path / "v.jsonl")
    assert keys_of(rows) == WANTED
    assert (tally.files, tally.read, tally.images, tally.failed) == (4, 4, 11, 0)
    assert all(row["error"] is None and row["label"] in (0, 1) for row in rows)
    assert {row["patient"] for row in rows} == {row["study"] for row in rows} == {None}


def test_a_frame_is_what_the_data_set_of_such_files_gives(inbox, tmp_path):
    """With the depth of the defence: a threshold that was fitted on bytes is asked of bytes."""
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "IM5").write_bytes((inbox / "study" / "IM5").read_bytes())
    for bits, top in ((8, 255), (16, 65535)):
        options = {"root": tmp_path / "classes", "image_size": 16, "pixel_bits": bits, "classes": ("a", "b")}
        data = medfedpure.create("dataset", "dicom_folder", **options).read()
        found = FileDecoder(ImageFacts((1, 16, 16), (), top)).read(inbox / "study" / "IM5")
        wanted = data.select(torch.arange(5)).images
        assert torch.equal(torch.stack([found.image(place) for place in range(5)]), wanted)
    coloured = FileDecoder(ImageFacts((3, 16, 16), (), 255)).read(inbox / "volume.nii.gz")
    assert coloured.image(3).shape == (3, 16, 16)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_cut_off_within_a_file_no_frame_is_lost_or_told_twice(chain, inbox, tmp_path, format):
    whole, cut = tmp_path / f"whole.{format}", tmp_path / f"cut.{format}"
    predict_files(chain, [inbox], whole, format=format, seed=7, batch_size=4)
    lines = whole.read_bytes().splitlines(keepends=True)
    labels = [(row["file"], row["frame"], row["label"]) for row in rows_of(whole)]
    for count in range(len(lines) + 1):
        cut.write_bytes(b"".join(lines[:count]) + (lines[count][:-2] if count < len(lines) else b""))
        tally = predict_files(chain, [inbox], cut, format=format, seed=7, batch_size=3)
        assert [(row["file"], row["frame"], row["label"]) for row in rows_of(cut)] == labels
        assert tally.images == len(labels) - max(count - (format == "csv"), 0)
    assert tally.before == 4


def test_patients_are_told_under_a_key_alone_and_never_by_name(chain, inbox, tmp_path):
    out, key = tmp_path / "v.csv", tmp_path / "key"
    predict_files(chain, [inbox], out, seed=7, key_file=key)
    rows = rows_of(out)
    one = Pseudonyms.from_file(key)
    told = {(row["patient"], row["study"]) for row in rows if "IM" in row["file"]}
    assert told == {(one.of(NAMES[1]), one.of(NAMES[1], "1.2.3"))}
    assert {row["patient"] for row in rows if "IM" not in row["file"]} == {""}
    assert not [name for name in NAMES if name in out.read_text()]
    predict_files(chain, [inbox], tmp_path / "w.csv", seed=7, key_file=key)
    assert (tmp_path / "w.csv").read_bytes() == out.read_bytes()
    (tmp_path / "short").touch(0o600)
    (tmp_path / "short").write_bytes(b"1")
    with pytest.raises(DataError, match="16 to 4096 are wanted"):
        predict_files(chain, [inbox], tmp_path / "x.csv", key_file=tmp_path / "short")
    assert not (tmp_path / "x.csv").exists()


def test_odd_files_are_a_row_each_that_says_why(chain, inbox, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    sound = (inbox / "study" / "IM5").read_bytes()
    (odd / "a-torn").write_bytes(sound[:-100])
    (odd / "b-colour").write_bytes(dicom_bytes(numpy.zeros((8, 8, 3), numpy.uint8), SamplesPerPixel=3))
    (odd / "c-empty.dcm").write_bytes(b"")
    (odd / "d-text.nii").write_bytes(b"no volume")
    (odd / "e-mask").write_bytes(dicom_bytes(anatomy(1), bits=12, BitsAllocated=32))
    (odd / "f-gone").symlink_to(tmp_path / "nowhere")
    names = [str(odd), str(odd / "f-gone"), str(inbox / "notes.txt"), str(inbox / "study" / "IM1")]
    tally = predict_files(chain, names, tmp_path / "v.jsonl", format="jsonl", seed=7, key_file=tmp_path / "key")
    rows = rows_of(tmp_path / "v.jsonl")
    assert (tally.files, tally.failed, tally.images) == (8, 7, 1)
    reasons = [
        "cut off",
        "in colour and grey",
        "empty file",
        "neither DICOM nor",
        "bits of",
        "No such",
        "neither DICOM",
    ]
    for row, reason in zip(rows, reasons, strict=False):
        assert reason in row["error"], row
        assert row["frame"] is row["label"] is None
    assert rows[-1]["error"] is None
    assert rows[0]["patient"] == rows[-1]["patient"], "it says whose it is, though it is torn"
    assert {row["patient"] for row in rows[1:-1]} == {None}
    assert predict_files(chain, names, tmp_path / "v.jsonl", format="jsonl", key_file=tmp_path / "key").read == 0


def test_a_missing_package_holds_up_no_other_file_and_marks_none_as_done(chain, inbox, tmp_path, monkeypatch):
    out = tmp_path / "v.csv"
    with monkeypatch.context() as lacking:
        lacking.setitem(sys.modules, "nibabel", None)
        with pytest.raises(MissingExtraError, match=r"1 files have no row .*volume.nii.gz.*the same call goes on"):
            predict_files(chain, [inbox], out, seed=7)
    assert {row["file"].rpartition("/")[2] for row in rows_of(out)} == {"picture.png", "IM1", "IM5"}
    assert predict_files(chain, [inbox], out, seed=7).images == 4
    assert len(rows_of(out)) == 11


def test_a_file_that_needs_too_much_memory_is_a_row(chain, inbox, tmp_path, monkeypatch):
    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr("medfedpure.data.readers.scans.square_of_shares", too_much)
    tally = predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7)
    assert (tally.failed, tally.images) == (3, 1)
    assert "needs more memory" in rows_of(tmp_path / "v.jsonl")[1]["error"]


def test_a_defence_for_what_no_file_is_read_as_says_so(chain):
    with pytest.raises(ConfigError, match="read as squares, grey or RGB"):
        FileDecoder(ImageFacts((2, 16, 16)))


def test_scans_below_folders_are_found_by_content_and_none_is_passed_over_in_silence(inbox, tmp_path, monkeypatch):
    assert [kind_of(path) for path in files_of([inbox], is_scan)] == ["image", "dicom", "dicom", "nifti"]
    secret = inbox / "study" / "secret"
    secret.write_bytes(b"whatever")
    assert secret not in files_of([inbox], is_scan)
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != secret and allowed(path, mode))
    assert secret in files_of([inbox], is_scan)
    monkeypatch.setattr("os.access", lambda path, mode: path != inbox / "study" and allowed(path, mode))
    with pytest.raises(DataError, match="study cannot be listed: Permission denied"):
        files_of([inbox], is_scan)
