"""Files and folders that are whole at every moment: written beside their place, and put there in one step."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from medfedpure.core.errors import ArtifactError

DOCUMENT = "medfedpure.json"
_PATIENCE = 10.0
"""Seconds that a save waits for readers, and a reader for a save."""
T = TypeVar("T")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder beside its place; it takes its place, in one step, only when the block succeeds.

    An existing folder is replaced only when medfedpure wrote it; a symbolic link is followed. A save that is killed
    loses nothing: the next save or load clears up after it.

    Raises:
        ArtifactError: the folder is not ours, or cannot be written: disk full, read-only, no permission.
    """
    target = Path(os.path.realpath(folder))
    with writing_to(folder):
        steadily(target, lambda: _check_ours(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        work, handle = _workplace(target, Path.mkdir)
        try:
            yield work
            steadily(target, lambda: _check_ours(target))
            _replace(target, work)
        finally:
            _close(handle)
            shutil.rmtree(work, ignore_errors=True)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file beside its place, flush it to disk, then rename it; a symbolic link is followed.

    Args:
        path: in an existing folder.
        content: all of it.
        mode: from which the umask takes away.

    Raises:
        ArtifactError: it cannot be written: disk full, read-only, no permission.
    """
    target = Path(os.path.realpath(path))
    with writing_to(path):
        work, handle = _workplace(target, lambda place: place.touch(mode, exist_ok=False))
        try:
            with work.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            work.replace(target)
        finally:
            _close(handle)
            work.unlink(missing_ok=True)


def put_bytes(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """As `write_bytes`, for the one writer of a folder of very many files: the folder is not looked at, nor any link.

    Args:
        path: in an existing folder; another one who writes it at this moment is not noticed.
        content: all of it.
        mode: from which the umask takes away.

    Raises:
        ArtifactError: it cannot be written: disk full, read-only, no permission.
    """
    work = path.with_name(f".{path.name}.part")
    with writing_to(path):
        try:
            handle = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)


def steadily(folder: str | Path, read: Callable[[], T]) -> T:
    """What `read` makes of a saved folder, all of it from one save, also while somebody saves there.

    Savers wait for readers a while; where the folder was replaced all the same, it is read again.
    """
    target = Path(os.path.realpath(folder))
    for attempt in range(100):
        _recover(target)
        handle = _held_in_time(target, shared=True)
        before = _identity(target)
        try:
            found = read()
        except Exception:
            absent_for_a_moment = before is None and attempt < 5
            if _identity(target) == before and not absent_for_a_moment:
                raise
        else:
            if _identity(target) == before:
                return found
        finally:
            _close(handle)
    raise ArtifactError(f"{folder} was replaced again and again while it was read: load it when nobody saves there")


def _identity(path: Path) -> tuple[int, int, int] | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        facts = path.stat()
        return facts.st_dev, facts.st_ino, facts.st_ctime_ns
    return None


def make_folder(folder: str | Path) -> None:
    """Make a folder and those above it; raises ArtifactError where a file is in the way, or the disk refuses."""
    with writing_to(folder):
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ArtifactError(f"{folder} is a file, and a folder is wanted: choose another place")
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)


@contextmanager
def writing_to(path: str | Path) -> Iterator[None]:
    """Say in words what the disk refuses inside the block; raises ArtifactError with the path and the reason."""
    try:
        yield
    except (OSError, ArtifactError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or cause
        raise ArtifactError(f"{path} cannot be written ({reason}): make room, or choose another place") from cause


def _check_ours(target: Path) -> None:
    if target.exists() and not (target / DOCUMENT).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target} exists and was not written by medfedpure: choose another folder")


def _prefix(target: Path) -> str:
    """Of our temporary names beside a target; short, since a name may have 255 bytes at most."""
    return f".medfedpure-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"


def _workplace(target: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    """Something new beside the target, locked while its maker lives; what killed makers left there is removed."""
    for leftover in target.parent.glob(f"{_prefix(target)}*"):
        if leftover.suffix != ".old" or target.exists():
            _remove_unless_held(leftover)
    while True:
        work = target.with_name(_prefix(target) + secrets.token_hex(4))
        make(work)
        with suppress(BlockingIOError, FileNotFoundError):  # raised where somebody took it for a leftover
            return work, _held(work)


def _remove_unless_held(leftover: Path) -> None:
    with suppress(OSError):
        if (handle := _held(leftover)) is not None:
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            _close(handle)


def _held(path: Path, *, shared: bool = False) -> int | None:
    """A handle under a lock that ends with its holder; None where there are no such locks.

    Raises:
        BlockingIOError, FileNotFoundError: somebody else holds it, or it is gone.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if not _is_open_as(handle, path):
            raise FileNotFoundError(path)
    except OSError as error:
        _close(handle)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None
    return handle


def _held_in_time(path: Path, *, shared: bool = False) -> int | None:
    """The same; None as well where others hold it too long, or where it does not exist."""
    deadline = time.monotonic() + _PATIENCE
    while path.exists() and time.monotonic() < deadline:
        with suppress(BlockingIOError, FileNotFoundError):
            return _held(path, shared=shared)
        time.sleep(0.001)
    return None


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _replace(target: Path, work: Path) -> None:
    handle = _held_in_time(target)
    try:
        for attempt in range(100):
            try:
                if not target.exists():
                    work.rename(target)
                elif not _exchanged(work, target):
                    _replace_in_two_steps(target, work)
                return
            except OSError as error:
                others_save = error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
                if not others_save or attempt == 99:
                    raise
    finally:
        _close(handle)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux" or (rename := getattr(ctypes.CDLL(None), "renameat2", None)) is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _replace_in_two_steps(target: Path, work: Path) -> None:
    old = work.with_name(work.name + ".old")
    target.rename(old)
    try:
        work.rename(target)
    except BaseException:
        with suppress(OSError):  # raised where another save has taken the place
            old.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    """Bring back what a save left that was killed between its two steps; wait for one that is between them now."""
    deadline = time.monotonic() + _PATIENCE
    patterns = (f"{_prefix(target)}*.old", f".{glob.escape(target.name)}.????????.old")  # the latter of version 0.1
    while not target.exists() and time.monotonic() < deadline:
        found = [old for pattern in patterns for old in target.parent.glob(pattern) if (old / DOCUMENT).is_file()]
        if not found:
            return
        for old in found:
            try:
                handle = _held(old)
            except (BlockingIOError, FileNotFoundError):
                continue
            try:
                if not target.exists():
                    old.rename(target)
            except OSError as error:
                raise ArtifactError(f"{target} was left as {old} by a killed save: rename it ({error})") from error
            finally:
                _close(handle)
        time.sleep(0.001)


def _is_open_as(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
