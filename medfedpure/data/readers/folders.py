"""Which files of a folder are images of which class: the one rule of `image_folder` and of `evaluate --data`.

Only what operating systems leave behind is passed over (`is_litter`); a folder `__other` is a class like any.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from medfedpure.core.errors import DataError

_LITTER = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "@eadir",
        "lost+found",
        "$recycle.bin",
        "system volume information",
    }
)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def is_litter(path: Path) -> bool:
    """Whether a file or folder is one of the system's, not the user's: dotfiles, __MACOSX, Thumbs.db, @eaDir, ..."""
    return path.name.startswith(".") or path.name.casefold() in _LITTER


def entries_of(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without litter. Raises DataError where it cannot be listed."""
    try:
        if not os.access(folder, os.X_OK):  # its names may be listed and still nothing be learned of them
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return sorted(entry for entry in folder.iterdir() if not is_litter(entry))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error


def is_folder(path: Path) -> bool:
    """Whether a folder, or a link to one, stands there; no, where nobody may look, which `Path.is_dir` raises."""
    return os.path.isdir(path)  # noqa: PTH112


def class_folders(root: Path) -> list[str]:
    """Names of the class folders of a root, sorted.

    Raises:
        DataError: it is missing, a file, or holds no folder; a name that is no text, which no report could write.
    """
    wanted = "give the folder that holds one sub-folder per class"
    if not is_folder(root):
        there = os.path.exists(root)  # noqa: PTH110 - as in `is_folder`
        raise DataError(f"{root} {'is a file' if there else 'does not exist'}: {wanted}")
    entries = entries_of(root)
    found = [entry.name for entry in entries if is_folder(entry)]
    if not found:
        inside = f"only files such as {entries[0].name}" if entries else "nothing"
        raise DataError(f"{root} holds no class folder, {inside}: {wanted}")
    if untold := [name for name in (str(root), *found) if _is_no_text(name)]:
        raise DataError(f"the name {untold[0]!a} is no text in UTF-8: rename the folder")
    return found


def _is_no_text(name: str) -> bool:
    """Whether bytes of a name could not be decoded, which Python keeps as halves of characters."""
    return any("\ud800" <= c <= "\udfff" for c in name)


def what_else(path: Path) -> str | None:
    """What stands at a path in place of a file that can be read to its end; None for such a file.

    Nothing is opened: opening a named pipe waits for somebody to write into it. None as well where nothing can be
    learned, as of a dangling link: whoever opens that is told why.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return None
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "no file")


def some(names: Iterable[object], most: int = 10) -> str:
    """The first names and how many more there are, for messages."""
    texts = [str(name) for name in names]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


class naming:
    """A context that puts a file's name before the reason of a DataError; an empty one leaves the reason alone.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError) and self._name:
            raise DataError(f"{self._name}: {error}") from None
