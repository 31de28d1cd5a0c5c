"""What test workers hold: calls that answer, fail, die, warn or wait."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.errors import InputError, ProbabilitiesWarning


@dataclass
class Labour:
    """A number, and what can be done with it."""

    number: int = 0
    baggage: Any = None

    def arrive(self, device: torch.device) -> None:
        """Nothing is moved."""

    def add(self, images: Tensor) -> Tensor:
        """Images `(N, ...)` and the number."""
        return images + self.number

    def about(self) -> dict[str, Any]:
        """The process that does it."""
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        omp = os.environ.get("OMP_NUM_THREADS")
        return {"pid": os.getpid(), "threads": torch.get_num_threads(), "omp": omp, "deaf": ignored}

    def refuse(self) -> None:
        """An error of ours."""
        raise InputError("no such images")

    def break_down(self) -> None:
        """An error that cannot travel."""
        error = ValueError("broken")
        error.args = (lambda: None,)
        raise error

    def die(self) -> None:
        """As the system ends a process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def warn(self) -> int:
        """A warning of ours."""
        warnings.warn("rows sum to 1", ProbabilitiesWarning, stacklevel=2)
        return 1

    def warn_in_its_own_way(self) -> int:
        """A warning of a class that nobody else can have, and one that cannot be made from a text."""

        class Local(ProbabilitiesWarning):
            pass

        warnings.warn("rows sum to 2", Local, stacklevel=2)
        warnings.warn(Counted("rows", 3), stacklevel=2)
        return 1

    def break_down_at_home(self) -> None:
        """An error of a class that stands in the script itself."""

        class Mine(ValueError):
            pass

        Mine.__module__, Mine.__qualname__ = "__mp_main__", "Mine"
        sys.modules["__mp_main__"].Mine = Mine  # type: ignore[attr-defined]
        raise Mine("of the script")

    def wait(self, seconds: float) -> float:
        """So long."""
        time.sleep(seconds)
        return seconds


class Counted(UserWarning):
    """Is made from two things."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} sum to {number}")


class Unwelcome:
    """Can be packed, and cannot be unpacked elsewhere."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _only_here, (os.getpid(),)


def _only_here(pid: int) -> Unwelcome:
    if pid != os.getpid():
        raise AttributeError("module '__main__' has no attribute 'MyNet'")
    return Unwelcome()
