"""Which files are read: those that are named, those below a folder, those of a pattern; each of them once."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from medfedpure.core.errors import ConfigError
from medfedpure.core.rows.table import FORMULA
from medfedpure.data.readers.folders import entries_of, is_folder


def files_of(inputs: Sequence[str | Path], is_scan: Callable[[Path], bool]) -> list[Path]:
    """The files to read, as they are named and below folders in the order of their paths.

    A file that is named twice, as through a link to its folder or by its whole path, is read once, under its first
    name; links to a file are files of their own.

    Args:
        inputs: files, read whatever they hold; folders, searched to any depth; patterns such as "in/**/*.png".
        is_scan: which of the files below a folder are meant; what systems leave behind never is.

    Raises:
        ConfigError: an input that is empty, not there, or leads to no file.
        DataError: a folder that cannot be listed.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        if not str(given):
            raise ConfigError("an input without a name is none: is a variable of the shell empty?")
        few = list(_below(Path(given), is_scan)) if is_folder(Path(given)) else _named(given)
        if not few:
            kind = "the folder holds no scan" if is_folder(Path(given)) else "there is no such file or folder"
            raise ConfigError(f"{given}: {kind}; files, folders or patterns of scans are wanted")
        found |= dict.fromkeys(few)
    return _once(found)


def _once(files: Iterable[Path]) -> list[Path]:
    """Those that lie at one place by their first names; links in names of folders are followed."""
    real: dict[Path, str] = {}
    places: dict[tuple[str, str], Path] = {}
    for path in files:
        folder = path.parent
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        places.setdefault((real[folder], path.name), path)
    return list(places.values())


def name_of(path: Path) -> str:
    """A file in a table: as it was named; in one line, no formula to a spreadsheet, and no other file's name.

    Unprintable characters are spelled out, and part of a hash says which file it is.
    """
    text = str(path)
    if not text.isprintable():
        digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=4).hexdigest()
        text = f"{''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)} [{digest}]"
    return text if text[:1] not in FORMULA else f"./{text}"


def picture_of(path: Path, place: int) -> str:
    """The name of a picture that is made of one image of a file, from 0: no other's, and safe in any folder."""
    digest = hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=6).hexdigest()
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in path.name)[:80].lstrip(".")
    return f"{stem}-{digest}-{place}.png"


def _named(given: str | Path) -> list[Path]:
    if os.path.lexists(given):
        return [Path(given)]
    found = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - from any root
    inside = _Inside(str(given))
    return [path for path in map(Path, found) if not is_folder(path) and inside.holds(path.parent)]


class _Inside:
    """Folders that a pattern leads to without a link back to one of those above, which `**` would go round and round.

    Args:
        pattern: of files.
    """

    def __init__(self, pattern: str) -> None:
        parts = Path(pattern).parts
        plain = next((place for place, part in enumerate(parts) if glob.has_magic(part)), 0)
        self._root = Path(*parts[:plain]) if "**" in parts else None
        self._known: dict[Path, tuple[Path, ...] | None] = {}

    def holds(self, folder: Path) -> bool:
        """Whether a folder is reached on a straight way."""
        return self._root is None or self._way(folder) is not None

    def _way(self, folder: Path) -> tuple[Path, ...] | None:
        """The folders on the way, links followed; None where one comes twice."""
        if folder not in self._known:
            above = () if folder in (self._root, folder.parent) else self._way(folder.parent)
            here = folder.resolve()
            self._known[folder] = None if above is None or here in above else (*above, here)
        return self._known[folder]


def _below(folder: Path, is_scan: Callable[[Path], bool]) -> Iterator[Path]:
    """Files at any depth; links are followed, but for those that lead back to a folder above."""
    waiting: list[tuple[Path, frozenset[Path]]] = [(folder, frozenset())]
    while waiting:
        path, above = waiting.pop()
        if not is_folder(path):
            if is_scan(path):
                yield path
        elif (here := path.resolve()) not in above:
            waiting += [(entry, above | {here}) for entry in reversed(entries_of(path))]
