"""A file that grows by a row for each image, and of which whatever was written whole is kept when all else is killed.

Every row is one physical line, so that a cut-off one is known by its missing end.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from medfedpure.core.errors import ArtifactError
from medfedpure.core.rows.table import FORMULA, columns_of, csv_text
from medfedpure.data.readers.folders import what_else
from medfedpure.verdicts.kept import KEY, Columns, Kept


class Sheet(Kept):
    """A CSV or JSON-lines file that is continued where it ends; see `Kept`.

    Args:
        path: of the file, in a folder that is there.
        columns: in order; a row holds no others.
        format: "csv" or "jsonl".
        made_by: the defence that speaks; rows of another one are not continued.
        retry: files whose rows are cut out where they could not be read.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Columns,
        format: Literal["csv", "jsonl"],
        made_by: str,
        retry: Collection[str] = (),
    ) -> None:
        super().__init__(path, columns, made_by, retry)
        if other := what_else(self.path):
            raise ArtifactError(f"{self.path} is {other}: rows are continued, and a file is wanted for them")
        self.format = format
        self._head = csv_text(columns_of([], list(columns))).encode() if format == "csv" else b""
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        with self.told():
            self._stream = self.path.open("ab+")
            try:
                if self._continue(self._stream):
                    self._stream.close()
                    self._cut_out()
                    self._stream = self.path.open("ab+")
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, and wait until the disk has them. ArtifactError: it takes no more; what was whole is kept."""
        assert self._stream is not None
        with self.told():
            self._stream.write(self._lines(rows).encode(errors="backslashreplace"))
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole ones, in order, with values of the types of their columns."""
        with self.path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n") and line != self._head:
                    yield self._row(line)

    def _close(self) -> None:
        assert self._stream is not None
        with suppress(OSError):  # what a full disk refused is still in the buffer, and refused again
            self._stream.close()

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> str:
        full = self.full(rows)
        if self.format == "jsonl":
            return "".join(json.dumps(row, allow_nan=False) + "\n" for row in full)
        return csv_text(columns_of(full, list(self.columns))).partition("\n")[2]

    def _continue(self, stream: BinaryIO) -> int:
        """Read what is there, cut off a row that was not finished, begin where nothing is; how many are to go."""
        begins = self._head or json.dumps({next(iter(self.columns)): ""}).encode()[:-2]
        stream.seek(0)
        whole = gone = 0
        for line in stream:
            if not line.endswith(b"\n"):
                if not whole and line[: len(begins)] != begins[: len(line)]:
                    raise self.refused("holds something else")
                break
            if whole or self.format == "jsonl":
                gone += not self._known(line)
            elif line != self._head:
                raise self.refused("begins with other columns")
            whole += len(line)
        stream.truncate(whole)
        if not whole and self._head:
            stream.write(self._head)
            stream.flush()
        return gone

    def _cut_out(self) -> None:
        """Write the file anew without the rows that do not stay, and put it in its place in one step."""
        target = Path(os.path.realpath(self.path))
        made = target.with_name(f".{target.name}.retry")
        try:
            with target.open("rb") as old, made.open("wb") as new:
                new.writelines(line for line in old if line == self._head or not self.goes(self._row(line)))
                new.flush()
                os.fsync(new.fileno())
            made.chmod(target.stat().st_mode & 0o777)
            made.replace(target)
        finally:
            made.unlink(missing_ok=True)

    def _known(self, line: bytes) -> bool:
        """Whether a line that is there stays."""
        try:
            row = self._row(line)
            if row.keys() != self.columns.keys():
                raise ValueError("its columns are others")
            return self.note(row)
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError, csv.Error) as error:
            raise self.refused(f"holds a line that is no row of it ({error})") from error

    def _row(self, line: bytes) -> dict[str, Any]:
        text = line.decode()
        if self.format == "jsonl":
            return dict(json.loads(text))
        values = next(csv.reader([text]))
        return {h: _typed(v, kind, h == KEY) for (h, kind), v in zip(self.columns.items(), values, strict=True)}


def _typed(text: str, kind: type, is_name: bool) -> Any:
    if text == "":
        return None
    if kind is str and not is_name and text[:1] == "'" and text[1:].startswith(FORMULA):
        return text[1:]  # what `csv_text` put in front, as it never does with names of files
    return text == "True" if kind is bool else kind(text)
