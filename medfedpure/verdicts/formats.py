"""Rows by the name of their format."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from medfedpure.verdicts.kept import Columns, Format, Kept, check_format
from medfedpure.verdicts.shards import Shards
from medfedpure.verdicts.sheet import Sheet

ENDINGS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(path: Path) -> Format:
    """As which rows are written at a path that nobody says more of: as it ends; CSV where that says nothing."""
    return ENDINGS.get(path.suffix.casefold(), "csv")


def kept_as(format: Format, path: str | Path, columns: Columns, made_by: str, retry: Collection[str] = ()) -> Kept:
    """Rows at a path; see `Kept`.

    Args:
        format: "csv", or "jsonl", an object a line; or "parquet", a folder of files.
        path: of the file, or of the folder.
        columns: in order, with their types.
        made_by: the defence that speaks.
        retry: files whose rows are forgotten where they could not be read.

    Raises:
        ConfigError: a format that is none of these.
        MissingExtraError: pyarrow is not installed, for Parquet.
    """
    check_format(format)
    if format == "parquet":
        return Shards(path, columns, made_by, retry)
    return Sheet(path, columns, format, made_by, retry)
