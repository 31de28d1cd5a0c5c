"""What a job says while it works, and how long each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from medfedpure.job.forecast import Forecast, duration

Say = Callable[[str], None]


@dataclass
class Journal:
    """Says what happens and how long it will take; `seconds` holds the wall clock of every phase by name."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)
    forecast: Forecast = field(default_factory=lambda: Forecast({}))

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Say `text` with the forecast, and add the seconds spent inside to the phase."""
        expected, left = self.forecast.of(name), self.forecast.left()
        about = [] if expected is None else [f"about {duration(expected)}"]
        about += [f"{duration(left)} to the end"] if left else []
        self.say(f"{text} [{', '.join(about)}]" if about else text)
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.forecast.over(name, took)
