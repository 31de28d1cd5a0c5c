"""What is asked of workers: tasks, and the jobs that ask for them.

A job is a generator. It yields tasks that may be done at once, anywhere and in any order, and is sent their answers.
So what one job does is decided by its own answers alone, and never by who was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from medfedpure.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Task:
    """One call of what the workers hold.

    Attributes:
        call: name of its method.
        arguments: of the method; tensors on the CPU.
        begins: is told when it is handed out, where anybody is.
        ends: is given the answer as soon as it is there, where anybody is.
        weight: of those that wait the heaviest is handed out first, of equal ones the first.
    """

    call: str
    arguments: tuple[Any, ...] = ()
    begins: Callable[[], None] | None = None
    ends: Callable[[Any], None] | None = None
    weight: float = 0.0


Job = Generator[Sequence[Task], list[Any], T]
"""Yields tasks and is sent their answers; where it yields none, it waits until others got on."""


def asked(task: Task) -> Job[Any]:
    """The job of one task, which ends with its answer."""
    (answer,) = yield [task]
    return answer


def devices_of(devices: Sequence[str] | None, processes: int | None) -> list[str]:
    """The device of each worker; none where this process does all by itself.

    Args:
        devices: one worker for each: "cuda:0", "cuda:1".
        processes: so many workers on the CPU; 1 or None = none.

    Raises:
        ConfigError: both are given, a number below 1, no device, no name of one, or devices of different kinds, which
            round differently.
    """
    if devices is not None and processes is not None:
        raise ConfigError("devices name one worker each, and processes are workers on the CPU: give one of the two")
    if devices is None:
        if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
            raise ConfigError(f"processes is a whole number from 1; got {processes!r}")
        return ["cpu"] * processes if processes is not None and processes > 1 else []
    if isinstance(devices, str) or not devices:
        raise ConfigError(f'devices is a list such as ["cuda:0", "cuda:1"]; got {devices!r}')
    kinds = set()
    for name in devices:
        try:
            kinds.add(torch.device(name).type)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f'a device is named "cpu", "cuda:0", "cuda:1", ...; got {name!r}') from error
    if len(kinds) > 1:
        raise ConfigError(f"devices of one kind are wanted: {' and '.join(sorted(kinds))} give different answers")
    return [str(name) for name in devices]


def threads_of(threads: int | None, workers: int) -> int:
    """Of each worker: what is given, or this process's share.

    Raises:
        ConfigError: a number below 1, or one without workers.
    """
    if threads is None:
        return max(1, torch.get_num_threads() // max(1, workers))
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads is a whole number from 1; got {threads!r}")
    if not workers:
        raise ConfigError("threads are those of workers: give devices or processes too, or call torch.set_num_threads")
    return threads


def once(act: Callable[[], None]) -> Callable[[], None]:
    """Does it the first time that it is called."""
    left = [act]

    def again() -> None:
        if left:
            left.pop()()

    return again
