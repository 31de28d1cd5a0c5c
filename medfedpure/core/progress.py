"""Progress without a dependency: loops report steps, predictions report batches, whoever wants to see them listens.

The command line installs a listener that draws bars; a library user sees nothing unless they
install one with `listening`. An `Observer` is told what a defence decides, and never sees an image: a query
monitor, a service's log and the bar of a long prediction are observers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Listener(Protocol):
    """Draws the progress of named loops."""

    def started(self, description: str, total: int) -> int:
        """A loop of `total` steps begins; returns a handle."""

    def advanced(self, handle: int, note: str = "") -> None:
        """One step is done."""

    def finished(self, handle: int) -> None:
        """The loop is over, also when it failed."""


_listener: ContextVar[Listener | None] = ContextVar("medfedpure_progress", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Send the progress of everything inside the block to a listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def track(steps: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield from `steps` and report each finished one."""
    listener = _listener.get()
    if listener is None:
        yield from steps
        return
    handle = listener.started(description, total)
    try:
        for step in steps:
            yield step
            listener.advanced(handle)
    finally:
        listener.finished(handle)


@dataclass(frozen=True)
class Observation:
    """What a defence found in one batch of `N` images, before anything is purified.

    Attributes:
        ids: `(N,)` int64 on the CPU.
        scores: `(N,)` of the detector, where the images are, higher = more suspicious; None without a detector.
        flagged: `(N,)` bool on the CPU.
        seconds: wall clock since the last batch was found, or since the call began.
    """

    ids: Tensor
    scores: Tensor | None
    flagged: Tensor
    seconds: float


class Observer(Protocol):
    """Is told of every batch that a defence reads in `predict`, in order; what it raises ends the call."""

    def observe(self, found: Observation) -> None:
        """One batch was classified, scored and decided on."""


class Bar:
    """An observer that reports each batch as a step to the listener of this context."""

    def __init__(self, listener: Listener, handle: int) -> None:
        self.listener, self.handle = listener, handle

    def observe(self, found: Observation) -> None:
        """One step further."""
        del found
        self.listener.advanced(self.handle)


@contextmanager
def observing(observer: Observer | None, description: str, batches: int | None) -> Iterator[list[Observer]]:
    """Who is to be told inside the block: the observer, and a bar where someone listens and the number is known."""
    told = [] if observer is None else [observer]
    listener = _listener.get()
    if listener is None or not batches or batches < 2:
        yield told
        return
    handle = listener.started(description, batches)
    try:
        yield [*told, Bar(listener, handle)]
    finally:
        listener.finished(handle)


class Lines:
    """A listener that tells in plain lines how long each loop will take, once it knows, how far it is, what it took.

    A loop shorter than `patience` says nothing. Who listened where this was made is told everything too.

    Args:
        say: takes a line; by default it is written to stderr.
        patience: seconds before a forecast.
        every: seconds between lines after it.
        clock: seconds.

    Example:
        >>> from medfedpure.core.progress import Lines, listening, track
        >>> seconds = iter(range(0, 100, 10))
        >>> with listening(Lines(print, clock=lambda: next(seconds))):
        ...     total = sum(track(range(5), "training", 5))
        training: 5 steps, about 50 s
        training: 4 of 5 steps, about 10 s left
        training: took 60 s
    """

    def __init__(
        self,
        say: Callable[[str], object] | None = None,
        *,
        patience: float = 2.0,
        every: float = 15.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.say = say or (lambda line: sys.stderr.write(f"{line}\n"))
        self.patience = patience
        self.every = every
        self.clock = clock
        self.beside = _listener.get()
        self._loops: list[_Loop] = []

    def started(self, description: str, total: int) -> int:
        """Note the time."""
        other = 0 if self.beside is None else self.beside.started(description, total)
        now = self.clock()
        self._loops.append(_Loop(description, total, now, other, said=now))
        return len(self._loops) - 1

    def advanced(self, handle: int, note: str = "") -> None:
        """From the second step on, once the patience is over, say what all steps will take; later how far it is."""
        loop = self._loops[handle]
        if self.beside is not None:
            self.beside.advanced(loop.other, note)
        loop.done += 1
        now = self.clock()
        if loop.done == 1:
            loop.first = now
        elif loop.done < loop.total and now - loop.said >= (self.every if loop.told else self.patience):
            # The first step pays for warming up, so it is no measure of the others.
            rest = (now - loop.first) / (loop.done - 1) * loop.left
            text = f"{loop.total:,} steps, about {_time(now - loop.begun + rest)}"
            if loop.told:
                text = f"{loop.done:,} of {loop.total:,} steps, about {_time(rest)} left"
            self.say(f"{loop.description}: {text}")
            loop.told, loop.said = True, now

    def finished(self, handle: int) -> None:
        """Say what it took, where a forecast was given."""
        loop = self._loops[handle]
        if self.beside is not None:
            self.beside.finished(loop.other)
        if loop.told:
            self.say(f"{loop.description}: took {_time(self.clock() - loop.begun)}")


@dataclass
class _Loop:
    """What `Lines` knows of a loop; `other` is its handle at the listener beside."""

    description: str
    total: int
    begun: float
    other: int
    done: int = 0
    first: float = 0.0
    said: float = 0.0
    told: bool = False

    @property
    def left(self) -> int:
        return self.total - self.done


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"
