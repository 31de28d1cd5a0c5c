"""`medfedpure pseudonyms`: whose a row is, for those who have the list of patients and the key."""

from __future__ import annotations

import csv

import pytest
from scans import anatomy, dicom_bytes, write_dicom_folder
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.errors import DataError
from medfedpure.data.readers.dicom import whose
from medfedpure.data.readers.pseudonyms import Pseudonyms


def ask(*words, text=""):
    """What the command prints; what it raises goes up."""
    done = CliRunner().invoke(app, ["pseudonyms", *map(str, words)], input=text)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_pseudonyms_of_a_list_are_those_of_the_files_under_the_key(end, tmp_path):
    archive, key = write_dicom_folder(tmp_path / "archive", patients=3), tmp_path / "patients.key"
    names = Pseudonyms.from_file(key)
    rows = {whose(path, names)[0] for path in archive.rglob("*") if path.is_file()}
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"\ufeffP000{end} P001 {end}{end}P002{end}P000{end}".encode())
    found = list(csv.DictReader(ask(listed, "--key-file", key).output.splitlines()))
    assert [row["PatientID"] for row in found] == ["P000", "P001", "P002"], "each once, without blanks around it"
    assert {row["patient"] for row in found} == rows
    assert ask("-", "--key-file", key, text="P001\n").output.splitlines() == [
        "patient,PatientID",
        f"{found[1]['patient']},P001",
    ]


def test_a_patient_of_letters_beyond_ascii_is_found(tmp_path):
    key, scan = tmp_path / "patients.key", tmp_path / "scan"
    scan.write_bytes(dicom_bytes(anatomy(0), bits=12, PatientID="Müller 1", SpecificCharacterSet="ISO_IR 192"))
    name = whose(scan, Pseudonyms.from_file(key))[0]
    assert f"{name},Müller 1" in ask("-", "--key-file", key, text="Müller 1\n").output


def test_no_key_is_made_and_no_list_is_guessed(tmp_path):
    key = tmp_path / "patients.key"
    with pytest.raises(DataError, match=r"there is no key .* give the right one"):
        ask("-", "--key-file", key, text="P001\n")
    assert not key.exists(), "under a new key nobody would be found"
    Pseudonyms.from_file(key)
    with pytest.raises(DataError, match="is empty: a PatientID on each line"):
        ask("-", "--key-file", key, text=" \n\n")
    bad = tmp_path / "list"
    bad.write_bytes(b"M\xfcller")
    with pytest.raises(DataError, match="list is no text in UTF-8"):
        ask(bad, "--key-file", key)
