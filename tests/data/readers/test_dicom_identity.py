"""DICOM files: whose they are stays unknown."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy
import pytest
from scans import UID, dicom_bytes

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("openjpeg")
pytest.importorskip("jpeg_ls")


from medfedpure.core.errors import DataError  # noqa: E402
from medfedpure.data.readers.dicom import read_dicom  # noqa: E402
from medfedpure.data.readers.pseudonyms import Pseudonyms  # noqa: E402

RAMP = numpy.arange(4096, dtype=numpy.uint16).reshape(64, 64)


# Who it is


def test_patients_and_studies_are_pseudonyms_under_a_key():
    def who(
        key: bytes | None, patient: str | None = "P1", study: str | None = f"{UID}.7"
    ) -> tuple[str | None, str | None]:
        scan = read_dicom(dicom_bytes(RAMP, PatientID=patient, StudyInstanceUID=study), pseudonyms=Pseudonyms(key))
        return scan.header.patient, scan.header.study

    key = bytes(range(32))
    assert who(key) == who(key)
    assert who(key) != who(bytes(32))
    assert who(None) != who(None), "a fresh key each time"
    assert who(key)[0] == who(key, study=f"{UID}.8")[0]
    assert who(key, patient=" P1 ") == who(key), "padding does not part a patient"
    assert who(key)[1] != who(key, patient="P2")[1], "a study lies within its patient"
    assert who(key, patient=None)[0] is None
    assert who(key, patient=None, study=None) == (None, None)
    assert "P1" not in str(who(key))


def test_keys_lie_in_files_of_their_owner(tmp_path):
    path = tmp_path / "key"
    one, two = Pseudonyms.from_file(path), Pseudonyms.from_file(path)
    assert one.of("P1") == two.of("P1")
    assert path.stat().st_mode & 0o077 == 0
    assert len(path.read_bytes()) == 32
    path.write_bytes(b"short")
    with pytest.raises(DataError, match="holds 5 bytes; 16 to 4096"):
        Pseudonyms.from_file(path)
    with pytest.raises(DataError, match="is a folder"):
        Pseudonyms.from_file(tmp_path)
    with pytest.raises(DataError, match="at least 16 bytes is wanted; got 3"):
        Pseudonyms(b"abc")
    assert Pseudonyms(b"k" * 16).of("a", "bc") != Pseudonyms(b"k" * 16).of("ab", "c")


def test_a_scan_keeps_neither_the_file_nor_its_identifiers():
    content = dicom_bytes(RAMP, PatientID="PLANTED", StudyInstanceUID=f"{UID}.4242", PatientName="PLANTED^NAME")
    header = read_dicom(content).header
    assert "PatientID" not in header.dataset
    assert "PLANTED" not in str(header.dataset)
    assert "4242" not in str(header.dataset)
    assert "MediaStorageSOPInstanceUID" not in header.dataset.file_meta
    assert not hasattr(header.dataset, "buffer")


def test_pydicoms_warnings_are_not_heard_and_the_filters_come_back(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = dicom_bytes(RAMP, PatientID="P" * 80, StudyInstanceUID="PLANTED")
    caplog.clear()
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        path = Path(tmp_path / "a.dcm")
        path.write_bytes(content)
        list(read_dicom(path).images())
    assert [str(one.message) for one in heard] == []
    assert caplog.text == ""
    assert list(warnings.filters) == before
