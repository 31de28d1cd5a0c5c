"""A log of verdicts to which lines are only ever added, each of which holds the hash of the one before.

No image, no name of a file: a scan is known by a keyed hash (HMAC-SHA256, RFC 2104) of its bytes. Whoever changes,
takes out or moves a line breaks the chain there. Whoever rewrites all lines to the end, or cuts the end off, does not,
which is why the last hash is worth keeping elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medfedpure.core.disk.secret import key_in
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.core.storage import locked
from medfedpure.data.readers.folders import what_else

FIRST = 64 * "0"
"""What stands for the hash before the first line."""
_TAIL = 2**20
"""Bytes at the end in which the last line lies."""


@dataclass(frozen=True)
class Chain:
    """What a check of a log found.

    Attributes:
        rows: lines that hold together, from the first.
        head: hash of the last of them.
        fault: where it breaks and how; None where all of it holds.
        cut_off: bytes behind the last whole line, of a row that was being written when the service ended.
    """

    rows: int
    head: str
    fault: str | None
    cut_off: int

    def describe(self) -> str:
        """One line for people."""
        if self.fault is not None:
            return f"{self.fault}; the {self.rows} rows before it hold together"
        rest = f", then {self.cut_off} bytes of a row that was cut off" if self.cut_off else ""
        return f"{self.rows} rows hold together{rest}; the last hash is {self.head}"


class AuditLog:
    """The log while a service writes to it: `with AuditLog(path) as log`.

    Args:
        path: of the log, which is continued. Beside it lies `NAME.key`, drawn where it is missing and readable by its
            owner only, under which scans are hashed.

    Raises:
        ArtifactError: on entering: its last line is no row of a log, somebody else writes to it, it or the key cannot
            be read or written, others can read the key too, or it is gone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._stream: io.FileIO | None = None
        self._key = b""
        self._number, self._head = 0, FIRST
        self._end, self._torn = 0, False

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(locked(self.path, "a service"))
            try:
                if other := what_else(self.path):
                    raise ArtifactError(f"{self.path} is {other}: the file of a log is wanted")
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                self._stream = opened.enter_context(io.FileIO(handle, "ab+"))
                _hold(handle, self.path)
                cut = self._continue(self._stream)
            except OSError as error:
                raise ArtifactError(f"the log {self.path} cannot be written: {error.strerror}") from error
            self.append([{"event": "continued", "cut_off": cut} if self._number else {"event": "begun"}])
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.append([{"event": "ended"}])
        finally:
            self._open.close()

    def name_of(self, content: bytes) -> str:
        """A scan as the log knows it: 64 hexadecimal digits."""
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, each with number, time and hashes, and wait until the disk has them; from any thread.

        Raises:
            ArtifactError: they cannot be written; what was written of them is taken back where that is possible. Or
                the file was moved, deleted or written to by somebody else: rows in it would be lost.
        """
        assert self._stream is not None
        with self._lock:
            if not _is_at(self._stream, self.path):
                raise ArtifactError(
                    f"the log {self.path} was moved or deleted meanwhile: put it back, or start the service anew"
                )
            number, head, lines = self._number, self._head, []
            for row in rows:
                number += 1
                line, head = _line({"row": number, "time": _now(), **row, "previous": head})
                lines.append(line)
            left = whole = b"".join(lines)
            try:
                self._take_back(self._stream)
                while left:
                    self._torn = True
                    left = left[self._stream.write(left) :]
                os.fsync(self._stream.fileno())
            except OSError as error:
                with suppress(OSError):
                    self._take_back(self._stream)
                raise ArtifactError(f"the log {self.path} cannot be written: {error.strerror}") from error
            self._number, self._head, self._end, self._torn = number, head, self._end + len(whole), False

    def _take_back(self, stream: io.FileIO) -> None:
        """Cut off what came onto the disk of rows that did not all.

        Raises:
            ArtifactError: the file does not end where its last row does: somebody else wrote to it, or cut it off.
            OSError: it cannot be cut off.
        """
        if self._torn:
            stream.truncate(self._end)
            self._torn = False
        if (size := stream.seek(0, os.SEEK_END)) != self._end:
            raise ArtifactError(
                f"the log {self.path} was {'cut off' if size < self._end else 'added to'} by somebody else meanwhile: "
                "restore it, or move it away and start the service anew"
            )

    def _continue(self, stream: io.FileIO) -> int:
        """Take up key, number and hash of the last whole line; a row behind it that was cut off goes. Its bytes."""
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - _TAIL))
        whole, ended, rest = stream.read().rpartition(b"\n")
        if ended:
            line = whole.rpartition(b"\n")[2] + b"\n"
            row = _row(line)
            if row is None:
                raise ArtifactError(f"{self.path} ends with a line that is no row of a log: check it, and name another")
            self._number, self._head = row["row"], row["hash"]
        elif rest[:1] not in (b"", b"{"):
            raise ArtifactError(f"{self.path} holds something else than a log: name another file")
        place = self.path.with_name(f"{self.path.name}.key")
        if self._number and not place.exists():
            raise ArtifactError(
                f"{place} is gone, under which the scans in {self.path} are hashed: restore it, or name another log"
            )
        self._key = key_in(place)
        self._end = end - len(rest)
        stream.truncate(self._end)
        return len(rest)


def check(path: str | Path, holds: str | None = None) -> Chain:
    """Read a log from its beginning to where it breaks.

    Args:
        path: of the log.
        holds: a hash that was kept elsewhere; a log without it was shortened or rewritten.

    Raises:
        ArtifactError: it cannot be read.
        ConfigError: what it has to hold is no hash.
    """
    if holds is not None and re.fullmatch("[0-9a-f]{64}", holds) is None:
        raise ConfigError(f"{holds[:80]!r} is no hash of a log: give all 64 digits, as `audit log` printed them")
    rows, head, seen = 0, FIRST, holds in (None, FIRST)
    if other := what_else(Path(path)):
        raise ArtifactError(f"{path} is {other}: the file of a log is wanted")
    try:
        with Path(path).open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    return _checked(rows, head, seen, len(line))
                if problem := _problem(line, rows + 1, head):
                    return Chain(rows, head, f"line {rows + 1} {problem}", 0)
                rows, head = rows + 1, json.loads(line)["hash"]
                seen = seen or head == holds
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    return _checked(rows, head, seen, 0)


def _checked(rows: int, head: str, seen: bool, cut_off: int) -> Chain:
    fault = None if seen else "the hash that was kept is of none of its rows: it was shortened or rewritten"
    return Chain(rows, head, fault, cut_off)


def _problem(line: bytes, number: int, head: str) -> str | None:
    """What is wrong with a line; None where nothing is."""
    row = _row(line)
    if row is None:
        return "was changed: its hash is not that of what it says"
    if row["previous"] != head:
        return "does not follow the line before it: a line was taken out, put in or moved"
    return None if row["row"] == number else f"says that it is row {row['row']}"


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line says; None unless it is byte for byte what is written of that."""
    try:
        row = json.loads(line)
        said = row.pop("hash")
        written, found = _line(row)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    sound = written == line and said == found and isinstance(row.get("row"), int) and "previous" in row
    return {**row, "hash": found} if sound else None


def _line(row: dict[str, Any]) -> tuple[bytes, str]:
    """A row as it is written, with the hash of all else in it; and that hash."""
    found = hashlib.sha256(json.dumps(row, allow_nan=False).encode()).hexdigest()
    return json.dumps({**row, "hash": found}, allow_nan=False).encode() + b"\n", found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _hold(handle: int, path: Path) -> None:
    """Hold the file itself, which others may reach by another name; `locked` holds the name alone.

    Raises:
        ArtifactError: somebody else holds it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ArtifactError(
            f"{path} is in use by a service that knows it by another name: give each service a log of its own"
        ) from error
    except OSError:
        return  # a file system without locks


def _is_at(stream: io.FileIO, path: Path) -> bool:
    """Whether an open file still stands at its path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False
