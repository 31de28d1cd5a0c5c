"""A command of `benchmarks.many_files` watched from outside: its memory, its rows, and its end; on Linux."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY = 0.1
"""Seconds between two looks."""
WARM = 0.1
"""Of the rows; before they are there, and after the last, when the interpreter ends, nothing is asked to be flat."""
FLAT = 0.1
"""What (most - least) / median of the resident memory may be."""
NEAR = 1e-5
"""Rounding that batches of another make-up may cost: see the design, "Randomness is an argument"."""


@dataclass
class Watched:
    """What was seen of one process.

    Attributes:
        seconds: until its end.
        status: its exit status; negative where a signal ended it.
        looks: seconds, resident memory in MiB and rows that were whole, in time.
    """

    seconds: float = 0.0
    status: int = 0
    looks: list[tuple[float, float, int]] = field(default_factory=list)


def watch(command: Sequence[str], folder: Path, out: Path, log: Path, kill_at: int | None = None) -> Watched:
    """Run a command to its end, or end it by SIGKILL as soon as so many rows are there.

    Args:
        command: in words.
        folder: where it runs.
        out: the file of rows.
        log: gets what it says.
        kill_at: rows.
    """
    seen, start, rows = Watched(), time.perf_counter(), Lines(out)
    with log.open("ab") as stream, subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream) as process:
        while process.poll() is None:
            if (held := resident(process.pid)) is not None:
                seen.looks.append((round(time.perf_counter() - start, 2), round(held, 1), rows.count()))
                if kill_at is not None and seen.looks[-1][2] >= kill_at:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            time.sleep(EVERY)
        seen.status = process.wait()
    seen.seconds = time.perf_counter() - start
    return seen


def resident(pid: int) -> float | None:
    """VmRSS of a process in MiB; None of one that ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


class Lines:
    """Counts the lines of a file that grows, each once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._lines = path, 0, 0

    def count(self) -> int:
        """Whole lines that are there now."""
        if self._path.exists():
            with self._path.open("rb") as stream:
                stream.seek(self._read)
                new = stream.read()
            self._read, self._lines = self._read + len(new), self._lines + new.count(b"\n")
        return self._lines


def flatness(looks: Sequence[tuple[float, float, int]], rows: int) -> dict[str, Any]:
    """What was held from the first tenth of the rows to the last, in MiB, and how far from flat that is.

    Raises:
        RuntimeError: the process was over before anybody looked.
    """
    held = [memory for _, memory, done in looks if WARM * rows <= done < rows]
    if len(held) < 2:
        raise RuntimeError(f"{len(held)} looks after the first rows: give more files")
    median = statistics.median(held)
    spread = (max(held) - min(held)) / median
    found = {"looks": len(held), "median": median, "least": min(held), "most": max(held), "most_anywhere": 0.0}
    found["most_anywhere"] = max(memory for _, memory, _ in looks)
    return {**found, "spread": round(spread, 4), "flat": spread <= FLAT}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def once(rows: Sequence[dict[str, Any]], wanted: dict[str, int], broken: set[str]) -> dict[str, Any]:
    """Whether every image of every file has one row, those of broken files an error, and no other.

    Args:
        rows: in any order.
        wanted: rows of each file by its name.
        broken: names of files that cannot be read.
    """
    keys = Counter((row["file"], row["frame"]) for row in rows)
    due = Counter((name, None if name in broken else place) for name, count in wanted.items() for place in range(count))
    wrong = [row["file"] for row in rows if (row["error"] is not None) != (row["file"] in broken)]
    return {
        "rows": len(rows),
        "missing": sum((due - keys).values()),
        "twice_or_unasked": sum((keys - due).values()),
        "errors": sum(row["error"] is not None for row in rows),
        "errors_at_the_wrong_file": len(wrong),
        "holds": keys == due and not wrong,
    }


def compared(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How rows differ, in order: numbers that are computed may by `NEAR`, all else not at all."""
    largest, same, unlike = 0.0, 0, abs(len(rows) - len(others))
    for one, other in zip(rows, others, strict=False):
        same += one == other
        apart = [
            abs(one[key] - other[key])
            if isinstance(one[key], float) and isinstance(other.get(key), float)
            else 0.0
            if one[key] == other.get(key)
            else float("inf")
            for key in one
        ]
        unlike += max(apart) > NEAR
        largest = max([largest, *(each for each in apart if each != float("inf"))])
    return {"bit_for_bit": same, "largest_rounding": largest, "unlike": unlike, "holds": unlike == 0}
