"""Progress bars for whatever reports progress."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from medfedpure.cli.shown import shown


class Rate(ProgressColumn):
    """Steps a second of late, or seconds a step where those are slow."""

    def render(self, task: Task) -> Text:
        """Empty until it is known."""
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


class Bars:
    """A progress listener that draws bars with rich; finished ones disappear, and off a terminal there are none."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_interactive,  # rich would print an empty line
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def started(self, description: str, total: int) -> int:
        """Add a bar."""
        return int(self.progress.add_task(shown(description), total=total))

    def advanced(self, handle: int, note: str = "") -> None:
        """One step further."""
        del note
        self.progress.advance(handle)  # type: ignore[arg-type]

    def finished(self, handle: int) -> None:
        """Remove the bar."""
        self.progress.remove_task(handle)  # type: ignore[arg-type]
