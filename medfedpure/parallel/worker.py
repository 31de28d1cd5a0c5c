"""One worker process: it rebuilds what it works with, does what it is handed, and ends with whoever started it."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from medfedpure.core.errors import MedFedPureError
from medfedpure.parallel.memory import held_here
from medfedpure.training.allocator import keep_freed_memory


class Work(Protocol):
    """What a worker works with: it travels pickled, and its methods are what can be asked for."""

    def arrive(self, device: torch.device) -> None:
        """Move to the worker's device, once, before the first call."""


@dataclass(frozen=True)
class Reply:
    """What a worker says.

    Attributes:
        answer: of the call; None where it failed.
        error: why it failed.
        trace: where that was, in words.
        stage: "unpack" and "arrive" before the first call, then "call".
        warned: categories and texts of warnings on the way.
        peak_memory_mb: the most that it has held at once.
    """

    answer: Any = None
    error: Exception | None = None
    trace: str = ""
    stage: str = "call"
    warned: list[tuple[type[Warning], str]] = field(default_factory=list)
    peak_memory_mb: float | None = None


def packed(value: Any) -> bytes:
    """A value with its tensors, for another process of this program."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=4)
    return buffer.getvalue()


def unpacked(data: bytes) -> Any:
    """What `packed` was given, its tensors on the CPU: only of what a process of this program sent, never a file."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)  # noqa: TID251 - as said above


def serve(pipe: Connection, device: str, threads: int, folder: str) -> None:
    """Receive a `Work`, then calls `(method, arguments)`, and reply to each until the pipe is closed.

    Args:
        pipe: to whoever started this process.
        device: to work on.
        threads: of torch.
        folder: where modules are looked for last, as the program's own may come from there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other's to answer
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    if folder not in sys.path:
        sys.path.append(folder)
    stage, work = "unpack", None
    try:
        work = unpacked(pipe.recv_bytes())
        stage = "arrive"
        work.arrive(torch.device(device))
    except Exception as error:
        pipe.send_bytes(packed(_failure(error, stage)))
        return
    pipe.send_bytes(packed(Reply(stage=stage)))
    while True:
        try:
            call, arguments = unpacked(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        pipe.send_bytes(_done(work, call, arguments, device))


def _done(work: Any, call: str, arguments: tuple[Any, ...], device: str) -> bytes:
    with warnings.catch_warnings(record=True) as caught:
        try:
            reply = Reply(getattr(work, call)(*arguments))
        except Exception as error:
            reply = _failure(error, "call")
    warned = [(_category(each.category, str(each.message)), str(each.message)) for each in caught]
    peak = held_here(torch.device(device))
    return packed(Reply(reply.answer, reply.error, reply.trace, reply.stage, warned, peak))


def _failure(error: Exception, stage: str) -> Reply:
    trace = "".join(traceback.format_exception(error))
    if not _travels(error):
        error = MedFedPureError(f"{type(error).__name__}: {error}")
    return Reply(error=error, trace=trace, stage=stage)


def _category(kind: type[Warning], text: str) -> type[Warning]:
    """The nearest one that can travel, and be made from a text."""
    for one in kind.__mro__:
        try:
            one(text)
        except Exception:  # noqa: S112 - it wants other arguments
            continue
        if issubclass(one, Warning) and _travels(one):
            return one
    return UserWarning


def _travels(value: Any) -> bool:
    """Whether whoever started this process can rebuild it; a script's own classes have another module's name there."""
    try:
        data = packed(value)
        unpacked(data)
    except Exception:
        return False
    return b"__mp_main__" not in data


def _leave_with_parent() -> None:
    """However the other ended: nobody is left to receive an answer."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
