"""DicomFolder: frames of patients by class, and not one word of who they are."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from scans import UID, anatomy, dicom_bytes, write_dicom_folder

pytest.importorskip("pydicom")

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from medfedpure.core.component import Component
from medfedpure.core.dataset import check_disjoint
from medfedpure.core.errors import ConfigError, DataError, MissingExtraError
from medfedpure.plugins.datasets.dicom_folder import DicomFolder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two classes of three patients, each with two files of 12 bits."""
    return write_dicom_folder(tmp_path_factory.mktemp("dicom") / "scans")


def put(path: Path, seed: int = 0, **tags) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(anatomy(seed), bits=12, **tags))
    return path


def test_a_folder_becomes_a_dataset(root):
    folder = DicomFolder(root=root, image_size=32, window="full")
    data = folder.read()
    assert (data.pixels.shape, data.pixels.dtype) == ((12, 1, 32, 32), torch.uint16)
    assert data.class_names == ("normal", "lesion")
    assert data.labels.tolist() == [1] * 6 + [0] * 6
    first = folder.paths[0]
    assert first.relative_to(root).as_posix() == "lesion/patient0/study0/1"
    assert numpy.array_equal((data.images[0, 0] * 4095).round().numpy(), anatomy(1)), "12 bits survive"
    assert data.num_groups == 6
    assert data.groups.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], "a patient is one, whatever the class"
    assert sorted(data.levels) == ["patient", "study"]
    assert data.name == "scans"
    check_disjoint(data.split({"train": 1, "test": 1}))
    narrow = DicomFolder(root=root, image_size=32, window="full", pixel_bits=8).read()
    assert (narrow.images - data.images).abs().max() <= 0.51 / 255


def test_patients_studies_and_none(tmp_path):
    for place, (patient, study) in enumerate([("A", 1), ("A", 2), ("B", 3), (None, 3), (None, 4), (None, 4)]):
        uid = f"{UID}.{study}"
        put(tmp_path / ("normal", "lesion")[place % 2] / f"{place}.dcm", place, PatientID=patient, StudyInstanceUID=uid)

    def groups(**options) -> dict[str, int]:
        folder = DicomFolder(root=tmp_path, image_size=16, **options)
        data = folder.read()
        return dict(zip((path.stem for path in folder.paths), data.groups.tolist(), strict=True))

    found = groups()
    assert found["0"] == found["1"]
    assert found["4"] == found["5"]
    assert len(set(found.values())) == 4, "without a patient's number a study is one"
    assert len(set(groups(groups="study").values())) == 5
    assert len(set(groups(groups="none").values())) == 6
    assert sorted(DicomFolder(root=tmp_path, image_size=16, groups="study").read().levels) == ["study"]


def test_a_file_that_names_nobody_is_alone_and_told(root, tmp_path, caplog):
    for place in range(4):
        put(tmp_path / ("normal", "lesion")[place % 2] / f"{place}.dcm", place)
    with caplog.at_level(logging.WARNING):
        data = DicomFolder(root=tmp_path, image_size=16).read()
    assert data.num_groups == 4
    assert "4 files have neither PatientID nor StudyInstanceUID, each is alone: lesion/1.dcm" in caplog.text


def test_under_a_key_a_patient_is_the_same_in_every_reading(root, tmp_path):
    key = tmp_path / "key"
    whole = DicomFolder(root=root, image_size=16, key_file=key)
    one = whole.read()
    part = tmp_path / "part"
    for kind in ("normal", "lesion"):
        (part / kind).mkdir(parents=True)
        (part / kind / "x").write_bytes((root / "lesion" / "patient3" / "study3" / "7").read_bytes())
    again = DicomFolder(root=part, image_size=16, key_file=key).read()
    place = [path.parts[-3] for path in whole.paths].index("patient3")
    assert again.groups.tolist() == [int(one.groups[place])] * 2
    assert torch.equal(again.levels["study"], one.levels["study"][[place, place]])
    with pytest.raises(DataError, match=r"group .* stands in both"):
        check_disjoint({"train": one, "test": again})
    other = DicomFolder(root=root, image_size=16, key_file=tmp_path / "other").read()
    assert not set(other.groups.tolist()) & set(one.groups.tolist())
    assert "key" not in DicomFolder(root=root, image_size=16).config.model_dump(exclude_none=True)


def test_every_frame_is_an_image_and_reports_are_passed_over(tmp_path, caplog):
    frames = numpy.stack([anatomy(place) for place in range(3)])
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / "film").write_bytes(dicom_bytes(frames, bits=12, PatientID="A"))
    put(tmp_path / "lesion" / "IMAGES" / "one.dcm", 9, PatientID="B")
    report = dicom_bytes(anatomy(0), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=None, PatientID="A")
    (tmp_path / "lesion" / "report.dcm").write_bytes(report[: report.index(b"\xe0\x7f\x10\0")])
    (tmp_path / "lesion" / "DICOMDIR").write_bytes(dicom_bytes(anatomy(0)))
    (tmp_path / "lesion" / "notes.txt").write_text("notes")
    folder = DicomFolder(root=tmp_path, image_size=32, window="full")
    with caplog.at_level(logging.WARNING):
        data = folder.read()
    assert [path.name for path in folder.paths] == ["one.dcm", "film", "film", "film"]
    assert data.groups.tolist() == [0, 1, 1, 1]
    assert numpy.array_equal((data.images[1:, 0] * 4095).round().numpy(), frames)
    assert "passed over 1 DICOM files without pictures, such as reports: lesion/report.dcm" in caplog.text
    assert folder.skipped == ()


def test_damaged_files_are_named_or_skipped(root, tmp_path, caplog):
    for place in range(4):
        put(tmp_path / ("normal", "lesion")[place % 2] / f"{place}.dcm", place, PatientID="A")
    whole = (tmp_path / "normal" / "0.dcm").read_bytes()
    (tmp_path / "normal" / "cut.dcm").write_bytes(whole[:-300])
    (tmp_path / "lesion" / "text.dcm").write_text("of a patient")
    with pytest.raises(DataError) as caught:
        DicomFolder(root=tmp_path, image_size=16).read()
    text = str(caught.value)
    assert text.startswith("2 of 6 files")
    assert "lesion/text.dcm (it is no DICOM file" in text
    assert "normal/cut.dcm (its " in text
    folder = DicomFolder(root=tmp_path, image_size=16, on_error="skip")
    assert len(folder.read()) == 4
    assert [path.name for path in folder.skipped] == ["text.dcm", "cut.dcm"]
    assert "skipped 2 files" in caplog.text


def test_a_missing_package_ends_a_reading_that_skips(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"medfedpure\[medical\]"):
        DicomFolder(root=root, image_size=16, on_error="skip").read()


@pytest.mark.parametrize(
    "options", [{"window": (5, 5)}, {"window": (9, 1)}, {"percentiles": (-1, 50)}, {"percentiles": (50, 101)}]
)
def test_wrong_configurations(options):
    with pytest.raises(ConfigError, match="must be two numbers"):
        DicomFolder(root="x", image_size=16, **options)


def test_folders_that_hold_none_are_explained(tmp_path):
    for kind in ("normal", "lesion"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").touch()
    with pytest.raises(DataError, match=r"holds no DICOM file, only other files such as a\.png"):
        DicomFolder(root=tmp_path, image_size=16).read()


# Who they are: planted, and searched for in all that comes out

PLANTED = "QZXJOHN"
IDENTIFYING = [
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "OtherPatientIDs"),
    *("OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers"),
    *("EthnicGroup", "Occupation", "AdditionalPatientHistory", "PatientComments", "MedicalRecordLocator", "PatientAge"),
    *("MilitaryRank", "BranchOfService", "PatientReligiousPreference", "CountryOfResidence", "RegionOfResidence"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "SeriesDate", "AcquisitionDate", "ContentDate"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "StudyDescription"),
    *("SeriesDescription", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName"),
    *("ReferringPhysicianName", "ReferringPhysicianAddress", "PerformingPhysicianName", "OperatorsName"),
    *("NameOfPhysiciansReadingStudy", "RequestingPhysician", "PhysiciansOfRecord", "AdmissionID", "ProtocolName"),
    *(
        "RequestAttributesSequence",
        "OtherPatientIDsSequence",
        "ImageComments",
        "DeviceSerialNumber",
        "DerivationDescription",
    ),
    *(
        "CurrentPatientLocation",
        "PatientInstitutionResidence",
        "VisitComments",
        "ReasonForStudy",
        "RequestedProcedureID",
    ),
]


def planted(seed: int, **tags) -> bytes:
    """A file with a planted value in every identifying tag, in a private one, in a sequence and in its head."""
    told = {}
    for name in IDENTIFYING:
        kind = dictionary_VR(tag_for_keyword(name))
        inner = Dataset()
        inner.PatientID = PLANTED
        # A UID of letters and a date that is none are wrong, and pydicom says so, quoting them.
        told[name] = [inner] if kind == "SQ" else f"{PLANTED}^{name}"
    content = dicom_bytes(anatomy(seed), bits=12, **{**told, "PatientID": f"{PLANTED}-{seed // 2}", **tags})
    return PLANTED.encode().ljust(128, b"\0") + content[128:]


@pytest.fixture
def secret(tmp_path) -> Path:
    """Two classes of two patients, every identifying tag of whom is planted, and files that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in range(4):
            path = tmp_path / "scans" / ("normal", "lesion")[place % 2] / f"{place}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(planted(place))
    return tmp_path / "scans"


def damaged() -> dict[str, bytes]:
    """Files whose damage makes pydicom speak of what it found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = planted(7)
        return {
            "cut": whole[:-200],
            "short": whole[: whole.index(b"\x28\0\x10\0")],
            "photometric": planted(7, PhotometricInterpretation=PLANTED),
            "window": planted(7).replace(b"\x28\0\x02\0US", b"\x28\0\x02\0LO"),
            "syntax": whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.QZXJOHN.1.2\0"),
            "rows": whole.replace(b"\x28\0\x10\0US\2\0", b"\x28\0\x10\0LO\2\0"),
            "text": PLANTED.encode() * 100,
        }


def test_no_output_holds_a_planted_word(secret, tmp_path, caplog, capfd):
    heard: list[str] = []
    out, bad = tmp_path / "out", damaged()
    caplog.clear()  # of what writing such files says
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        folder = DicomFolder(root=secret, image_size=16, key_file=tmp_path / "key")
        data = folder.read()
        heard += [repr(data), str(data.columns()), repr(folder), repr(folder.config), data.fingerprint()]
        heard += [str(data.levels), str(data.attributes), str(vars(folder))]
        heard.append(pickle.dumps(data).decode("latin-1"))
        folder.save(out / "component")
        data.to_csv(out / "table.csv")
        for name, content in bad.items():
            (secret / "lesion" / f"{name}.dcm").write_bytes(content)
            try:
                DicomFolder(root=secret, image_size=16).read()
            except DataError as error:
                heard += [str(error), repr(error), str(error.__cause__), str(error.__context__)]
            else:
                pytest.fail(f"{name} was read")
            skipping = DicomFolder(root=secret, image_size=16, on_error="skip")
            heard.append(repr(skipping.read()))
            (secret / "lesion" / f"{name}.dcm").unlink()
    heard += [str(one.message) for one in caught]
    heard += [caplog.text, *capfd.readouterr()]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and secret not in path.parents]
    assert {"key", "table.csv"} <= {path.name for path in written}
    heard += [path.read_bytes().decode("latin-1") for path in written]
    assert data.num_groups == 2
    assert len(heard) > 30
    for text in heard:
        assert PLANTED not in text
        assert PLANTED.lower() not in text.lower()


def test_the_planted_words_would_be_found(secret):
    """The search above is of files that do hold them, in as many tags as are listed."""
    for path in secret.rglob("*.dcm"):
        assert path.read_bytes().count(PLANTED.encode()) > len(IDENTIFYING)


def test_a_saved_configuration_names_the_key_and_does_not_hold_it(root, tmp_path):
    folder = DicomFolder(root=root, image_size=16, key_file=tmp_path / "key")
    folder.read()
    folder.save(tmp_path / "saved")
    text = "".join(path.read_text() for path in (tmp_path / "saved").rglob("*.json"))
    assert json.dumps(str(tmp_path / "key")) in text
    secret = (tmp_path / "key").read_bytes()
    assert secret.hex() not in text
    assert Component.load(tmp_path / "saved").read().fingerprint() == folder.read().fingerprint()


def test_an_archive_with_folders_of_other_names_is_read_by_links(tmp_path):
    root = write_dicom_folder(tmp_path / "scans")
    (root / "normal").rename(root / "ohne Befund")
    (root / "lesion").rename(root / "Läsion rechts")
    with pytest.raises(DataError) as told:
        DicomFolder(root=root, image_size=16).read()
    first, last = '"Läsion rechts"', '"ohne Befund"'
    assert f"pass positive={first} or positive={last}, or" in str(told.value), "neither is suggested alone"
    links = tmp_path / "by-class"
    (links / "lesion").mkdir(parents=True)
    (links / "normal").symlink_to(root / "ohne Befund")
    (links / "lesion" / "right").symlink_to(root / "Läsion rechts")
    direct = DicomFolder(root=root, image_size=16, classes=("ohne Befund", "Läsion rechts")).read()
    linked = DicomFolder(root=links, image_size=16, classes=("normal", "lesion")).read()
    assert (linked.class_names, linked.num_groups) == (("normal", "lesion"), direct.num_groups)
    assert linked.labels.bincount().tolist() == direct.labels.bincount().tolist()


def test_files_with_one_fault_are_told_with_it_once(tmp_path):
    root = write_dicom_folder(tmp_path / "scans")
    for place in range(5):
        (root / "normal" / f"cut{place}.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(DataError) as told:
        DicomFolder(root=root, image_size=16).read()
    text = str(told.value)
    assert "5 of " in text
    files = ", ".join(f"normal/cut{place}.dcm" for place in range(5))
    assert f"cannot be read: {files} (" in text
