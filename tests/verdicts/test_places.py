"""What `predict` writes and where: never over a scan, over something else of its own, or over what others left."""

import os

import pytest
from PIL import Image
from scans import anatomy, dicom_bytes
from written import DATA, defence, rows_of

from medfedpure.core.errors import ArtifactError, ConfigError, DataError
from medfedpure.core.storage import locked
from medfedpure.data.readers.derived import dicom as derived
from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.reporting.verdicts.page import VerdictsPage
from medfedpure.verdicts.decoding import Shown
from medfedpure.verdicts.formats import format_of
from medfedpure.verdicts.groups import Grouping
from medfedpure.verdicts.places import check_apart
from medfedpure.verdicts.predict import predict_files
from medfedpure.verdicts.purified import Purified


@pytest.fixture(scope="module")
def chain():
    return defence(policy="purify_all")


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    for place in range(2):
        Image.fromarray(DATA.pixels[place, 0].numpy()).save(folder / f"{place}.png")
    return folder


def test_scans_that_lie_where_the_call_writes_are_not_passed_over_without_a_word(chain, inbox, tmp_path):
    with pytest.raises(ConfigError, match=r"all scans that were named lie where this call writes, as .*0\.png"):
        predict_files(chain, [inbox], tmp_path / "v.csv", maps=inbox)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.png", "1.png", "inbox"]


def test_two_things_are_not_written_in_one_place_or_among_one_another(chain, inbox, tmp_path):
    maps, link = tmp_path / "maps", tmp_path / "link"
    link.symlink_to(maps, target_is_directory=True)
    for folders, others, told in (
        ([maps, link], [], "two things"),
        ([maps], [maps], "two things"),
        ([], [tmp_path / "v.csv", tmp_path / "x" / ".." / "v.csv"], "two things"),
        ([maps, maps / "below"], [], "holds nothing else"),
        ([maps], [link / "report.html"], "holds nothing else"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_apart(folders, others)
    check_apart([maps, tmp_path / "maps2", None], [tmp_path / "v.csv", None])
    for key in ("v.csv", "v.study.csv"):
        with pytest.raises(ConfigError, match="two things"):
            predict_files(chain, [inbox], tmp_path / "v.csv", key_file=tmp_path / key, grouping=Grouping("study"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inbox", "link"]
    with pytest.raises(ConfigError, match="holds nothing else"):
        predict_files(chain, [inbox], tmp_path / "v", format="parquet", maps=tmp_path / "v" / "maps")


def test_maps_and_purified_images_do_not_mix_with_what_others_left(chain, inbox, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"something else than maps, such as letter\.txt"):
        predict_files(chain, [inbox], tmp_path / "v.csv", maps=other)
    with pytest.raises(ArtifactError, match=r"something else than purified images, such as letter\.txt"):
        Purified(other, chain)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_two_calls_do_not_write_one_folder_at_the_same_time(chain, inbox, tmp_path):
    with locked(tmp_path / "p", "another call"), pytest.raises(ArtifactError, match="another call"):
        predict_files(chain, [inbox], tmp_path / "v.csv", also=[Purified(tmp_path / "p", chain)])
    assert predict_files(chain, [inbox], tmp_path / "v.csv", also=[Purified(tmp_path / "p", chain)]).images == 2


def test_a_page_of_something_else_is_not_written_over_and_its_own_is(chain, tmp_path):
    pytest.importorskip("jinja2")
    row = {"file": "a", "error": "empty file", "defence": "me"}
    page = VerdictsPage(tmp_path, chain)
    page.write([row])
    VerdictsPage(tmp_path, chain).write([row])
    (tmp_path / "report.html").write_text("<title>Evaluation</title>")
    with pytest.raises(ArtifactError, match="another page than one of verdicts"):
        VerdictsPage(tmp_path, chain)
    assert (tmp_path / "report.html").read_text() == "<title>Evaluation</title>"


def test_rows_into_a_pipe_are_refused_before_anything_is_read(chain, inbox, tmp_path):
    os.mkfifo(tmp_path / "v.csv")
    with pytest.raises(ArtifactError, match=r"v\.csv is a named pipe: rows are continued, and a file is wanted"):
        predict_files(chain, [inbox], tmp_path / "v.csv")


def test_a_source_that_goes_between_its_verdict_and_its_purified_file_ends_a_call_that_goes_on(chain, inbox, tmp_path):
    class Mover:
        """Takes the first file away as soon as it was judged."""

        path = tmp_path / "moved"

        def judged(self, batch, found, rows):
            (inbox / "0.png").unlink(missing_ok=True)

    keep, out = Purified(tmp_path / "p", chain), tmp_path / "v.csv"
    with pytest.raises(DataError, match=r"0\.png: it cannot be read any more .*the same call goes on without it"):
        predict_files(chain, [inbox], out, also=[Mover(), keep])
    assert predict_files(chain, [inbox], out, also=[keep]).images == 1
    assert [row["file"] for row in rows_of(out)] == [str(inbox / "1.png")]


def test_a_picture_that_is_not_there_any_more_says_so_without_its_name_as_other_scans_do(chain, inbox, tmp_path):
    for name in ("gone.png", "gone.dcm", "gone.nii"):
        (inbox / name).symlink_to("nowhere")
    predict_files(chain, [inbox], tmp_path / "v.csv")
    errors = {row["error"] for row in rows_of(tmp_path / "v.csv") if row["error"]}
    assert errors == {"it cannot be read: No such file or directory"}


def test_an_input_without_a_name_is_not_the_current_folder(chain, inbox, tmp_path, monkeypatch):
    monkeypatch.chdir(inbox)
    with pytest.raises(ConfigError, match="an input without a name"):
        predict_files(chain, [""], tmp_path / "v.csv")


def test_an_ending_in_capitals_says_what_it_says_in_small_letters(tmp_path):
    assert [format_of(tmp_path / f"v.{end}") for end in ("JSONL", "Parquet", "CSV")] == ["jsonl", "parquet", "csv"]
    assert Grouping("patient").place(tmp_path / "v.JSONL") == tmp_path / "v.patient.csv"


@pytest.mark.parametrize("window", ["0,inf", "-inf,0", "nan,1", "0,nan"])
def test_a_window_without_an_end_is_refused(window):
    with pytest.raises(ConfigError, match="a window is"):
        Shown.parse(window, "axial")


def test_a_file_that_no_reader_foresaw_is_a_row_and_ends_nothing(chain, inbox, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    hostile = dicom_bytes(anatomy(1))
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(hostile))
    tag = pydicom.datadict.tag_for_keyword("PerFrameFunctionalGroupsSequence")
    data.add(pydicom.dataelem.DataElement(tag, "LO", "DOE^JOHN", already_converted=True))  # text, and a sequence is due
    data.save_as(inbox / "2.dcm", enforce_file_format=True)
    tally = predict_files(chain, [inbox], tmp_path / "v.csv")
    assert (tally.images, tally.failed) == (2, 1)
    (error,) = [row["error"] for row in rows_of(tmp_path / "v.csv") if row["error"]]
    assert "AttributeError" in error or "groups" in error
    assert "DOE" not in error


def test_the_header_of_many_frames_is_read_once(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    source = tmp_path / "many.dcm"
    source.write_bytes(dicom_bytes(DATA.pixels[:5, 0].numpy()))
    read, calls = pydicom.dcmread, []
    monkeypatch.setattr(pydicom, "dcmread", lambda *words, **named: (calls.append(1), read(*words, **named))[1])
    maker = Maker("told", "1", "one", Pseudonyms(bytes(32)))

    def derive(place):
        return derived.derived_dicom(source, place, DATA.images[0], False, maker)

    for place in range(5):
        derive(place)
    assert len(calls) == 1
    source.write_bytes(dicom_bytes(DATA.pixels[:6, 0].numpy()))  # another file under the same name
    derive(0)
    assert len(calls) == 2
