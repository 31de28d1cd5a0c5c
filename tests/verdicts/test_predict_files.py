"""Verdicts on files: a row for each, the same as `predict` says, whatever is broken and whenever it was ended."""

import pytest
import torch
from PIL import Image
from written import DATA, defence, rows_of

import medfedpure
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.testing import tiny_classifier
from medfedpure.verdicts.files import files_of, name_of
from medfedpure.verdicts.formats import kept_as
from medfedpure.verdicts.predict import columns_for, predict_files


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def inbox(tmp_path):
    """Twelve scans in two folders, a broken one, notes, and what a system left behind."""
    for place, pixels in enumerate(DATA.pixels[:12]):
        path = tmp_path / "inbox" / ("a" if place % 2 else "b/c") / f"scan{place:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(path)
    (tmp_path / "inbox" / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    (tmp_path / "inbox" / "notes.txt").write_text("not a scan")
    (tmp_path / "inbox" / ".DS_Store").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "inbox"


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_row_each_as_predict_says(chain, inbox, tmp_path, batch_size):
    tally = predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7, batch_size=batch_size)
    rows = rows_of(tmp_path / "v.jsonl")
    assert (tally.files, tally.read, tally.failed, tally.before) == (13, 13, 1, 0)
    assert [row["file"] for row in rows] == [str(path) for path in sorted(inbox.rglob("*.png"))]
    sound = [row for row in rows if row["error"] is None]
    assert len(sound) == 12
    assert tally.flagged == sum(row["flagged"] for row in sound) > 0
    places = [int(row["file"][-6:-4]) for row in sound]
    alone = [chain.predict(DATA.select(torch.tensor([place])).images, seed=7) for place in places]
    bare = [float(found.bare_logits.softmax(1)[0, 0]) for found in alone]
    unpurified = [place for place, row in enumerate(sound) if not row["purified"]]
    said = [sound[place]["probability_0"] for place in unpurified]
    assert said == pytest.approx([bare[place] for place in unpurified], abs=1e-6)
    assert [row["score"] for row in sound] == pytest.approx([float(found.scores) for found in alone], abs=1e-6)
    (broken,) = (row for row in rows if row["error"])
    assert broken["file"].endswith("broken.png")
    assert broken["label"] is broken["flagged"] is None


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_ended_anywhere_it_goes_on_and_says_the_same(chain, inbox, tmp_path, format):
    whole, cut = tmp_path / f"whole.{format}", tmp_path / f"cut.{format}"
    predict_files(chain, [inbox], whole, format=format, made_by="me", seed=7, batch_size=4)
    content = whole.read_bytes()
    for length in (0, 3, len(content) // 3, len(content) - 1, len(content)):
        cut.write_bytes(content[:length])
        tally = predict_files(chain, [inbox], cut, format=format, made_by="me", seed=7, batch_size=3)
        assert tally.before + tally.read == 13
        again = rows_of(cut)
        assert [row["file"] for row in again] == [row["file"] for row in rows_of(whole)]
        assert [row["label"] for row in again] == [row["label"] for row in rows_of(whole)]
    assert tally.read == 0
    assert cut.read_bytes() == content


def test_new_files_are_added_and_old_ones_left(chain, inbox, tmp_path):
    out = tmp_path / "v.csv"
    predict_files(chain, [inbox / "a"], out, made_by="me", seed=7)
    before = out.read_bytes()
    tally = predict_files(chain, [inbox, inbox / "a"], out, made_by="me", seed=7)
    assert out.read_bytes().startswith(before)
    assert (tally.files, tally.before, tally.read) == (13, 7, 6)
    names = [row["file"] for row in rows_of(out)]
    assert len(set(names)) == len(names) == 13


def test_verdicts_of_another_defence_or_other_content_are_left_alone(chain, inbox, tmp_path):
    out = tmp_path / "v.csv"
    predict_files(chain, [inbox], out, made_by="one", seed=7)
    content = out.read_bytes()
    with pytest.raises(ArtifactError, match="verdicts of another defence, one, and this one is two"):
        predict_files(chain, [inbox], out, made_by="two", seed=7)
    with pytest.raises(ArtifactError, match="no row of it"):
        predict_files(chain, [inbox], out, format="jsonl", made_by="one", seed=7)
    assert out.read_bytes() == content
    for format in ("csv", "jsonl"):
        for mine in ("a,b\n1,2\n", "a,b", "{}", "no end"):
            (tmp_path / "mine").write_text(mine)
            with pytest.raises(ArtifactError, match=r"other columns|something else|no row of it"):
                predict_files(chain, [inbox], tmp_path / "mine", format=format, made_by="one")
            assert (tmp_path / "mine").read_text() == mine


def test_names_are_one_line_no_formula_and_their_own(tmp_path, monkeypatch, chain):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "a\nb.png", "a\\nb.png", "-x.png", 'quote",.png']
    for name in names:
        Image.new("L", (16, 16), 80).save(tmp_path / name, format="PNG")
    for _ in range(2):
        predict_files(chain, names, "v.csv", seed=7)
    rows = rows_of(tmp_path / "v.csv")
    assert len(rows) == len({row["file"] for row in rows}) == len(names)
    assert not [row for row in rows if row["file"][0] in "=-'" or "\n" in row["file"]]
    assert len({name_of(path) for path in files_of(names, bool)}) == len(names)


def test_inputs_that_lead_nowhere_are_said_before_anything_is_read(chain, inbox, tmp_path):
    (tmp_path / "empty").mkdir()
    nowhere = {tmp_path / "gone.png": "no such file", tmp_path / "empty": "holds no scan", "*.dcm": "no such"}
    for wrong, why in nowhere.items():
        with pytest.raises(ConfigError, match=why):
            predict_files(chain, [inbox, wrong], tmp_path / "v.csv")
    assert not (tmp_path / "v.csv").exists()
    assert len(files_of([str(inbox / "**" / "*.png")], bool)) == 13
    alone = medfedpure.DefendedClassifier(tiny_classifier(16, 1), policy="none")
    with pytest.raises(ConfigError, match="does not say what images it is for"):
        predict_files(alone, [inbox], tmp_path / "v.csv")


def test_a_file_is_read_once_however_often_it_is_named(inbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "in").symlink_to(inbox)
    names = ["inbox", "inbox/", "./inbox/../inbox", str(inbox), "inbox/**/*.png", "other", "inbox/a/scan01.png"]
    found = files_of(names, lambda path: path.suffix == ".png")
    assert [str(path) for path in found] == [str(path.relative_to(tmp_path)) for path in sorted(inbox.rglob("*.png"))]
    (tmp_path / "inbox" / "a" / "again.png").symlink_to("scan01.png")
    assert len(files_of(["inbox"], lambda path: path.suffix == ".png")) == len(found) + 1, "a link is a file of its own"


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_classes_and_defences_named_like_formulas_are_read_back_as_they_are(chain, tmp_path, format):
    columns = columns_for(chain)
    written = [{"file": name, "frame": 0, "frames": 1, "class": "-"} for name in ("'=a.png", "b.png")]
    for last in ("'=a.png", "b.png"):
        with kept_as(format, tmp_path / "v", columns, "+me") as kept:
            kept.write([row for row in written if row["file"] == last])
    with kept_as(format, tmp_path / "v", columns, "+me") as kept:
        assert kept.done == {"'=a.png", "b.png"}
        assert [(row["class"], row["defence"]) for row in kept.rows()] == [("-", "+me")] * 2
    assert ("'-" in (tmp_path / "v").read_text()) is (format == "csv"), "no spreadsheet runs it"
