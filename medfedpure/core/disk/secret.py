"""Files that hold a secret, as a key or a token: whole or not there, and read by their owner alone."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
import tempfile
from pathlib import Path

from medfedpure.core.errors import ArtifactError

LEAST, MOST = 16, 4096
"""Bytes of a secret."""


def read_secret(path: Path) -> bytes:
    """What a file says that nobody else may read; at most `MOST` bytes and one, however long it is.

    A pipe is read as well: what a shell puts in place of a file is nobody else's.

    Raises:
        ArtifactError: others may read or write it, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077 and _has_modes(path):
                raise ArtifactError(
                    f"{path} can be read by others (its mode is {stat.S_IMODE(mode):04o}; 0600 is wanted): say "
                    f"chmod 600 {shlex.quote(str(path))}, and draw another one if somebody may have seen it"
                )
            return stream.read(MOST + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error


def key_in(path: Path) -> bytes:
    """The key in a file; where there is none, 32 bytes are drawn and written, readable by their owner alone.

    Raises:
        ArtifactError: it can be read by others, cannot be read or written, is no file, or no key of `LEAST` to `MOST`
            bytes.
    """
    try:
        if not path.exists():
            _draw(path)
        if not stat.S_ISREG(path.stat().st_mode):  # whoever opens a named pipe waits for a writer
            raise ArtifactError(f"{path} is no file; one of {LEAST} or more random bytes is wanted")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read or written: {error.strerror}") from error
    key = read_secret(path)
    if not LEAST <= len(key) <= MOST:
        raise ArtifactError(f"{path} holds {len(key)} bytes; {LEAST} to {MOST} are wanted: restore it")
    return key


def _has_modes(path: Path) -> bool:
    """Whether the file system keeps who may read a file; if not, as on Windows, chmod mends nothing."""
    try:
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent) as beside:  # of mode 0600
            return not os.fstat(beside.fileno()).st_mode & 0o077
    except OSError:
        return True  # nothing can be written there, as where secrets are mounted


def _draw(path: Path) -> None:
    """A new key at a path, whole or not at all; where another process was faster, its key stays."""
    made = path.with_name(f".{secrets.token_hex(8)}.key")
    try:
        _write_key(made)
        try:
            os.link(made, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            _write_key(path)
    finally:
        made.unlink(missing_ok=True)


def _write_key(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secrets.token_bytes(32))
        stream.flush()
        os.fsync(stream.fileno())
