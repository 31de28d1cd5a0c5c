"""Functions of a network, compiled where a chain computes so.

Without a gradient on CUDA a batch is padded to the next of a few sizes, so that shapes are static: each size is
compiled once, and its kernels are recorded as one CUDA graph that is replayed. A batch of one is such a size. Batches
of attacks shrink image by image, and backward passes are not recorded: there, and on the CPU, one compilation serves
all sizes, which excludes CUDA graphs, and nothing is padded. No row of a batch sees another, so padding changes no
answer.

What cannot be compiled is computed as it is written, after one warning. So is, without one, a network while somebody
has hooks in it, which a compiled one would not call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from medfedpure.acceleration.counted import is_watched, passing
from medfedpure.core.errors import CompilationWarning, MedFedPureError

_asked: ContextVar[bool] = ContextVar("compiled", default=False)


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Inside the block `prepared` compiles: on, or not."""
    before = _asked.set(on)
    try:
        yield
    finally:
        _asked.reset(before)


def prepared(function: Callable[..., Tensor], network: Any, *, what: str, **constants: Any) -> Callable[..., Tensor]:
    """`function(network, *rows, **constants)` of the rows alone, compiled inside `compiling(True)`.

    Args:
        function: a plain function without a closure, which asks the network once; its rows are tensors `(N, ...)`, and
            so is its answer.
        network: compiled only where it is a module.
        what: it is, in words.
        constants: the function is compiled anew for other ones.
    """
    if not _asked.get() or not isinstance(network, nn.Module):
        return partial(function, network, **constants)
    own = _compiled.setdefault(network, {})
    key = (function, *sorted(constants.items(), key=lambda item: item[0]))
    if key not in own:
        own[key] = Compiled(function, what, constants)
    return partial(own[key], network)


def padded_size(rows: int) -> int:
    """The next of the sizes 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, ... that holds so many rows."""
    power = 1 << (rows - 1).bit_length()
    between = power * 3 // 4
    return between if between >= 24 and rows <= between else power


def plan(device: torch.device, gradient: bool) -> dict[str, Any]:
    """What torch.compile is told on a device: CUDA graphs of static shapes, but one shape for all with a gradient."""
    graphs = device.type == "cuda" and not gradient
    return {"dynamic": False, "mode": "reduce-overhead"} if graphs else {"dynamic": True}


class Compiled:
    """One function of a network, compiled at its first call for each size, or for all.

    Args:
        function: see `prepared`.
        what: it is, in words.
        constants: of the function.
    """

    def __init__(self, function: Callable[..., Tensor], what: str, constants: dict[str, Any]) -> None:
        self.function, self.what, self.constants = function, what, constants
        self.failed = False
        self._made: dict[tuple[int, bool], Callable[..., Tensor]] = {}

    def __call__(self, network: nn.Module, *rows: Tensor) -> Tensor:
        """The answer `(N, ...)` to rows `(N, ...)`.

        Warns:
            CompilationWarning: once, where it cannot be compiled here.
        """
        if self.failed or not len(rows[0]) or is_watched(network):
            return self.function(network, *rows, **self.constants)
        try:
            with passing(network, len(rows[0])):
                return self._fast(network, *rows)
        except (MedFedPureError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:  # all that a compiler raises; others steer, such as a checkpoint's early stop
            found = self.function(network, *rows, **self.constants)  # raises what is wrong with the call itself
            self.failed = True
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            warnings.warn(
                f"{self.what} could not be compiled ({reason}): it is computed uncompiled from now on, with the same "
                'answers, but slower. Install what the compiler lacks, or say chain.accelerate("off") or '
                "Acceleration(compile=False)",
                CompilationWarning,
                stacklevel=2,
            )
            return found

    def _fast(self, network: nn.Module, *rows: Tensor) -> Tensor:
        count = len(rows[0])
        gradient = torch.is_grad_enabled() and any(
            part.requires_grad for group in (rows, network.parameters()) for part in group
        )
        how = plan(rows[0].device, gradient)
        if how["dynamic"]:
            return self._for(0, gradient, how)(network, *rows, **self.constants)
        size = padded_size(count)
        function = self._for(size, gradient, how)
        if "mode" in how:
            torch.compiler.cudagraph_mark_step_begin()
        found = function(network, *(padded(part, size) for part in rows), **self.constants)
        if not isinstance(found, Tensor) or found.shape[:1] != (size,):
            # no answer for each row, of which nothing can be cut off: whoever asked says what is wrong with it
            return self.function(network, *rows, **self.constants)
        return found[:count].clone()  # the next replay of a graph writes where this one did

    def _for(self, size: int, gradient: bool, how: dict[str, Any]) -> Callable[..., Tensor]:
        """Compiled for one size, or 0 for all.

        torch keeps a few compilations of one code object, and runs it uncompiled after that without a word: each has a
        code object of its own.
        """
        key = size, gradient
        if key not in self._made:
            same = self.function.__globals__, self.function.__name__, self.function.__defaults__
            own = FunctionType(self.function.__code__.replace(), *same)
            own.__kwdefaults__ = self.function.__kwdefaults__
            made = torch.compile(own, **how)
            self._made[key] = _for_gradients(made) if gradient else made
        return self._made[key]


def padded(rows: Tensor, size: int) -> Tensor:
    """Rows `(N, ...)` and copies of the first up to `(size, ...)`."""
    missing = size - len(rows)
    return rows if not missing else torch.cat((rows, rows[:1].expand(missing, *rows.shape[1:])))


def _for_gradients(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled so that two gradients of one look may be asked for, as aware attacks do."""
    from torch._functorch import config

    if hasattr(config, "donated_buffer"):  # older torch donates none
        # Backward passes would else overwrite what the second needs. torch looks at this when they run, not where they
        # were compiled, so that it can only be said for the whole program; it costs memory alone.
        config.donated_buffer = False

    def call(*given: Any, **constants: Any) -> Tensor:
        with warnings.catch_warnings():
            # the compiler looks at tensors on their way, which is no fault of the caller's
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
            return function(*given, **constants)

    return call


_compiled: WeakKeyDictionary[nn.Module, dict[Any, Compiled]] = WeakKeyDictionary()
