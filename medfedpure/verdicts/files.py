"""Which files are read: those that are named, those below a folder, those of a pattern; each of them once."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from medfedpure.core.errors import ConfigError
from medfedpure.core.rows.table import FORMULA
from medfedpure.data.readers.folders import is_litter


def files_of(inputs: Sequence[str | Path], is_scan: Callable[[Path], bool]) -> list[Path]:
    """The files to read, as they are named and below folders in the order of their paths.

    Args:
        inputs: files, read whatever they hold; folders, searched to any depth; patterns such as "in/**/*.png".
        is_scan: which of the files below a folder are meant; what systems leave behind never is.

    Raises:
        ConfigError: an input that is not there, or that leads to no file.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        few = list(_below(Path(given), is_scan)) if Path(given).is_dir() else _named(given)
        if not few:
            kind = "the folder holds no scan" if Path(given).is_dir() else "there is no such file or folder"
            raise ConfigError(f"{given}: {kind}; files, folders or patterns of scans are wanted")
        found |= dict.fromkeys(few)
    return list(found)


def name_of(path: Path) -> str:
    """A file in a table: as it was named; in one line, no formula to a spreadsheet, and no other file's name.

    Unprintable characters are spelled out, and part of a hash says which file it is.
    """
    text = str(path)
    if not text.isprintable():
        digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=4).hexdigest()
        text = f"{''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)} [{digest}]"
    return text if text[:1] not in FORMULA else f"./{text}"


def _named(given: str | Path) -> list[Path]:
    if os.path.lexists(given):
        return [Path(given)]
    found = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - from any root
    return [Path(name) for name in found if not Path(name).is_dir()]


def _below(folder: Path, is_scan: Callable[[Path], bool]) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_litter(Path(name)))
        for name in sorted(names):
            path = Path(base, name)
            if not is_litter(path) and is_scan(path):
                yield path
