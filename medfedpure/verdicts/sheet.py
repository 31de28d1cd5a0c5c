"""A file that grows by a row for each scan, and of which whatever was written whole is kept when all else is killed.

Every row is one physical line, so that a cut-off one is known by its missing end.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, get_args

from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.core.rows.table import columns_of, csv_text

Format = Literal["csv", "jsonl"]
KEY = "file"
"""The column by which a row is known."""
MADE_BY = "defence"
"""The column that says which defence spoke."""


class Sheet:
    """A CSV or JSON-lines file that is continued where it ends.

    Args:
        path: of the file.
        heads: the columns, in order; a row holds no others.
        format: "csv" or "jsonl".
        made_by: the defence that speaks; rows of another one are not continued.

    Attributes:
        done: the keys of the rows that were there.

    Raises:
        ArtifactError: the file holds other columns, or rows of another defence.
    """

    def __init__(self, path: str | Path, heads: Sequence[str], format: Format, made_by: str) -> None:
        if format not in get_args(Format):
            raise ConfigError(f"rows are written as {' or '.join(get_args(Format))}; got {format!r}")
        self.path, self.heads, self.format, self.made_by = Path(path), list(heads), format, made_by
        self.done: set[str] = set()
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("ab+")
        try:
            self._continue(self._stream)
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, and wait until the disk has them."""
        assert self._stream is not None
        self._stream.write(self._lines(rows).encode(errors="backslashreplace"))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> str:
        full = [{MADE_BY: self.made_by, **row} for row in rows]
        full = [{head: _one_line(row.get(head)) for head in self.heads} for row in full]
        if self.format == "jsonl":
            return "".join(json.dumps(row, allow_nan=False) + "\n" for row in full)
        return csv_text(columns_of(full, self.heads)).partition("\n")[2]

    def _continue(self, stream: BinaryIO) -> None:
        """Read what is there, cut off a row that was not finished, and begin where nothing is."""
        head = csv_text(columns_of([], self.heads)).encode() if self.format == "csv" else b""
        begins = head or json.dumps({self.heads[0]: ""}).encode()[:-2]
        stream.seek(0)
        whole = 0
        for line in stream:
            if not line.endswith(b"\n"):
                if not whole and line[: len(begins)] != begins[: len(line)]:
                    raise self._refused("holds something else")
                break
            if whole or self.format == "jsonl":
                self._known(line)
            elif line != head:
                raise self._refused("begins with other columns")
            whole += len(line)
        stream.truncate(whole)
        if not whole and head:
            stream.write(head)
            stream.flush()

    def _known(self, line: bytes) -> None:
        try:
            text = line.decode()
            row = json.loads(text) if self.format == "jsonl" else self._row(text)
            key, made_by = str(row[KEY]), str(row[MADE_BY])
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise self._refused(f"holds a line that is no row of it ({error})") from error
        if made_by != self.made_by:
            raise self._refused(f"holds verdicts of another defence, {made_by}, and this one is {self.made_by}")
        self.done.add(key)

    def _row(self, text: str) -> dict[str, str]:
        return dict(zip(self.heads, next(csv.reader([text])), strict=True))

    def _refused(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {why}: it is left as it is; name another file for these verdicts")


def _one_line(value: Any) -> Any:
    """Text without line ends and other controls, which a file's name may hold."""
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
