"""Beside the verdict: why an image was flagged, maps, window and axis, listeners, and files that are read again."""

import numpy
import pytest
import torch
from PIL import Image
from scans import anatomy, dicom_bytes, write_nifti
from written import DATA, defence, pictures, rows_of

import medfedpure
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.testing import tiny_classifier
from medfedpure.verdicts.decoding import Shown
from medfedpure.verdicts.files import name_of, picture_of
from medfedpure.verdicts.predict import predict_files


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def inbox(tmp_path):
    return pictures(tmp_path / "inbox", 12)


def combined(detector):
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1), detector=detector, purifier=medfedpure.create("purifier", "smoothing")
    )
    detector.fit(DATA, context=made.context(), seed=1)
    return made.calibrate(DATA, 0.5, seed=1)


TWO = [{"plugin": "feature_squeezing"}, {"plugin": "mahalanobis"}]


def test_a_detector_of_one_score_is_the_reason(chain, inbox, tmp_path):
    predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7)
    rows = rows_of(tmp_path / "v.jsonl")
    assert {row["why"] for row in rows if row["flagged"]} == {"feature_squeezing"}
    assert {row["why"] for row in rows if not row["flagged"]} == {None}


def test_of_several_parts_the_one_that_weighs_most_is(inbox, tmp_path):
    chain = combined(medfedpure.create("detector", "compose", parts=TWO))
    predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7, batch_size=5)
    flagged = [row for row in rows_of(tmp_path / "v.jsonl") if row["flagged"]]
    images = DATA.select(torch.tensor([int(row["file"][-6:-4]) for row in flagged])).images
    streams = Streams(7, torch.tensor([derive_seed("file", row["file"], 0) for row in flagged]))
    parts = [
        part.score(images, context=chain.context(), streams=streams.child(place)).double()
        for place, part in enumerate(chain.detector.detectors())
    ]
    largest = ((torch.stack(parts, 1) - chain.detector.centre) / chain.detector.spread).argmax(1)
    assert [row["why"] for row in flagged] == [f"compose > {TWO[place]['plugin']}" for place in largest.tolist()]
    assert len({row["why"] for row in flagged}) == 2


def test_a_second_stage_has_the_last_word_and_says_which_of_its_parts():
    detector = medfedpure.create(
        "detector",
        "staged",
        first=TWO[0],
        second={"plugin": "compose", "config": {"parts": [TWO[1], TWO[1]]}},
        clear=0.5,
    )
    chain = combined(detector)
    images, streams = DATA.images, Streams.for_batch(3, len(DATA))
    scores = detector.score(images, context=chain.context(), streams=streams)
    found = detector.reasons(images, context=chain.context(), streams=streams)
    cleared = [text == "staged > feature_squeezing" for text in found]
    assert cleared == (scores <= 0).tolist()
    assert 0 < sum(cleared) < len(cleared)
    assert {text for text in found if "compose" in text} <= {f"staged > compose > mahalanobis {k}" for k in (0, 1)}


def test_maps_of_what_is_flagged_are_grey_pictures(chain, inbox, tmp_path):
    maps = inbox / "maps"
    for read in (12, 0):
        tally = predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7, batch_size=5, maps=maps)
        assert (tally.files, tally.read) == (12, read)
    flagged = [row["file"] for row in rows_of(tmp_path / "v.jsonl") if row["flagged"]]
    assert 0 < len(flagged) < 12
    assert sorted(path.name for path in maps.iterdir()) == sorted(picture_of(inbox / f[-6:], 0) for f in flagged)
    place = int(flagged[0][-6:-4])
    alone = chain.predict(DATA.select(torch.tensor([place])).images, seed=7, explain=True).suspicion_map[0, 0]
    wanted = (alone - alone.min()) / (alone.max() - alone.min()) * 255
    with Image.open(maps / picture_of(inbox / flagged[0][-6:], 0)) as drawn:
        assert (drawn.mode, drawn.size) == ("L", (16, 16))
        assert numpy.abs(numpy.asarray(drawn, dtype=float) - wanted.numpy()).max() <= 1


def test_maps_that_nobody_draws_are_refused_before_any_work(inbox, tmp_path):
    silent = combined(medfedpure.create("detector", "mahalanobis"))
    none = medfedpure.DefendedClassifier(tiny_classifier(16, 1), policy="none")
    none.image_facts = silent.image_facts
    for chain, spoken in ((silent, "the detector 'mahalanobis', which draws none"), (none, "no detector")):
        with pytest.raises(ConfigError, match=spoken):
            predict_files(chain, [inbox], tmp_path / "v.csv", maps=tmp_path / "maps")
    assert [path.name for path in tmp_path.iterdir()] == ["inbox"]


def test_pictures_have_names_of_their_own_that_any_folder_takes(tmp_path):
    paths = [tmp_path / name for name in ("a b.png", "a_b.png", "../x", "…", "é" * 200, ".hidden")]
    names = [picture_of(path, place) for path in paths for place in (0, 1)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and "/" not in name and name[0] != "." and len(name) < 120 for name in names)


class Ear:
    """Notes what it is told, and what was on the disk then."""

    def __init__(self, path, out):
        self.path, self.out, self.told = path, out, []

    def judged(self, batch, found, rows):
        there = {row["file"] for row in rows_of(self.out)}
        assert not there & {row["file"] for row in rows}
        assert [name_of(one.path) for one in batch] == [row["file"] for row in rows]
        assert (0 if found is None else len(found)) == sum(one.frames is not None for one in batch)
        self.told += [row["file"] for row in rows]


def test_who_listens_is_told_before_the_rows_are_written(chain, inbox, tmp_path):
    (inbox / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "v.csv"
    ear = Ear(inbox / "own", out)
    (inbox / "own").mkdir()
    Image.new("L", (16, 16)).save(inbox / "own" / "drawn.png")
    predict_files(chain, [inbox], out, seed=7, batch_size=1, also=[ear])
    assert ear.told == [row["file"] for row in rows_of(out)]
    assert len(ear.told) == 12

    class Deaf(Ear):
        def judged(self, batch, found, rows):
            raise ArtifactError("full")

    deaf = Deaf(tmp_path / "other", tmp_path / "w.csv")
    with pytest.raises(ArtifactError, match="full"):
        predict_files(chain, [inbox], tmp_path / "w.csv", seed=7, also=[deaf])
    assert rows_of(tmp_path / "w.csv") == []


def test_window_and_axis_are_those_of_the_reader_and_other_ones_are_not_continued(chain, tmp_path):
    pytest.importorskip("pydicom")
    pytest.importorskip("nibabel")
    (tmp_path / "IM1").write_bytes(dicom_bytes(anatomy(1), bits=12, WindowCenter="500", WindowWidth="200"))
    volume = numpy.stack([anatomy(place, 24) for place in range(4)], axis=2).astype(numpy.int16)
    write_nifti(tmp_path / "volume.nii", volume)
    inputs, scores = [tmp_path / "IM1", tmp_path / "volume.nii"], {}
    settings = {"plain": Shown(), "full": Shown("full"), "ends": Shown((0.0, 900.0)), "side": Shown(axis="sagittal")}
    for name, shown in settings.items():
        predict_files(chain, inputs, tmp_path / f"{name}.jsonl", format="jsonl", made_by="me", seed=7, shown=shown)
        rows = rows_of(tmp_path / f"{name}.jsonl")
        assert len(rows) == (25 if name == "side" else 5)
        scores[name] = [row["score"] for row in rows]
        assert {row["defence"] for row in rows} == {" ".join(["me", *shown.told()])}
    first = {name: found[0] for name, found in scores.items()}
    assert first["plain"] == first["side"]
    assert len({first["plain"], first["full"], first["ends"]}) == 3
    assert scores["plain"][1:] == scores["full"][1:] != scores["ends"][1:]
    with pytest.raises(ArtifactError, match="under other settings, me, and this one is me window=0,900 axis=coronal"):
        predict_files(
            chain, inputs, tmp_path / "plain.jsonl", format="jsonl", made_by="me", shown=Shown((0.0, 900.0), "coronal")
        )


def test_windows_in_words():
    assert Shown.parse("-160,240", "axial") == Shown((-160.0, 240.0))
    assert Shown.parse("full", "coronal") == Shown("full", "coronal")
    for window in ("wide", "240,-160", "1,2,3", "1,", "nan,1", "40"):
        with pytest.raises(ConfigError, match="the lower first"):
            Shown.parse(window, "axial")
    with pytest.raises(ConfigError, match="axial, coronal, sagittal; got 'up'"):
        Shown.parse("auto", "up")


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_files_that_failed_are_read_again_when_asked_and_no_other_row_changes(chain, inbox, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"v.{format}"
    sound = {name: (inbox / name).read_bytes() for name in ("03.png", "07.png", "09.png")}
    for name in sound:
        (inbox / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    options = {"format": format, "made_by": "me", "seed": 7, "batch_size": 1}  # so that rounding is the same
    assert predict_files(chain, [inbox], out, **options).failed == 3
    before = content_of(out)
    for name in ("03.png", "07.png"):
        (inbox / name).write_bytes(sound[name])
    assert predict_files(chain, [inbox], out, **options).read == 0
    assert content_of(out) == before
    with pytest.raises(ArtifactError, match="another defence"):
        predict_files(chain, [inbox], out, **options | {"made_by": "you"}, retry_errors=True)
    assert content_of(out) == before
    few = [inbox / "03.png", inbox / "04.png"]
    assert predict_files(chain, few, out, **options, retry_errors=True).read == 1  # others' rows stay
    tally = predict_files(chain, [inbox], out, **options, retry_errors=True)
    assert (tally.before, tally.read, tally.failed, tally.images) == (10, 2, 1, 1)
    predict_files(chain, [inbox], tmp_path / f"w.{format}", **options)
    assert sorted(content_of(out)) == sorted(content_of(tmp_path / f"w.{format}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inbox", out.name, f"w.{format}"]


def content_of(path):
    if path.is_dir():
        from pyarrow import parquet

        return [str(row) for part in sorted(path.iterdir()) for row in parquet.ParquetFile(part).read().to_pylist()]
    return path.read_text().splitlines()
