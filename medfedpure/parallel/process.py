"""A worker process, seen from whoever starts it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from medfedpure.parallel.worker import serve

PATIENCE = 10.0
"""Seconds that a worker has to end when it is told to."""


@dataclass(eq=False)
class Process:
    """A worker on a device, and the way to it."""

    device: str
    process: SpawnProcess
    pipe: Connection

    @classmethod
    def start(cls, device: str, threads: int) -> Process:
        """A fresh interpreter, in which torch has so many threads from the start, and which Ctrl-C does not reach."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, device, threads, str(Path.cwd()))
        process = context.Process(target=serve, args=arguments, daemon=True, name=f"medfedpure on {device}")
        with _environment({"OMP_NUM_THREADS": str(threads)}), _deaf_to_interrupts():
            process.start()
        theirs.close()
        return cls(device, process, ours)

    def fate(self) -> str:
        """How it ended, in words."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Wait until it has ended as it was told, and end it for sure where that takes long."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """For what is started inside the block: torch reads them when it is loaded."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started inside the block never sees Ctrl-C; one that comes meanwhile is seen here after it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
