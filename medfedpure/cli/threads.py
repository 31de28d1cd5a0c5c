"""How many threads a command computes with: chosen once, before it starts, and kept where results are resumed."""

from __future__ import annotations

import os
from pathlib import Path

from medfedpure.core.errors import ConfigError

_MOST = 8
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may use: those that it is bound to; at most OMP_NUM_THREADS, and a container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if said.isdecimal() and int(said) > 0:
        bound = min(bound, int(said))
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(bound, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no quota
        return bound


def idle_cores() -> int:
    """Usable cores that nobody was busy on in the last minute; 1 to 8.

    Threads that wait for one another at every operation lose far more to a busy core than they win: two on two
    cores, of which one is busy, are several times slower than one.
    """
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(1, min(usable_cores() - busy, _MOST))


def use_threads(asked: int | None, recorded: int | None = None) -> int:
    """Tell torch how many threads to compute with, and return it; freed memory stays with the process from now on.

    Args:
        asked: by the option.
        recorded: what results that are continued were computed with.

    Raises:
        ConfigError: another number is asked for than was recorded.
    """
    import torch

    from medfedpure.training.allocator import keep_freed_memory

    if asked is not None and recorded is not None and asked != recorded:
        raise ConfigError(
            f"what is continued was computed with {recorded} threads, and {asked} may round differently: leave out "
            "--threads, or write into another folder"
        )
    keep_freed_memory()
    chosen = asked or recorded or idle_cores()
    torch.set_num_threads(chosen)
    return chosen
