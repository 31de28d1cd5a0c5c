"""Progress bars for whatever reports progress."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medfedpure.cli.shown import shown


class Bars:
    """A progress listener that draws bars with rich; finished ones disappear."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet,
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
