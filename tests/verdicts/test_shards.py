"""Rows as Parquet: a folder of whole files, one type a column, every row once however often the writing was ended."""

import sys

import pytest
from written import defence, pictures, rows_of

from medfedpure.core.errors import ArtifactError, ConfigError, MissingExtraError
from medfedpure.verdicts import shards
from medfedpure.verdicts.predict import columns_for, predict_files
from medfedpure.verdicts.shards import Shards

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def inbox(tmp_path):
    """Nine scans, and one that is broken."""
    folder = pictures(tmp_path / "inbox", 9)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return folder


def rows_in(folder):
    parts = sorted(folder.glob("*.parquet"))
    return [row for part in parts for row in parquet.ParquetFile(part).read().to_pylist()]


def names_in(folder):
    return sorted(row["file"].rpartition("/")[2] for row in rows_in(folder))


WANTED = sorted([*(f"{place}.png" for place in range(9)), "broken.png"])


def test_the_rows_are_those_of_json_lines_in_types_that_do_not_change(chain, inbox, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 4)
    tally = predict_files(chain, [inbox], tmp_path / "v", format="parquet", made_by="me", seed=7, batch_size=3)
    assert (tally.read, tally.failed, tally.images) == (10, 1, 9)
    parts = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert parts == [f"part-{place:05}.parquet" for place in range(3)]
    predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", made_by="me", seed=7, batch_size=3)
    columns = columns_for(chain)
    assert rows_in(tmp_path / "v") == rows_of(tmp_path / "v.jsonl")
    (schema,) = {parquet.read_schema(tmp_path / "v" / part) for part in parts}
    kinds = {"string": str, "int64": int, "double": float, "bool": bool}
    assert {field.name: kinds[str(field.type)] for field in schema} == columns
    assert columns["patient"] is str  # of which these rows have none


def test_a_folder_whose_name_is_no_text_is_continued(chain, inbox, tmp_path):
    columns, row = columns_for(chain), {"file": "a", "error": "torn"}
    folder = tmp_path / "no \udcff text"
    try:
        folder.mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("names are texts here")
    with Shards(folder, columns, "me") as kept:
        kept.write([row])
    with Shards(folder, columns, "me") as kept:
        assert kept.done == {"a"}
    assert [one["error"] for one in kept.rows()] == ["torn"]


def test_pandas_reads_the_folder(chain, inbox, tmp_path):
    pandas = pytest.importorskip("pandas")
    predict_files(chain, [inbox], tmp_path / "v", format="parquet", seed=7)
    table = pandas.read_parquet(tmp_path / "v")
    assert sorted(table["file"].str.rpartition("/")[2]) == WANTED


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_killed_after_any_batch_every_row_comes_once(chain, inbox, tmp_path, monkeypatch, calls):
    """A killed process writes nothing more, so neither does the one that stands for it."""
    monkeypatch.setattr(shards, "ROWS", 4)
    told, write = [], Shards.write

    def killed(kept, rows):
        if len(told) == calls:
            raise ConfigError("killed")
        told.append(rows)
        write(kept, rows)

    with monkeypatch.context() as power:
        power.setattr(Shards, "write", killed)
        power.setattr(Shards, "__exit__", lambda *_: None)
        with pytest.raises(ConfigError, match="killed"):
            predict_files(chain, [inbox], tmp_path / "v", format="parquet", seed=7, batch_size=2)
    before = rows_in(tmp_path / "v")
    assert len(before) == 2 * calls // 4 * 4
    tally = predict_files(chain, [inbox], tmp_path / "v", format="parquet", seed=7, batch_size=3)
    assert tally.before == len(before)
    assert rows_in(tmp_path / "v")[: len(before)] == before
    assert names_in(tmp_path / "v") == WANTED


def test_an_error_or_ctrl_c_keeps_what_was_gathered(chain, inbox, tmp_path, monkeypatch):
    ask, calls = chain.predict, []

    def stopped(*images, **options):
        calls.append("batch_size" in options)
        if sum(calls) == 3:
            raise KeyboardInterrupt
        return ask(*images, **options)

    with monkeypatch.context() as user:
        user.setattr(chain, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict_files(chain, [inbox], tmp_path / "v", format="parquet", seed=7, batch_size=2)
    assert len(rows_in(tmp_path / "v")) == 4
    assert predict_files(chain, [inbox], tmp_path / "v", format="parquet", seed=7, batch_size=2).before == 4
    assert names_in(tmp_path / "v") == WANTED


def test_a_row_does_not_wait_for_ever(tmp_path):
    """With no patience every batch is a file."""
    with Shards(tmp_path / "v", {"file": str, "frame": int, "defence": str}, "me", seconds=0) as kept:
        for place in range(3):
            kept.write([{"file": f"{place}\n.png"}])
            assert len(list(kept.rows())) == place + 1
    assert [row["file"] for row in kept.rows()] == [f"{place}\\n.png" for place in range(3)]


def test_what_is_something_else_is_refused_and_left(chain, inbox, tmp_path):
    out = tmp_path / "v"
    predict_files(chain, [inbox], out, format="parquet", made_by="one", seed=7)
    (part,) = out.iterdir()
    content = part.read_bytes()

    def refuses(why, made_by="one", **options):
        with pytest.raises(ArtifactError, match=why):
            predict_files(chain, [inbox], out, format="parquet", made_by=made_by, **options)

    refuses("verdicts of another defence, one, and this one is two", made_by="two")
    refuses("under other settings, one, and this one is one target_fpr=0.2", target_fpr=0.2)
    assert part.read_bytes() == content
    (out / "notes.txt").write_text("mine")
    refuses("something else than files of rows, such as notes.txt")
    (out / "notes.txt").unlink()
    other = out / "part-00001.parquet"
    parquet.write_table(pyarrow.table({"a": [1]}), other)
    refuses("other columns, part-00001")
    other.write_bytes(content[:-20])
    refuses("cannot be read, part-00001")
    other.unlink()
    with pytest.raises(ArtifactError, match="is a folder"):
        predict_files(chain, [inbox], out, made_by="one")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file, and a folder is wanted"):
        predict_files(chain, [inbox], tmp_path / "file", format="parquet")
    assert part.read_bytes() == content


def test_without_pyarrow_the_extra_is_named_and_nothing_written(chain, inbox, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"medfedpure\[parquet\]"):
        predict_files(chain, [inbox], tmp_path / "v", format="parquet")
    assert not (tmp_path / "v").exists()


def test_rows_within_an_input_folder_are_no_scans(chain, inbox, tmp_path):
    for read in (10, 0):
        tally = predict_files(chain, [str(inbox / "**")], inbox / "v", format="parquet", seed=7)
        assert (tally.files, tally.read, tally.failed) == (10, read, read // 10)


def test_a_format_that_is_none_is_refused(chain, inbox, tmp_path):
    with pytest.raises(ConfigError, match="csv, jsonl, parquet; got 'xml'"):
        predict_files(chain, [inbox], tmp_path / "v", format="xml")
