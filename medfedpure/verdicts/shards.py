"""A folder of Parquet files, part-00000.parquet and on, each whole or not there: what pyarrow and pandas read at once.

A file of this kind cannot grow, so rows are gathered until there are enough of them, or the first has waited long
enough; a killed call loses those that were gathered, and the next one makes them again.
"""

from __future__ import annotations

import importlib
import io
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from medfedpure.core.disk.whole import make_folder, write_bytes
from medfedpure.core.errors import ArtifactError, DataError, MissingExtraError
from medfedpure.data.readers.folders import entries_of
from medfedpure.verdicts.kept import ERROR, FRAME, FRAMES, KEY, MADE_BY, Columns, Kept

ROWS = 4096
"""Of one file."""
SECONDS = 60.0
"""That a row may wait for the disk."""
_NAME = re.compile(r"part-(\d{5,})\.parquet")
_TYPES = {str: "string", int: "int64", float: "float64", bool: "bool_"}


class Shards(Kept):
    """A folder of Parquet files that is continued with another file; see `Kept`.

    Every column has one type in every file, also where no row has a value.

    Args:
        path: of the folder; made where it is missing.
        columns: in order; a row holds no others.
        made_by: the defence that speaks; rows of another one are not continued.
        retry: files whose rows are cut out where they could not be read.
        rows: of one file.
        seconds: that a row waits at most, as long as others come.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Columns,
        made_by: str,
        retry: Collection[str] = (),
        *,
        rows: int | None = None,
        seconds: float | None = None,
    ) -> None:
        super().__init__(path, columns, made_by, retry)
        self._most, self._patience = rows or ROWS, SECONDS if seconds is None else seconds
        self._arrow, self._parquet = _pyarrow(), importlib.import_module("pyarrow.parquet")
        of = {head: getattr(self._arrow, _TYPES[kind])() for head, kind in self.columns.items()}
        self._schema = self._arrow.schema(list(of.items()))
        self._gathered: list[dict[str, Any]] = []
        self._since = 0.0
        self._next = 0

    def __enter__(self) -> Self:
        make_folder(self.path)
        parts = self._parts()
        stays = {part: self._known(part) for part in parts}
        for part, rows in stays.items():
            if not all(rows):
                self._cut_out(part, rows)
        self._next = 1 + max((self._number(part) for part in parts), default=-1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was gathered is true whatever went wrong since; but for a disk that has just refused it.
        if not isinstance(error, ArtifactError):
            self._flush()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Gather rows; on the disk they are when there are enough. ArtifactError: it takes no more."""
        if not self._gathered:
            self._since = time.monotonic()
        self._gathered += self.full(rows)
        while len(self._gathered) >= self._most:
            self._put(self._gathered[: self._most])
            del self._gathered[: self._most]
        if time.monotonic() - self._since >= self._patience:
            self._flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All that are on the disk, in order, a file at a time."""
        for part in self._parts():
            yield from self._table(part).to_pylist()

    def _flush(self) -> None:
        if self._gathered:
            self._put(self._gathered)
            self._gathered = []

    def _put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write(self.path / f"part-{self._next:05}.parquet", self._arrow.Table.from_pylist(rows, self._schema))
        self._next += 1
        self._since = time.monotonic()

    def _write(self, part: Path, table: Any) -> None:
        content = io.BytesIO()
        self._parquet.write_table(table, content)
        write_bytes(part, content.getvalue())

    def _parts(self) -> list[Path]:
        """The files in order. ArtifactError: something else lies among them, or they cannot be listed."""
        try:
            found = entries_of(self.path)
        except DataError as error:
            raise ArtifactError(f"{error}: name another place for these verdicts") from error
        if strange := [path.name for path in found if not _NAME.fullmatch(path.name)]:
            raise self.refused(f"holds something else than files of rows, such as {strange[0]}")
        return sorted(found, key=self._number)

    @staticmethod
    def _number(part: Path) -> int:
        found = _NAME.fullmatch(part.name)
        assert found is not None
        return int(found[1])

    def _known(self, part: Path) -> list[bool]:
        """Of each row of a file whether it stays."""
        schema = self._opened(part, self._parquet.read_schema)
        if not schema.equals(self._schema):
            raise self.refused(f"holds a file of other columns, {part.name}")
        table = self._table(part, [KEY, FRAME, FRAMES, ERROR, MADE_BY])
        try:
            return [self.note(row) for row in table.to_pylist()]
        except (ValueError, TypeError) as error:
            raise self.refused(f"holds a row that is none of it, in {part.name} ({error})") from error

    def _table(self, part: Path, columns: list[str] | None = None) -> Any:
        return self._opened(part, lambda stream: self._parquet.ParquetFile(stream).read(columns))

    def _opened(self, part: Path, read: Callable[[BinaryIO], Any]) -> Any:
        try:
            with part.open("rb") as stream:  # pyarrow itself opens no path that is no text
                return read(stream)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these
            raise self.refused(f"holds a file that cannot be read, {part.name} ({error})") from error

    def _cut_out(self, part: Path, stays: list[bool]) -> None:
        """Write a file anew without the rows that do not stay; without any it goes."""
        if any(stays):
            self._write(part, self._table(part).filter(self._arrow.array(stays)))
        else:
            with self.told():
                part.unlink()


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtraError("rows as Parquet need pyarrow: pip install 'medfedpure[parquet]'") from error
