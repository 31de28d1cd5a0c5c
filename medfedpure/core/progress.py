"""Progress without a dependency: loops report steps, predictions report batches, whoever wants to see them listens.

The command line installs a listener that draws bars; a library user sees nothing unless they
install one with `listening`. An `Observer` is told what a defence decides, and never sees an image: a query
monitor, a service's log and the bar of a long prediction are observers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
