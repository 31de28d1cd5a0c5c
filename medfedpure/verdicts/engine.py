"""Who else may judge files than the process that writes their rows: what is asked of it, and what it answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medfedpure.verdicts.decoding import Shown


@dataclass(frozen=True)
class Asked:
    """A file of which rows are wanted.

    Attributes:
        path: of the file.
        done: images that have a row and get no second one, from 0.
    """

    path: Path
    done: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Answer:
    """What became of a file.

    Attributes:
        rows: of the images that were asked for, or one that says why the file could not be read.
        lacking: why it has no row and is to be asked for again: a package is missing.
        dim: whether it is almost black; see `Frames`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    lacking: str | None = None
    dim: bool = False


@dataclass(frozen=True)
class How:
    """What all files of one call share: see `medfedpure.verdicts.predict.predict_files`."""

    seed: int | None = None
    target_fpr: float | None = None
    batch_size: int = 64
    workers: int | None = None
    key_file: Path | None = None
    shown: Shown = field(default_factory=Shown)


class Engine(Protocol):
    """Judges files anywhere, in any order, and tells of them in theirs."""

    def answers(self, asked: Sequence[Asked], how: How) -> Generator[Sequence[Answer], None, None]:
        """One for each file, in order, in groups that may be written at once.

        Raises:
            MedFedPureError: it cannot begin or go on; what was answered may be written.
        """
