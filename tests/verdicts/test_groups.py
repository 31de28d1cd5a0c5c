"""Verdicts of patients and studies: what is said of several images, in three ways, by hand and from rows of files."""

import hmac

import numpy
import pytest
from PIL import Image
from scans import PLAIN, UID, anatomy, dicom_bytes
from written import DATA, defence, rows_of

from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.verdicts.groups import Grouping
from medfedpure.verdicts.predict import predict_files

NAMES = ("healthy", "other", "lesion")


def row(patient, *probabilities, flagged=False, abstained=False, error=None):
    said = {f"probability_{k}": p for k, p in enumerate(probabilities)}
    label = None if error else max(range(3), key=lambda k: probabilities[k])
    return {"patient": patient, "label": label, "flagged": flagged, "abstained": abstained, "error": error, **said}


ROWS = [
    row("a", 0.5, 0.3, 0.2),
    row("b", 0.1, 0.8, 0.1, flagged=True),
    row("a", 0.6, 0.0, 0.4, flagged=True),
    row("a", 0.3, 0.4, 0.3),
    row("b", 0.0, 0.1, 0.9, abstained=True),
    row("b", 0.3, 0.2, 0.5),
    row("c", 0.1, 0.1, 0.8, flagged=True, abstained=True),
    row(None, 0.9, 0.1, 0.0, flagged=True),
    row(None, error="torn"),
]


def table_of(tmp_path, combine, rows=ROWS, names=NAMES):
    path = tmp_path / "v.patient.csv"
    count = Grouping("patient", combine).write(path, rows, 3, names)
    found = rows_of(path)
    assert count == len({one["patient"] for one in rows} - {None})
    return {one["patient"]: one for one in found}


def said(found):
    return found["class"], [round(float(found[f"probability_{k}"]), 6) for k in range(3)], found["flagged"]


@pytest.mark.parametrize(
    ("combine", "a", "b"),
    [
        ("worst", ("healthy", [0.6, 0.0, 0.4], "True"), ("lesion", [0.3, 0.2, 0.5], "True")),
        ("mean", ("healthy", [0.466667, 0.233333, 0.3], "False"), ("other", [0.2, 0.5, 0.3], "False")),
        ("vote", ("healthy", [0.666667, 0.333333, 0.0], "False"), ("lesion", [0.0, 0.5, 0.5], "False")),
    ],
)
def test_three_ways_by_hand(tmp_path, combine, a, b):
    """An image that abstained would have been the worst of b; it has no say but in what is flagged."""
    found = table_of(tmp_path, combine)
    assert list(found) == ["a", "b", "c", ""]
    assert said(found["a"]) == a
    assert said(found["b"]) == b
    assert {one["combined"] for one in found.values()} == {combine}
    counts = ("images", "flagged_images", "abstained_images", "errors")
    assert [[int(one[name]) for name in counts] for one in found.values()] == [
        [3, 1, 0, 0],
        [3, 1, 1, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 1],
    ]


@pytest.mark.parametrize("combine", ["worst", "mean", "vote"])
def test_who_has_no_verdict_gets_none_and_nobody_as_well(tmp_path, combine):
    found = table_of(tmp_path, combine)
    empty = {"label": "", "class": "", **{f"probability_{k}": "" for k in range(3)}}
    assert {key: found["c"][key] for key in empty} == {key: found[""][key] for key in empty} == empty
    assert (found["c"]["flagged"], found[""]["flagged"]) == ("True", "")


def test_of_whom_no_image_could_be_read_it_is_not_said_that_nothing_was_flagged(tmp_path):
    rows = [row("d", error="torn"), row("a", 0.5, 0.3, 0.2)]
    for combine in ("worst", "mean", "vote"):
        found = table_of(tmp_path, combine, rows)
        assert (found["d"]["flagged"], found["d"]["errors"], found["a"]["flagged"]) == ("", "1", "False")


def test_a_report_is_no_error_of_its_patient(tmp_path):
    rows = [row("d", error="it holds no picture: it is a report, a plan or the like"), row("d", 0.5, 0.3, 0.2)]
    found = table_of(tmp_path, "worst", rows)["d"]
    assert (found["images"], found["errors"], found["no_picture"]) == ("1", "0", "1")


def test_of_no_rows_there_is_a_head_and_without_names_no_class(tmp_path):
    assert table_of(tmp_path, "mean", []) == {}
    assert (tmp_path / "v.patient.csv").read_text().startswith("patient,label,class,probability_0,")
    assert "class" not in table_of(tmp_path, "mean", ROWS, ())["a"]


def test_ways_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="patient, study; got 'ward'"):
        Grouping("ward")
    with pytest.raises(ConfigError, match="worst, mean, vote; got 'best'"):
        Grouping("study", "best")


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def archive(tmp_path):
    """Two patients, of whom one has two studies, and a picture of nobody."""
    pytest.importorskip("pydicom")
    folder = tmp_path / "archive"
    folder.mkdir()
    for place, (patient, study, frames) in enumerate([("A", "1", 3), ("A", "2", 1), ("B", "3", 2)]):
        pixels = numpy.stack([anatomy(10 * place + frame) for frame in range(frames)])
        (folder / f"IM{place}").write_bytes(dicom_bytes(pixels, bits=12, PatientID=patient, StudyInstanceUID=study))
    Image.fromarray(DATA.pixels[0, 0].numpy()).save(folder / "picture.png")
    return folder


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_the_table_is_of_all_rows_whenever_they_were_written(chain, archive, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    out, key = tmp_path / f"v.{format}", tmp_path / "key"
    for grouping in (None, Grouping("patient"), Grouping("study", "mean")):
        inputs = [archive / "IM0"] if grouping is None else [archive]
        predict_files(chain, inputs, out, format=format, seed=7, key_file=key, grouping=grouping)
    patients, studies = rows_of(tmp_path / "v.patient.csv"), rows_of(tmp_path / "v.study.csv")
    assert [int(one["images"]) for one in patients] == [4, 2, 1]
    assert [int(one["images"]) for one in studies] == [3, 1, 2, 1]
    assert (patients[-1]["patient"], studies[-1]["study"], patients[-1]["label"]) == ("", "", "")
    again = predict_files(chain, [archive], out, format=format, seed=7, key_file=key, grouping=Grouping("patient"))
    assert again.read == 0
    assert rows_of(tmp_path / "v.patient.csv") == patients


def test_a_report_in_the_archive_leaves_its_patient_complete(chain, archive, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    report = pydicom.Dataset()
    report.PatientID, report.StudyInstanceUID, report.Modality = "A", "1", "SR"
    report.SOPClassUID, report.SOPInstanceUID = pydicom.uid.BasicTextSRStorage, f"{UID}.9"
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = PLAIN
    report.save_as(archive / "SR1", enforce_file_format=True)
    out, key = tmp_path / "v.jsonl", tmp_path / "key"
    predict_files(chain, [archive], out, format="jsonl", seed=7, key_file=key, grouping=Grouping("patient"))
    found = rows_of(tmp_path / "v.patient.csv")
    assert [(one["images"], one["errors"], one["no_picture"]) for one in found] == [
        ("4", "0", "1"),
        ("2", "0", "0"),
        ("1", "0", "0"),
    ]


def test_a_file_whose_pixels_are_cut_off_is_missed_at_its_patient(chain, archive, tmp_path):
    whole = (archive / "IM1").read_bytes()
    (archive / "IM8").write_bytes(whole[:-9])
    (archive / "IM9").write_bytes(whole[:140])
    out, key = tmp_path / "v.jsonl", tmp_path / "key"
    predict_files(chain, [archive], out, format="jsonl", seed=7, key_file=key, grouping=Grouping("patient"))
    rows = {row["file"].rpartition("/")[2]: row for row in rows_of(out)}
    assert rows["IM8"]["error"]
    assert rows["IM9"]["error"]
    assert (rows["IM8"]["patient"], rows["IM8"]["study"]) == (rows["IM1"]["patient"], rows["IM1"]["study"])
    assert rows["IM9"]["patient"] is None
    assert [int(one["errors"]) for one in rows_of(tmp_path / "v.patient.csv")] == [1, 0, 1]
    predict_files(chain, [archive / "IM8"], tmp_path / "other.jsonl", format="jsonl", seed=7)
    assert rows_of(tmp_path / "other.jsonl")[0]["patient"] is None, "without a key nobody is named"


def test_who_an_image_is_of_is_the_keyed_hash_of_the_number_as_the_file_writes_it(chain, tmp_path):
    """By RFC 2104 and not by the reader: lengths of 8 bytes before each text, 32 digits of HMAC-SHA256."""
    pytest.importorskip("pydicom")
    key = b"a secret of 16 bytes or more"
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "key").chmod(0o600)

    def hashed(*texts):
        told = b"".join(len(text.encode()).to_bytes(8, "big") + text.encode() for text in texts)
        return hmac.new(key, told, "sha256").hexdigest()[:32]

    numbers = {"P-1": "P-1", " P-1 ": "P-1", "p-1": "p-1", "A\\B": "A\\B", "=1+1": "=1+1", "Müller": "Müller"}
    for place, number in enumerate(numbers):
        tags = {"PatientID": number, "StudyInstanceUID": "1.2.3", "SpecificCharacterSet": "ISO_IR 192"}
        (tmp_path / f"IM{place}").write_bytes(dicom_bytes(anatomy(1), bits=12, **tags))
    scans = [tmp_path / f"IM{place}" for place in range(len(numbers))]
    predict_files(chain, scans, tmp_path / "v.jsonl", format="jsonl", key_file=tmp_path / "key")
    found = [(row["patient"], row["study"]) for row in rows_of(tmp_path / "v.jsonl")]
    assert found == [(hashed(text), hashed(text, "1.2.3")) for text in numbers.values()]


def test_without_a_key_nothing_is_begun_and_rows_of_another_key_are_not_continued(chain, archive, tmp_path):
    with pytest.raises(ConfigError, match="need the pseudonyms"):
        predict_files(chain, [archive], tmp_path / "v.csv", grouping=Grouping("patient"))
    assert not (tmp_path / "v.csv").exists()
    predict_files(chain, [archive], tmp_path / "v.csv", made_by="me", key_file=tmp_path / "one")
    for other in ({}, {"key_file": tmp_path / "two"}):
        with pytest.raises(ArtifactError, match="under other settings, me key="):
            predict_files(chain, [archive], tmp_path / "v.csv", made_by="me", **other)
