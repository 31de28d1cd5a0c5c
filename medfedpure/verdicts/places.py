"""What a call writes, and where: no scan, and never two things in one place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from medfedpure.core.errors import ConfigError


class Own:
    """What a call writes, and whatever lies below that: no scan.

    Args:
        places: of files and folders; None is none.
    """

    def __init__(self, places: Iterable[str | Path | None]) -> None:
        self._places = {_real(one) for one in places if one is not None}

    def __contains__(self, path: Path) -> bool:
        real = _real(path)
        return not self._places.isdisjoint((real, *real.parents))

    def without(self, files: Sequence[Path]) -> list[Path]:
        """Files that are none of it. ConfigError: there were some, and none is left."""
        left = [path for path in files if path not in self]
        if files and not left:
            raise ConfigError(
                f"all scans that were named lie where this call writes, as {files[0]} does: name other places to write"
            )
        return left


def check_apart(folders: Iterable[str | Path | None], others: Iterable[str | Path | None]) -> None:
    """That nothing is written over or among something else of the same call.

    Args:
        folders: that hold nothing else; None is none.
        others: files, and folders that may hold anything.

    Raises:
        ConfigError: two of all are one place, or one lies in one of the folders.
    """
    alone = [Path(one) for one in folders if one is not None]
    every = [*alone, *(Path(one) for one in others if one is not None)]
    for number, one in enumerate(every):
        for place, other in enumerate(every):
            if place < number and _real(one) == _real(other):
                raise ConfigError(f"{one} is to hold two things that this call writes: name a place for each")
            if place < len(alone) and _real(other) in _real(one).parents:
                raise ConfigError(f"{one} lies in {other}, which holds nothing else: name places apart")


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))
