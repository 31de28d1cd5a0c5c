"""Who is told of every batch that was judged: what else is to be kept of images than their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medfedpure.core.errors import DataError
from medfedpure.core.results import Prediction
from medfedpure.verdicts.decoding import Frames, UnreadError


@dataclass(frozen=True)
class Judged:
    """What becomes a row.

    Attributes:
        path: of the file.
        place: which of its images, from 0; None where there is none.
        frames: all images of the file; None where it could not be read.
        error: why it could not be read.
        who: of a file that could not be read, pseudonyms of patient and study.
    """

    path: Path
    place: int | None = None
    frames: Frames | None = None
    error: str | None = None
    who: tuple[str | None, str | None] = (None, None)

    @classmethod
    def unread(cls, path: Path, error: DataError) -> Judged:
        """A file that could not be read."""
        return cls(path, error=str(error), who=error.who if isinstance(error, UnreadError) else (None, None))


class Listener(Protocol):
    """Is told of every batch before its rows are written, so that what was told of a killed call is told again.

    Attributes:
        path: where it writes: nothing there or below is read as a scan.
    """

    path: Path

    def judged(self, batch: Sequence[Judged], found: Prediction | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """One batch has its verdicts; told twice of an image, it keeps the later. What it raises ends the call.

        Args:
            batch: in the order of the rows.
            found: of those that have frames, in their order; None where no image of the batch could be read. Its
                suspicion map is that of the flagged ones, 0 of the others, or None where maps were not asked for.
            rows: one for each, as they will be written.
        """
