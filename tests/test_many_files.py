"""`python -m benchmarks.many_files`: its files are what it says of them, and its judgements see what is wrong."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from medfedpure.core.errors import DataError
from medfedpure.defence.images import ImageFacts
from medfedpure.verdicts.decoding import FileDecoder, is_scan
from medfedpure.verdicts.files import files_of

ROOT = Path(__file__).parents[1]
EXTRAS = ("pydicom", "nibabel", "openjpeg", "rle")


@pytest.fixture
def bench(monkeypatch):
    for name in EXTRAS:
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.many_files{name}")


def row(name, frame=0, error=None, **more):
    return {"file": name, "frame": frame, "error": error, **more}


@pytest.mark.parametrize("kind", range(11))
def test_every_kind_is_read_as_it_says_and_none_that_was_spoilt(bench, tmp_path, kind):
    made = bench("_made")
    (name, (ending, _, images, write)) = list(made.KINDS.items())[kind]
    picture = made.pictures(3)[-1]
    path, decoder = tmp_path / f"scan{ending}", FileDecoder(ImageFacts((1, 64, 64), (), 255))
    content = write(lambda _: picture)
    path.write_bytes(content)
    assert len(decoder.read(path)) == images
    for choice in range(len(made.BREAKS)):
        how, left = made.spoilt(name, content, choice)
        path.write_bytes(left)
        assert is_scan(path), f"{name}, {how}: it would be passed over"
        with pytest.raises(DataError):
            decoder.read(path)


def test_files_are_made_alike_from_a_seed_and_one_in_a_hundred_is_spoilt(bench, tmp_path):
    made = bench("_made")
    one, other = (made.make_files(tmp_path / name, 200, 5) for name in ("a", "b"))
    assert one == other
    assert sum(file.broken is not None for file in one) == 2
    assert len(files_of([tmp_path / "a"], is_scan)) == 200
    assert all((tmp_path / "a" / file.name).read_bytes() == (tmp_path / "b" / file.name).read_bytes() for file in one)


def test_rows_that_are_missing_twice_or_wrong_are_seen(bench):
    once, wanted, broken = bench("_watched").once, {"a": 1, "b": 2, "c": 1}, {"c"}
    sound = [row("a"), row("b"), row("b", 1), row("c", None, "torn")]
    assert once(sound, wanted, broken)["holds"]
    assert once(sound[:-1], wanted, broken)["missing"] == 1
    assert once([*sound, row("b")], wanted, broken)["twice_or_unasked"] == 1
    assert not once([row("a", error="torn"), *sound[1:]], wanted, broken)["holds"]


def test_rounding_is_no_difference_and_all_else_is_one(bench):
    compared = bench("_watched").compared
    rows = [row("a", score=0.5, label=1), row("b", score=0.25, label=0)]
    close = [row("a", score=0.500001, label=1), rows[1]]
    found = compared(rows, close)
    assert (found["holds"], found["bit_for_bit"], found["unlike"]) == (True, 1, 0)
    assert found["largest_rounding"] == pytest.approx(1e-6)
    for others in ([row("a", score=0.6, label=1), rows[1]], [row("a", score=0.5, label=0), rows[1]], rows[:1]):
        assert compared(rows, others)["unlike"] == 1
    assert compared([row("a", score=None)], [row("a", score=0.5)])["unlike"] == 1


def test_memory_is_flat_between_the_first_tenth_and_the_last_row_or_not(bench):
    flatness = bench("_watched").flatness
    flat = flatness([(0, 50.0, 0), (1, 100.0, 20), (2, 109.0, 60), (3, 100.0, 99), (4, 200.0, 100)], 100)
    assert (flat["flat"], flat["spread"], flat["looks"], flat["most_anywhere"]) == (True, 0.09, 3, 200.0)
    assert not flatness([(1, 100.0, 20), (2, 110.0, 60), (3, 121.0, 99)], 100)["flat"]
    with pytest.raises(RuntimeError, match="give more files"):
        flatness([(1, 100.0, 5)], 100)


def test_the_page_says_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    drawing = importlib.import_module("benchmarks.many_files_table")
    page = drawing.PAGE.read_text(encoding="utf-8")
    assert drawing.page_with_tables(page) == page, "draw it again: python -m benchmarks.many_files_table"
    assert "rows of 10,000 files" in page


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_a_command_is_watched_and_killed_at_a_row(bench, tmp_path):
    watch = bench("_watched").watch
    script = "import time\nfor row in range(30):\n    print(row, flush=True)\ntime.sleep(300)\n"
    out = tmp_path / "rows"
    words = [sys.executable, "-c", f"import sys\nsys.stdout = open({str(out)!r}, 'w')\n{script}"]
    seen = watch(words, tmp_path, out, tmp_path / "log", kill_at=20)
    assert seen.status == -9
    assert 20 <= seen.looks[-1][2] <= 30
    assert seen.looks[-1][1] > 0


@pytest.mark.slow
def test_a_miniature_of_it_holds_and_is_not_done_twice(bench, tmp_path, monkeypatch, capsys):
    for name in ("ray", "pyarrow", "pandas"):
        pytest.importorskip(name)
    words = ["many_files", "--files", "200", "--out", str(tmp_path / "out"), "--result", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", words)
    bench("").main()
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["whole"]["rows"]["holds"]
    assert found["killed"]["rows"]["holds"]
    assert found["killed"]["as_in_one_go"]["holds"]
    assert [kill["status"] for kill in found["killed"]["kills"]] == [-9, -9]
    assert found["ray"]["rows"]["holds"]
    assert found["ray"]["as_in_one_go"]["holds"]
    capsys.readouterr()
    bench("").main()
    assert capsys.readouterr().out.count("done before") == 5
    assert json.loads((tmp_path / "result.json").read_text())["whole"] == found["whole"]
