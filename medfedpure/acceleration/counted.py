"""How many rows pass a network, compiled or as it is written.

What is compiled runs no hook that came after its compilation, and pads its batches. So a compiled call counts the rows
that it was given itself, one pass each, and a network with hooks of anybody else's is not computed compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class RowCount:
    """A forward hook.

    Attributes:
        rows: that have passed.
    """

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count what a module was given."""
        del module, output
        self.rows += len(inputs[0])


@contextmanager
def counting(networks: Iterable[nn.Module]) -> Iterator[RowCount]:
    """Counts the rows that pass these networks inside the block."""
    count = RowCount()
    handles = [network.register_forward_hook(count) for network in dict.fromkeys(networks)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def passing(network: nn.Module, rows: int) -> Iterator[None]:
    """Inside the block one pass of so many rows is computed, which counts where it succeeds; no hook sees it."""
    hooks = network._forward_hooks
    counts = {key: hook for key, hook in hooks.items() if isinstance(hook, RowCount)}
    for key in counts:
        del hooks[key]
    try:
        yield
    finally:
        hooks.update(counts)
    for count in counts.values():
        count.rows += rows


def is_watched(network: nn.Module) -> bool:
    """Whether anybody but a `RowCount` has hooks in a network."""
    return any(
        not isinstance(hook, RowCount)
        for part in network.modules()
        for hooks in (part._forward_pre_hooks, part._forward_hooks)
        for hook in tuple(hooks.values())  # other threads may come and go meanwhile
    )
