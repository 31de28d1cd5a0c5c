"""Freed memory stays with the process: on the CPU, half of a gradient's time may be spent on getting it back."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_MOST, _PAD = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed, for this process and from now on; True where it was told.

    PyTorch takes every activation on the CPU from `malloc`. As it comes, glibc gives blocks above some MiB back to the
    kernel when they are freed, and the next pass gets new pages, which are cleared and mapped one by one. With this, a
    pass finds the pages of the one before. No result changes. The process keeps about the most that it ever needed,
    and a part that was freed in between may stay unused.

    The command calls this at its start, and a client of a federation before its first round; other programs may, once,
    before they compute. Nothing is done, and False is returned, where the allocator is not glibc's (another system, or
    a `LD_PRELOAD`), or the environment sets it already (`MALLOC_...`, `GLIBC_TUNABLES`).

    Source: mallopt(3): M_MMAP_MAX 0, M_TRIM_THRESHOLD and M_TOP_PAD, one arena.
    """
    if not sys.platform.startswith("linux") or os.environ.get("LD_PRELOAD"):
        return False
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST, _TOP_PAD: _PAD, _ARENA_MAX: 1}
    taken = [library.mallopt(name, value) for name, value in settings.items()]
    return taken == [1] * len(settings)
