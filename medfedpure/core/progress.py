"""Progress without a dependency: loops report steps, whoever wants to see them listens.

The command line installs a listener that draws bars; a library user sees nothing unless they
install one with `listening`. No function carries a progress argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

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
