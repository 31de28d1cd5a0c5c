"""A file that grows by a row for each image, and of which whatever was written whole is kept when all else is killed.

Every row is one physical line, so that a cut-off one is known by its missing end.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, get_args

from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.core.rows.table import columns_of, csv_text
from medfedpure.data.readers.folders import what_else

Format = Literal["csv", "jsonl"]
KEY = "file"
FRAME, FRAMES = "frame", "frames"
"""The columns by which a row is known: its file, which of its images, from 0, and of how many; empty of no image."""
MADE_BY = "defence"
"""The column that says which defence spoke."""


class Sheet:
    """A CSV or JSON-lines file that is continued where it ends.

    Args:
        path: of the file, in a folder that is there.
        heads: the columns, in order; a row holds no others.
        format: "csv" or "jsonl".
        made_by: the defence that speaks; rows of another one are not continued.

    Attributes:
        done: the files of which every row was there.
        begun: of files that were cut short, the images that have a row.

    Raises:
        ArtifactError: the file holds other columns, or rows of another defence; it is none that can be continued, or
            the disk refuses it.
    """

    def __init__(self, path: str | Path, heads: Sequence[str], format: Format, made_by: str) -> None:
        if format not in get_args(Format):
            raise ConfigError(f"rows are written as {' or '.join(get_args(Format))}; got {format!r}")
        self.path, self.heads, self.format, self.made_by = Path(path), list(heads), format, made_by
        self.done: set[str] = set()
        self.begun: dict[str, set[int]] = {}
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        if other := what_else(self.path):
            raise ArtifactError(f"{self.path} is {other}: rows are continued, and a file is wanted for them")
        with self._told():
            self._stream = self.path.open("ab+")
            try:
                self._continue(self._stream)
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
        with self._told():
            self._stream.write(self._lines(rows).encode(errors="backslashreplace"))
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def left(self, key: str, frames: int) -> list[int]:
        """Which images of a file, from 0, have no row yet."""
        there = self.begun.get(key, ())
        return [place for place in range(frames) if place not in there]

    def _close(self) -> None:
        assert self._stream is not None
        with suppress(OSError):  # what a full disk refused is still in the buffer, and refused again
            self._stream.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be written: {error.strerror or error}; rows that were written whole are kept, "
                "and the same call goes on once that is mended"
            ) from error

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
            key, made_by, frame = str(row[KEY]), str(row[MADE_BY]), row[FRAME]
            place, frames = (None, None) if frame in (None, "") else (int(frame), int(row[FRAMES]))
        except (ValueError, KeyError, TypeError, StopIteration, RecursionError, csv.Error) as error:
            raise self._refused(f"holds a line that is no row of it ({error})") from error
        if made_by != self.made_by:
            raise self._refused(f"holds verdicts of another defence, {made_by}, and this one is {self.made_by}")
        if place is not None and key not in self.done:
            there = self.begun.setdefault(key, set())
            there.add(place)
            if len(there) < (frames or 0):
                return
        self.begun.pop(key, None)
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
