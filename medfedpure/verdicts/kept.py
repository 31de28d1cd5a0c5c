"""What rows of verdicts have in common, wherever they are kept: columns, whose they are, which images have one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from medfedpure.core.errors import ArtifactError, ConfigError

Format = Literal["csv", "jsonl", "parquet"]
Columns = Mapping[str, type]
"""Heads in order, and of each the type of its values: str, int, float or bool, or None in their place."""
KEY = "file"
FRAME, FRAMES = "frame", "frames"
"""The columns by which a row is known: its file, which of its images, from 0, and of how many; empty of no image."""
ERROR = "error"
"""The column that says why a file could not be read."""
MADE_BY = "defence"
"""The column that says which defence spoke, and under which settings where they are not the usual ones."""


def check_format(format: str) -> None:
    """Raises ConfigError where rows are not written so."""
    if format not in get_args(Format):
        raise ConfigError(f"rows are written as {', '.join(get_args(Format))}; got {format!r}")


class Kept(ABC):
    """Rows that are continued where they end; inside a `with` block they grow.

    Args:
        path: of a file, or of a folder, in a folder that is there.
        columns: in order; a row holds no others.
        made_by: the defence that speaks; rows of another one are not continued.
        retry: of these files the rows are forgotten that say that they could not be read.

    Attributes:
        done: the files of which every row was there.
        begun: of files that were cut short, the images that have a row.

    Raises:
        ArtifactError: what is there holds other columns, or rows of another defence; it is none that can be
            continued, or the disk refuses it. It is left as it is.
    """

    def __init__(self, path: str | Path, columns: Columns, made_by: str, retry: Collection[str] = ()) -> None:
        self.path, self.columns, self.made_by, self.retry = Path(path), dict(columns), made_by, retry
        self.done: set[str] = set()
        self.begun: dict[str, set[int]] = {}

    @abstractmethod
    def __enter__(self) -> Self:
        """Learn what is there."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what is not on the disk yet."""

    @abstractmethod
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows. ArtifactError: the disk takes no more; what was whole is kept."""

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """All that are on the disk, in order, one after another."""

    def left(self, key: str, frames: int) -> list[int]:
        """Which images of a file, from 0, have no row yet."""
        there = self.begun.get(key, ())
        return [place for place in range(frames) if place not in there]

    def goes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is to be forgotten."""
        return bool(row[ERROR]) and row[KEY] in self.retry

    def full(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with every column, texts in one line."""
        mine = [{MADE_BY: self.made_by, **row} for row in rows]
        return [{head: _one_line(row.get(head)) for head in self.columns} for row in mine]

    def note(self, row: Mapping[str, Any]) -> bool:
        """Remember a row that is there; whether it stays. What is no row raises ValueError, KeyError or TypeError."""
        key, made_by, frame = str(row[KEY]), str(row[MADE_BY] or ""), row[FRAME]
        place, frames = (None, None) if frame in (None, "") else (int(frame), int(row[FRAMES]))
        if made_by != self.made_by:
            of = "under other settings" if made_by.split(" ")[0] == self.made_by.split(" ")[0] else "of another defence"
            raise self.refused(f"holds verdicts {of}, {made_by}, and this one is {self.made_by}")
        if self.goes(row):
            return False
        if place is not None and key not in self.done:
            there = self.begun.setdefault(key, set())
            there.add(place)
            if len(there) < (frames or 0):
                return True
        self.begun.pop(key, None)
        self.done.add(key)
        return True

    def refused(self, why: str) -> ArtifactError:
        """The error of what cannot be continued."""
        return ArtifactError(f"{self.path} {why}: it is left as it is; name another place for these verdicts")

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say in words what the disk refuses inside the block."""
        try:
            yield
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be written: {error.strerror or error}; rows that were written whole are kept, "
                "and the same call goes on once that is mended"
            ) from error


def _one_line(value: Any) -> Any:
    """Text without line ends and other controls, which a file's name may hold."""
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
