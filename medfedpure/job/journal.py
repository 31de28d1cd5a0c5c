"""What a job says while it works, and how long each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Say = Callable[[str], None]


@dataclass
class Journal:
    """Says what happens; `seconds` holds the wall clock of every phase by name."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Say `text`, and add the seconds spent inside to the phase."""
        self.say(text)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
