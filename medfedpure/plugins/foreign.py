"""What adapters to libraries need that draw from global random generators."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from medfedpure.core.streams import isolated_rng

_lock = threading.RLock()
"""Global generators are one for the process. An attack of a library may call a purifier of one, so it can be nested."""


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random inside the block; restore them after it.

    One thread at a time; a block inside a block has its own seed, and leaves the outer one's state as it was.
    """
    with _lock:
        numpy_state: Any = np.random.get_state()
        python_state = random.getstate()
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            with isolated_rng(seed):
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
