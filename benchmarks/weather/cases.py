"""One case of bad weather: what is done, what happens, and what must be as it was before."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medfedpure.core.errors import MedFedPureError

LONGEST, MOST_MEMORY = 120, 2048
"""Seconds that a case may take, and MiB by which the process may grow meanwhile."""
_NOBODY = 65534


class Wrong(Exception):
    """What happened is not what has to."""


@dataclass(frozen=True)
class Seen:
    """What a case saw.

    Attributes:
        happened: the class and the first line of an error, or the answer.
        kept: what was looked at and was as before.
    """

    happened: str
    kept: str = "nothing was written"


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        area: where it belongs.
        name: what is done, for people.
        kind: a bad input, or a fault of a machine, a network or a process.
        act: does it in an empty folder; raises where anything is wrong.
    """

    area: str
    name: str
    kind: Literal["input", "fault"]
    act: Callable[[Path], Seen]


class Hung(BaseException):
    """A case took too long; no handler of ordinary errors takes it."""


def asked(case: Case) -> dict[str, Any]:
    """Do a case in a folder of its own; what is said of it in the results."""

    def late(*_: object) -> None:
        raise Hung(f"nothing within {LONGEST} seconds")

    before, began = _memory(), time.monotonic()
    previous = signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory(prefix="weather-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Path(folder).chmod(0o755)
        signal.alarm(LONGEST)
        try:
            seen, fault = case.act(Path(folder)), ""
        except (Exception, Hung) as error:
            seen, fault = Seen(line_of(error), ""), "it hangs" if isinstance(error, Hung) else "not the project's error"
            if isinstance(error, Wrong | MedFedPureError):
                fault = "not what has to happen"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        happened, kept = (_anywhere(text, folder) for text in (seen.happened, seen.kept))
    grown = max(_memory("VmHWM") - before, 0)
    return {
        "area": case.area,
        "name": case.name,
        "kind": case.kind,
        "happened": happened[:300],
        "kept": kept,
        "seconds": round(time.monotonic() - began, 2),
        "grown_mib": grown,
        "fault": fault or ("memory" if grown > MOST_MEMORY else ""),
    }


def _anywhere(text: str, folder: str) -> str:
    """A text without what is another one on every machine: folder, host, numbers of processes."""
    plain = text.replace(folder, "...").replace(socket.gethostname(), "HOST")
    return re.sub(r"\bpid \d+", "pid PID", plain)


def line_of(error: BaseException) -> str:
    """The class of an error and its first line, without what a terminal would obey."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line if line.isprintable() else ascii(line)[1:-1]}"


def refused(call: Callable[[], object]) -> str:
    """The project's own error that a call raises; Wrong where it raises none, and others go on."""
    try:
        found = call()
    except MedFedPureError as error:
        return line_of(error)
    raise Wrong(f"nothing was said; the answer is {found!r:.80}")


def read_or_refused(call: Callable[[], object], answer: str = "read") -> str:
    """The same where an answer is right as well."""
    try:
        call()
    except MedFedPureError as error:
        return line_of(error)
    return answer


@contextmanager
def untouched(*places: Path) -> Iterator[None]:
    """Wrong where files of these folders, or their number, changed within the block."""
    before = [_contents(place) for place in places]
    yield
    for place, had in zip(places, before, strict=True):
        has = _contents(place)
        changed = sorted(name for name in had.keys() | has.keys() if had.get(name) != has.get(name))
        if changed:
            raise Wrong(f"changed below {place}: {', '.join(changed[:5])}")


def _contents(place: Path) -> dict[str, str]:
    """Of each regular file its hash, of everything else that it is there."""
    found = {}
    for path in sorted(place.rglob("*")):
        regular = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
    return found


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the right of a superuser to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _memory(what: str = "VmRSS") -> int:
    """MiB that this process holds; asked for what it holds now, the most that it held begins anew."""
    if what == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    told = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in told if line.startswith(f"{what}:"))
