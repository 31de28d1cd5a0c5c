"""Full disks, two writers, pipes, loops of links, Ctrl-C, and defences of every kind: rows stay whole and true."""

import errno
import io
import json
import os
import threading
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from scans import dicom_bytes, write_nifti
from written import DATA, defence, pictures, rows_of

import medfedpure
from medfedpure.core.errors import ArtifactError, DataError
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.scans import ScanReader
from medfedpure.verdicts.decoding import is_scan
from medfedpure.verdicts.files import files_of
from medfedpure.verdicts.predict import predict_files


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def inbox(tmp_path):
    return pictures(tmp_path / "inbox", 9)


class FullDisk(io.BufferedRandom):
    """Takes so many bytes more, then half of what is written."""

    room = 400

    def write(self, data):
        if len(data) > FullDisk.room:
            super().write(bytes(data)[: FullDisk.room])
            super().flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        FullDisk.room -= len(data)
        return super().write(data)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_full_disk_is_said_and_the_same_call_goes_on(chain, inbox, tmp_path, monkeypatch, format):
    out, whole = tmp_path / f"v.{format}", tmp_path / f"whole.{format}"
    predict_files(chain, [inbox], whole, format=format, seed=7, batch_size=2)
    opened = Path.open

    def full(path, mode="r", *rest, **more):
        return FullDisk(io.FileIO(path, "a+")) if path == out and "a" in mode else opened(path, mode, *rest, **more)

    monkeypatch.setattr(FullDisk, "room", len(whole.read_bytes()) // 2)
    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", full)
        with pytest.raises(ArtifactError, match=r"cannot be written: No space left .* the same call goes on"):
            predict_files(chain, [inbox], out, format=format, seed=7, batch_size=2)
    assert not out.read_bytes().endswith(b"\n")
    tally = predict_files(chain, [inbox], out, format=format, seed=7, batch_size=2)
    assert 0 < tally.before < 9
    assert out.read_bytes() == whole.read_bytes()


def test_rows_go_into_a_file_and_nowhere_else(chain, inbox, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for wrong, why in {"pipe": "a named pipe", "inbox": "a folder", "file/v.csv": "is a file"}.items():
        with pytest.raises(ArtifactError, match=why):
            predict_files(chain, [inbox], tmp_path / wrong, seed=7)
    with pytest.raises(ArtifactError, match="a device"):
        predict_files(chain, [inbox], "/dev/null", seed=7)


def test_two_writers_of_one_file(chain, inbox, tmp_path, monkeypatch):
    """The second is refused, under whatever name of the file, and the rows are those of the first."""
    (tmp_path / "link.csv").symlink_to(tmp_path / "v.csv")
    refused = []
    ask = chain.predict

    def meanwhile(*images, **options):
        if not refused and "batch_size" in options:
            refused.append("")
            with pytest.raises(ArtifactError, match="the writing of verdicts") as error:
                predict_files(chain, [inbox], tmp_path / "link.csv", seed=7)
            refused[0] = str(error.value)
        return ask(*images, **options)

    monkeypatch.setattr(chain, "predict", meanwhile)
    predict_files(chain, [inbox], tmp_path / "v.csv", seed=7, batch_size=4)
    assert refused[0]
    assert len(rows_of(tmp_path / "v.csv")) == 9


def test_ctrl_c_ends_the_threads_and_keeps_every_batch(chain, inbox, tmp_path, monkeypatch):
    before, calls, ask = threading.active_count(), [], chain.predict

    def stopped(*images, **options):
        calls.append("batch_size" in options)
        if sum(calls) == 3:
            raise KeyboardInterrupt
        return ask(*images, **options)

    with monkeypatch.context() as user:
        user.setattr(chain, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict_files(chain, [inbox], tmp_path / "v.csv", seed=7, batch_size=2)
    assert threading.active_count() == before
    assert len(rows_of(tmp_path / "v.csv")) == 4
    assert predict_files(chain, [inbox], tmp_path / "v.csv", seed=7, batch_size=2).read == 5


def test_loops_of_links_and_pipes(inbox, tmp_path):
    (inbox / "deep").mkdir()
    (inbox / "deep" / "back").symlink_to(inbox)
    (inbox / "self.png").symlink_to(inbox / "self.png")
    os.mkfifo(inbox / "pipe")
    os.mkfifo(inbox / "pipe.png")
    other = tmp_path / "elsewhere"
    other.mkdir()
    Image.new("L", (4, 4)).save(other / "x.png")
    (inbox / "linked").symlink_to(other)
    wanted = sorted([*(f"{place}.png" for place in range(9)), "linked/x.png", "pipe.png", "self.png"])
    assert sorted(str(path.relative_to(inbox)) for path in files_of([inbox], is_scan)) == wanted
    by_pattern = files_of([f"{inbox}/**/*.png"], is_scan)
    assert sorted(str(path.relative_to(inbox)) for path in by_pattern) == wanted
    by_half = files_of([f"{tmp_path}/in*/**/x.png"], is_scan)
    assert [str(path.relative_to(inbox)) for path in by_half] == ["linked/x.png"]


def test_neither_the_rows_nor_the_key_is_a_scan(chain, inbox, tmp_path):
    out, key = inbox / "v.csv", inbox / "v.key"
    for read in (9, 0):
        tally = predict_files(chain, [str(inbox / "*")], out, seed=7, key_file=key)
        assert (tally.files, tally.read, tally.failed) == (9, read, 0)


@pytest.mark.parametrize("policy", ["abstain", "purify_all", "none", "purify_flagged"])
def test_every_policy_says_in_a_file_what_it_says_of_images(inbox, tmp_path, policy):
    chain = defence(policy=policy)
    tally = predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7, batch_size=4)
    rows = rows_of(tmp_path / "v.jsonl")
    flagged = [row["flagged"] for row in rows]
    scores = chain.predict(DATA.select(torch.arange(9)).images, seed=7).scores
    assert [row["score"] for row in rows] == pytest.approx(scores.tolist(), abs=1e-6)
    assert tally.flagged == sum(map(bool, flagged))
    abstained = [bool(row["abstained"]) for row in rows]
    assert abstained == (flagged if policy == "abstain" else [False] * 9)
    assert all(row["label"] in (0, 1) for row in rows)
    assert tally.abstained == sum(abstained)
    if policy == "purify_all":
        assert all(row["purified"] for row in rows)


def test_votes_of_an_image_do_not_depend_on_the_batch(inbox, tmp_path):
    chain = defence(policy="purify_all", vote=medfedpure.Vote(draws=3))
    for size in (1, 4, 9):
        predict_files(chain, [inbox], tmp_path / f"{size}.jsonl", format="jsonl", seed=7, batch_size=size)
    first, *others = [rows_of(tmp_path / f"{size}.jsonl") for size in (1, 4, 9)]
    assert any(row["agreement"] is not None for row in first)
    for rows in others:
        for one, other in zip(first, rows, strict=True):
            assert one["label"] == other["label"]
            assert one["probability_0"] == pytest.approx(other["probability_0"], abs=1e-5)


def test_sixteen_bits_and_colour_reach_the_defence_as_the_data_set_gives_them(tmp_path):
    generator = numpy.random.default_rng(0)
    for place in range(40):
        for kind in ("deep", "colour"):
            (tmp_path / kind / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
            deep = generator.integers(0, 65536, (16, 16)).astype(numpy.uint16)
            colour = generator.integers(0, 256, (16, 16, 3)).astype(numpy.uint8)
            Image.fromarray(deep if kind == "deep" else colour).save(tmp_path / kind / "ab"[place % 2] / f"{place}.png")
    for kind, channels in (("deep", 1), ("colour", 3)):
        options = {"root": tmp_path / kind, "image_size": 16, "channels": channels, "classes": ("a", "b")}
        data = medfedpure.create("dataset", "image_folder", **options).read()
        assert data.top == (65535 if kind == "deep" else 255)
        chain = defence(data, channels)
        predict_files(chain, [tmp_path / kind], tmp_path / f"{kind}.jsonl", format="jsonl", seed=7)
        said = [row["score"] for row in rows_of(tmp_path / f"{kind}.jsonl")]
        assert said == pytest.approx(chain.predict(data.images, seed=7).scores.tolist(), abs=1e-6)


def test_two_that_draw_one_key_have_one(tmp_path, monkeypatch):
    """Between the look and the writing somebody else was faster."""
    exists, other = Path.exists, []

    def late(path):
        there = exists(path)
        if path.name == "key" and not other:
            other.append(None)
            other[0] = Pseudonyms.from_file(path)
        return there

    with monkeypatch.context() as race:
        race.setattr(Path, "exists", late)
        mine = Pseudonyms.from_file(tmp_path / "key")
    assert mine.of("a") == other[0].of("a") == Pseudonyms.from_file(tmp_path / "key").of("a")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("medfedpure.data.readers.pseudonyms.secrets.token_bytes", full)
        with pytest.raises(DataError, match="No space left"):
            Pseudonyms.from_file(tmp_path / "key")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "link", no_links)
    assert Pseudonyms.from_file(tmp_path / "key").of("a") == Pseudonyms.from_file(tmp_path / "key").of("a")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("line", ["[" * 100_000, json.dumps({"file": ["a"], "defence": "", "frame": {}})])
def test_lines_of_others_are_refused_whatever_they_hold(chain, inbox, tmp_path, line):
    out = tmp_path / "v.jsonl"
    out.write_text(f"{line}\n")
    with pytest.raises(ArtifactError, match="no row of it"):
        predict_files(chain, [inbox], out, format="jsonl")
    assert out.read_text() == f"{line}\n"


def test_a_field_beyond_what_csv_reads_is_refused(chain, inbox, tmp_path):
    out = tmp_path / "v.csv"
    predict_files(chain, [inbox], out)
    whole = out.read_bytes()
    out.write_bytes(whole + b"x" * 200_000 + b"\n")
    with pytest.raises(ArtifactError, match=r"no row of it \(field larger"):
        predict_files(chain, [inbox], out)
    assert out.read_bytes().startswith(whole)


def test_a_link_to_itself_is_a_row_and_one_behind_a_closed_door_as_well(chain, inbox, tmp_path, monkeypatch):
    (inbox / "self.png").symlink_to(inbox / "self.png")
    closed, stat = inbox / "closed", os.stat

    def guarded(path, *rest, **options):
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat(path, *rest, **options)

    closed.symlink_to(tmp_path)
    monkeypatch.setattr(os, "stat", guarded)
    monkeypatch.setattr("medfedpure.data.readers.folders.os.path.isdir", lambda path: str(path) == str(inbox))
    found = files_of([inbox], is_scan)
    assert closed in found
    monkeypatch.undo()
    tally = predict_files(chain, [inbox / "self.png", inbox / "0.png"], tmp_path / "v.jsonl", format="jsonl", seed=7)
    assert (tally.files, tally.failed) == (2, 1)
    assert "symbolic links" in rows_of(tmp_path / "v.jsonl")[0]["error"]


def test_a_small_file_of_very_many_frames_asks_for_no_memory(chain, tmp_path):
    pytest.importorskip("pydicom")
    count = 2**31 // (2 * 16 * 16) + 1
    (tmp_path / "many").write_bytes(dicom_bytes(numpy.zeros((count, 1, 1), numpy.uint8)))
    predict_files(chain, [tmp_path / "many"], tmp_path / "v.jsonl", format="jsonl", seed=7)
    (row,) = rows_of(tmp_path / "v.jsonl")
    assert f"more than {count - 1} pictures" in row["error"]


def test_a_volume_of_more_slices_than_fit_is_refused_at_the_first_too_many(tmp_path, monkeypatch):
    pytest.importorskip("nibabel")
    monkeypatch.setattr("medfedpure.data.readers.scans._MOST_BYTES", 2 * 16 * 16 * 3)
    path = write_nifti(tmp_path / "many.nii", numpy.zeros((4, 4, 4), numpy.uint8))
    with pytest.raises(DataError, match="more than 3 pictures"):
        ScanReader(16).read(path)
    assert len(ScanReader(16, every=2).read(path).pixels) == 2
