"""What every section stands on: where it computes, how long, and pairs that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Work = Callable[[], object]
Figures = dict[str, float | int]


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly.

    Attributes:
        device: "cpu" or "cuda".
        quick: smallest sizes, one pair of each: whether it runs, no figure to publish.
        folder: for what one process hands to another; empty at the start.
        torchattacks: the Python of an environment with torchattacks, or None.
    """

    device: str
    quick: bool
    folder: Path
    torchattacks: str | None = None

    @property
    def cuda(self) -> bool:
        """Whether work is queued on a GPU."""
        return self.device == "cuda"

    def pairs(self, wanted: int) -> int:
        """How many pairs are measured where so many are wanted."""
        return 1 if self.quick else wanted

    def of(self, cpu: int, cuda: int, quick: int) -> int:
        """A number of images, by where and how thoroughly."""
        return quick if self.quick else cuda if self.cuda else cpu

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels of the small and of the large images."""
        return (32, 48) if self.quick else (64, 224)


def clock(device: str) -> tuple[Callable[[], float], str]:
    """What time is taken by, and its name.

    One thread's work is its processor time, which other work on the machine changes little; else what passes counts.
    """
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor time of one thread"
    return time.perf_counter, "time passed"


def seconds(work: Work, device: str) -> float:
    """Of one call, the device's work included."""
    now, _ = clock(device)
    if device == "cuda":
        torch.cuda.synchronize()
    start = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def in_turns(works: Mapping[str, Work], setting: Setting, rounds: int, *, warm: bool = False) -> dict[str, list[float]]:
    """Seconds of each, in rounds in which all take their turn; a first round is not counted unless all are `warm`.

    What answers its own seconds, as another process does, is believed.
    """

    def taken(work: Work) -> float:
        told: list[object] = []
        whole = seconds(lambda: told.append(work()), setting.device)
        return told[0] if isinstance(told[0], float) else whole

    for work in () if setting.quick or warm else works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(setting.pairs(rounds)):
        for name, work in works.items():
            found[name].append(taken(work))
    return found


def ratio(one: Sequence[float], other: Sequence[float]) -> Figures:
    """Median, least and most of one / other, round by round."""
    return spread([a / b for a, b in zip(one, other, strict=True)])


def paired(one: Work, other: Work, setting: Setting, pairs: int, *, warm: bool = False) -> Figures:
    """Median, least and most over interleaved pairs of time(one) / time(other)."""
    found = in_turns({"one": one, "other": other}, setting, pairs, warm=warm)
    return ratio(found["one"], found["other"])


def spread(values: Sequence[float]) -> Figures:
    """Median, least, most, and of how many."""
    ordered = [round(value, 6) for value in (statistics.median(values), min(values), max(values))]
    return {"median": ordered[0], "least": ordered[1], "most": ordered[2], "of": len(values)}
