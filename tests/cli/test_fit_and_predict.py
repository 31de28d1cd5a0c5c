"""From a classifier and benign scans to verdicts in a file, by commands alone."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from types import SimpleNamespace

import pytest
from PIL import Image
from scans import write_dicom_folder
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli.app import app
from medfedpure.cli.bars import Bars, Rate
from medfedpure.cli.predict import FLAGGED
from medfedpure.cli.shown import Terminal
from medfedpure.core.errors import ArtifactError, CalibrationError, ConfigError, DataError
from medfedpure.core.progress import listening, track
from medfedpure.core.storage import locked, read_document_only
from medfedpure.testing import tiny_dataset

CHEAP = ["--detector", "feature_squeezing", "--purifier", "median", "--target-fpr", "0.1", "--threads", "1", "--quiet"]
NAMED = {"classes": ["normal", "lesion"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved classifier, benign scans of two classes, and a defence that was fitted on them."""
    folder = tmp_path_factory.mktemp("hospital")
    data = tiny_dataset(90, size=16)
    for number, (pixels, label) in enumerate(zip(data.pixels, data.labels.tolist(), strict=True)):
        path = folder / "scans" / NAMED["classes"][label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(path)
    options = {"in_channels": 1, "num_classes": 2, "image_size": 16, "class_names": ("normal", "lesion"), "seed": 0}
    medfedpure.create("classifier", "small_cnn", widths=(8,)).create_model(**options).save(folder / "model")
    done = run("fit", folder / "model", folder / "scans", "--out", folder / "guarded", *CHEAP)
    assert done.exit_code == 0, done.output
    return folder


def run(*words, catch=True):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=catch)


def test_fit_saves_a_defence_with_its_own_check(place):
    chain = medfedpure.DefendedClassifier.load(place / "guarded")
    assert chain.policy == "purify_flagged"
    assert chain.own_check is not None
    assert chain.image_facts.class_names == ("normal", "lesion")
    assert chain.calibration.target_fpr == 0.1


def test_fit_lets_purifications_vote(place, tmp_path):
    words = ["--out", tmp_path / "voting", "--votes", "3", *CHEAP]
    with pytest.raises(ConfigError, match="3 draws of the purifier 'median' are all the same"):
        run("fit", place / "model", place / "scans", *words, catch=False)
    words[words.index("median")] = "smoothing"
    run("fit", place / "model", place / "scans", *words, catch=False)
    assert medfedpure.DefendedClassifier.load(tmp_path / "voting").vote.draws == 3


def test_fit_refuses_what_cannot_end_well_before_it_trains(place, tmp_path):
    with pytest.raises(ConfigError, match="never written over"):
        run("fit", place / "model", place / "scans", "--out", place / "guarded", *CHEAP, catch=False)
    with pytest.raises(ConfigError, match="is no folder"):
        run("fit", tmp_path / "gone", place / "scans", "--out", tmp_path / "new", *CHEAP, catch=False)
    (tmp_path / "scans" / "other").mkdir(parents=True)
    (tmp_path / "scans" / "others").mkdir()
    with pytest.raises(DataError, match="trained for normal, lesion"):
        run("fit", place / "model", tmp_path / "scans", "--out", tmp_path / "new", *CHEAP, catch=False)
    assert not (tmp_path / "new").exists()


def test_calibrate_moves_the_threshold_and_nothing_else(place, tmp_path):
    words = ["--out", tmp_path / "other", "--target-fpr", "0.3", "--threads", "1", "--json"]
    done = run("calibrate", place / "guarded", place / "scans", *words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    before, after = (medfedpure.DefendedClassifier.load(path) for path in (place / "guarded", tmp_path / "other"))
    assert after.calibration.threshold() == told["threshold"] < told["before"] == before.calibration.threshold()
    assert len(after.calibration) == told["groups"] <= told["images"] == 90
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    assert all(bool((old[key] == new[key]).all()) for key in old)


def test_calibrate_says_how_many_of_the_images_the_old_threshold_flags(place, tmp_path):
    before = medfedpure.DefendedClassifier.load(place / "guarded")
    words = ["--target-fpr", "0.3", "--threads", "1", "--quiet"]
    done = run("calibrate", place / "guarded", place / "scans", "--out", tmp_path / "other", *words)
    after = medfedpure.DefendedClassifier.load(tmp_path / "other")
    flagged = int((before.calibration.p_values(after.calibration.scores) <= 0.1).sum())
    assert 0 < flagged < len(after.calibration)
    assert f"and would flag {flagged} of them; saved to" in done.output
    again = run("calibrate", place / "guarded", place / "scans", "--out", tmp_path / "third", *words, "--json")
    assert json.loads(again.stdout)["flagged_before"] == flagged
    digests = [read_document_only(path)["digest"] for path in (place / "guarded", tmp_path / "other")]
    assert digests[0] != digests[1] == read_document_only(tmp_path / "third")["digest"]


@pytest.mark.parametrize("command", ["fit", "calibrate"])
def test_a_defence_goes_to_a_place_of_its_own(place, tmp_path, command):
    words = ["--target-fpr", "0.1", "--threads", "1", "--quiet"]
    first = place / ("model" if command == "fit" else "guarded")
    for inside in (place / "scans" / "new", place / "scans" / "normal" / "new", first / "new"):
        with pytest.raises(ConfigError, match="which this call reads"):
            run(command, first, place / "scans", "--out", inside, *words, catch=False)
        assert not inside.exists()
    options = json.dumps({"root": str(place / "scans"), "image_size": 16})
    asked = ["--out", place / "scans" / "new", "--data-config", options]
    with pytest.raises(ConfigError, match="which this call reads"):
        run(command, first, "dicom_folder", *asked, *words, catch=False)
    with locked(tmp_path / "new", "another call"), pytest.raises(ArtifactError, match="in use by another call"):
        run(command, first, place / "scans", "--out", tmp_path / "new", *words, catch=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["fit", "calibrate"])
def test_a_rate_is_held_against_the_images_before_anything_is_computed(place, tmp_path, command, monkeypatch):
    monkeypatch.setattr(medfedpure.DefendedClassifier, "score_benign", lambda *_, **__: pytest.fail("it computed"))
    first = place / ("model" if command == "fit" else "guarded")
    parts = ["--detector", "feature_squeezing", "--purifier", "median"] if command == "fit" else []
    for rate, words in {"0": r"in \(0, 1\)", "1.5": r"in \(0, 1\)", "nan": r"in \(0, 1\)", "0.001": "bring"}.items():
        asked = ["--out", tmp_path / "new", "--target-fpr", rate, "--threads", "1", "--quiet", *parts]
        with pytest.raises(CalibrationError, match=words):
            run(command, first, place / "scans", *asked, catch=False)
    assert not (tmp_path / "new").exists()


def test_predict_writes_rows_that_name_the_class(place, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = [place / "scans", tmp_path / "broken.png", "--out", tmp_path / "v.csv", "--seed", "1", "--threads", "1"]
    done = run("predict", place / "guarded", *words)
    assert done.exit_code == 0, done.output
    assert "91 files" in done.output
    assert "1 could not be read" in done.output
    with (tmp_path / "v.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 91
    assert {row["class"] for row in rows if not row["error"]} <= {"normal", "lesion"}
    assert rows[-1]["error"].startswith("not a JPEG")
    again = run("predict", place / "guarded", *words, "--json")
    assert json.loads(again.stdout)["read"] == 0
    flagged = sum(row["flagged"] == "True" for row in rows)
    loud = run("predict", place / "guarded", place / "scans", "--out", tmp_path / "w.jsonl", "--fail-on-flagged")
    assert loud.exit_code == (FLAGGED if flagged else 0)
    assert len((tmp_path / "w.jsonl").read_text().splitlines()) == 90


def test_predict_says_who_spoke(place, tmp_path):
    run("calibrate", place / "guarded", place / "scans", "--out", tmp_path / "other", "--target-fpr", "0.3", "--quiet")
    words = [place / "scans", "--out", tmp_path / "v.csv", "--threads", "1", "--quiet"]
    assert run("predict", place / "guarded", *words).exit_code == 0
    with pytest.raises(ArtifactError, match="of another defence"):
        run("predict", tmp_path / "other", *words, catch=False)


def test_predict_asks_for_what_it_needs_before_it_reads_anything(place, tmp_path):
    words = ["predict", tmp_path / "no defence", place / "scans", "--out", tmp_path / "v.csv"]
    for more, why in {
        ("--combine", "mean"): "say of whom|and --by of whom",
        ("--by", "patient"): "give --key-file",
        ("--by", "ward", "--key-file", "key"): "patient, study; got 'ward'",
        ("--window", "40"): "the lower first",
        ("--axis", "up"): "axial, coronal, sagittal",
        ("--format", "xml"): "csv, jsonl, parquet",
    }.items():
        with pytest.raises(ConfigError, match=why):
            run(*words, *more, catch=False)
    assert not list(tmp_path.iterdir())


def test_predict_writes_verdicts_by_patient_maps_and_rows_of_other_kinds(place, tmp_path):
    pytest.importorskip("pydicom")
    pytest.importorskip("pyarrow")
    archive = write_dicom_folder(tmp_path / "archive", patients=4)
    words = [place / "guarded", archive, "--key-file", tmp_path / "key", "--seed", "1", "--threads", "1"]
    words += ["--target-fpr", "0.5", "--window", "0,4095"]
    told = []
    for out in ("v.csv", "v.parquet"):
        more = ["--by", "patient", "--combine", "vote", "--maps", tmp_path / "maps", "--retry-errors"]
        done = run("predict", *words, "--out", tmp_path / out, *more)
        assert done.exit_code == 0, done.output
        assert done.output.endswith(f"by patient to {tmp_path / 'v.patient.csv'}\n")
        assert done.output.count("\n") == 1  # no bar where there is no terminal, and no line in its place
        told.append((tmp_path / "v.patient.csv").read_text())
    assert told[0] == told[1]
    with (tmp_path / "v.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(told[0].splitlines()) == 1 + len({row["patient"] for row in rows}) == 5
    assert {row["why"] for row in rows} == {"", "feature_squeezing"}
    assert len(list((tmp_path / "maps").iterdir())) == sum(row["flagged"] == "True" for row in rows)
    assert all(" target_fpr=0.5 window=0,4095 key=" in row["defence"] for row in rows)
    with pytest.raises(ArtifactError, match="under other settings"):
        run("predict", *words[:-1], "full", "--out", tmp_path / "v.csv", catch=False)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_bar_says_how_fast_and_off_a_terminal_there_is_not_even_a_line(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def drawn():
        console = Terminal()
        console.file, console.width = io.StringIO(), 120
        with Bars(console) as bars, listening(bars):
            for step in track(range(4), "verdicts", 4):
                if step == 3:
                    bars.progress.refresh()
                time.sleep(0.01)
        return console.file.getvalue()

    assert drawn() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    assert bool(re.search(r"verdicts.*3/4.*\d/s", drawn())) is (term == "xterm")
    assert term == "xterm" or drawn() == ""


def test_steps_that_are_slow_are_told_in_seconds():
    told = [Rate().render(SimpleNamespace(speed=speed)).plain for speed in (None, 12.34, 0.25)]
    assert told == ["", "12.3/s", "4.0 s each"]


def test_from_dicom_files_to_a_row_for_each_frame(place, tmp_path):
    pytest.importorskip("pydicom")
    archive = write_dicom_folder(tmp_path / "archive", patients=40)
    options = ["--data-config", json.dumps({"root": str(archive)})]
    done = run("fit", place / "model", "dicom_folder", "--out", tmp_path / "guarded", *options, *CHEAP)
    assert done.exit_code == 0, done.output
    words = [archive, "--out", tmp_path / "v.csv", "--key-file", tmp_path / "key", "--threads", "1", "--json"]
    told = json.loads(run("predict", tmp_path / "guarded", *words).stdout)
    assert (told["files"], told["images"], told["failed"]) == (80, 80, 0)
    with (tmp_path / "v.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["patient"] for row in rows}) == len({row["study"] for row in rows}) == 40
    assert {(row["frame"], row["frames"]) for row in rows} == {("0", "1")}
    assert "P00" not in (tmp_path / "v.csv").read_text()


def test_logits_keep_their_names_whatever_order_the_folders_have(tmp_path):
    """Sorted, or the finding last, is not the order of every model."""
    pytest.importorskip("pydicom")
    archive = write_dicom_folder(tmp_path / "archive", patients=40)
    options = {"in_channels": 1, "num_classes": 2, "image_size": 16, "class_names": ("lesion", "normal"), "seed": 0}
    medfedpure.create("classifier", "small_cnn", widths=(8,)).create_model(**options).save(tmp_path / "model")
    words = ["fit", tmp_path / "model", "dicom_folder", "--out", tmp_path / "guarded", *CHEAP, "--data-config"]
    with pytest.raises(DataError, match=r"normal, lesion in this order, .* mean lesion, normal: .*\"classes\": \["):
        run(*words, json.dumps({"root": str(archive)}), catch=False)
    assert not (tmp_path / "guarded").exists()
    done = run(*words, json.dumps({"root": str(archive), "classes": ["lesion", "normal"]}))
    assert done.exit_code == 0, done.output
    chain = medfedpure.DefendedClassifier.load(tmp_path / "guarded")
    assert chain.image_facts.class_names == ("lesion", "normal")


def test_a_model_that_numbers_its_classes_takes_the_names_of_the_images(tmp_path):
    options = {"in_channels": 1, "num_classes": 2, "image_size": 32, "seed": 0}
    medfedpure.create("classifier", "small_cnn", widths=(8,)).create_model(**options).save(tmp_path / "model")
    words = ["--out", tmp_path / "guarded", *CHEAP, "--data-config", json.dumps({"images": 90})]
    done = run("fit", tmp_path / "model", "phantom", *words)
    assert done.exit_code == 0, done.output
    names = medfedpure.create("dataset", "phantom", images=8).read().class_names
    assert medfedpure.DefendedClassifier.load(tmp_path / "guarded").image_facts.class_names == names


def test_fit_asks_for_classes_that_the_model_only_numbers(place, tmp_path):
    options = {"in_channels": 1, "num_classes": 2, "image_size": 16, "seed": 0}
    medfedpure.create("classifier", "small_cnn", widths=(8,)).create_model(**options).save(tmp_path / "model")
    words = [tmp_path / "model", place / "scans", "--out", tmp_path / "guarded", *CHEAP]
    with pytest.raises(ConfigError, match="does not know the classes"):
        run("fit", *words, catch=False)
    done = run("fit", *words, "--data-config", json.dumps({"classes": ["lesion", "normal"]}))
    assert done.exit_code == 0, done.output
    chain = medfedpure.DefendedClassifier.load(tmp_path / "guarded")
    assert chain.image_facts.class_names == ("lesion", "normal")
