"""Jobs dealt to worker processes, or done here by one: equal answers, whoever does what, and in the order of the jobs.

See `medfedpure.parallel.jobs` for what a job is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

from medfedpure.core.errors import ConfigError, MedFedPureError
from medfedpure.parallel.jobs import Job, Task, devices_of, threads_of
from medfedpure.parallel.process import Process
from medfedpure.parallel.worker import Reply, Work, packed, unpacked

T = TypeVar("T")
W = TypeVar("W", bound=Work)


class Alone(Generic[W]):
    """This process does all, job after job.

    Args:
        work: what is worked with, where it is.
    """

    size = 1

    def __init__(self, work: W) -> None:
        self.work = work
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left behind."""

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        """What each job ends with, in their order."""
        for job in jobs:
            answers: list[Any] | None = None
            try:
                while True:
                    answers = [self._done(task) for task in (next(job) if answers is None else job.send(answers))]
            except StopIteration as end:
                yield end.value
            finally:
                job.close()

    def _done(self, task: Task) -> Any:
        if task.begins is not None:
            task.begins()
        answer = getattr(self.work, task.call)(*task.arguments)
        if task.ends is not None:
            task.ends(answer)
        return answer

    @property
    def peak_memory_mb(self) -> float | None:
        """Whoever asks for this process's knows it."""
        return None


@dataclass(eq=False)
class _Running:
    """A job that has begun, and the answers that it waits for."""

    place: int
    job: Job[Any]
    answers: list[Any] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True, eq=False)
class _Asked:
    """A task and whose it is."""

    task: Task
    running: _Running
    slot: int


class Team(Generic[W]):
    """Worker processes, inside a `with` block: where it is left, however, all of them end.

    Args:
        work: what every worker gets a copy of.
        devices: one worker each.
        threads: torch threads of each.
        what: in an error, what could not travel, such as "the defences".

    Raises:
        ConfigError: it cannot be pickled; inside the block also: it cannot be rebuilt, or a device is none.
        MedFedPureError: a worker died.
    """

    def __init__(self, work: W, devices: Sequence[str], threads: int, what: str = "this") -> None:
        self.work, self.devices, self.threads, self.what = work, list(devices), threads, what
        self.size = len(self.devices)
        self.peaks: list[float] = []
        self._workers: list[Process] = []
        try:
            self._payload = packed(work)
        except Exception as error:
            raise ConfigError(
                f"{what} cannot be sent to other processes ({type(error).__name__}: {error}): define classes and "
                "functions of your own at the top of a module, not inside a function, and no lambda; or leave out "
                "devices and processes"
            ) from error

    def __enter__(self) -> Self:
        try:
            for device in self.devices:
                self._workers.append(Process.start(device, self.threads))
            for worker in self._workers:
                self._send(worker, self._payload)
            for worker in self._workers:
                self._check_arrived(worker, self._received(worker))
        except BaseException:
            self._end()
            raise
        self._payload = b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(idle=kind is None)

    @property
    def peak_memory_mb(self) -> float | None:
        """The most that one worker has held at once, in MiB."""
        return max(self.peaks, default=None)

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        """What each job ends with, in their order. Jobs are begun when there is nothing else to hand out.

        Raises:
            MedFedPureError: a worker died; otherwise what a task raised.
        """
        deal = _Deal(enumerate(jobs))
        first = 0
        try:
            while True:
                deal.go_on(self.size)
                while first in deal.ended:
                    yield deal.ended.pop(first)
                    first += 1
                if not deal.running:
                    return
                self._hand_out(deal)
                self._take_in(deal)
        finally:
            for running in deal.running:
                running.job.close()

    def _hand_out(self, deal: _Deal) -> None:
        for worker in self._workers:
            if worker not in deal.flying and deal.ready:
                asked = max(deal.ready, key=lambda one: one.task.weight)
                deal.ready.remove(asked)
                if asked.task.begins is not None:
                    asked.task.begins()
                deal.flying[worker] = asked
                self._send(worker, packed((asked.task.call, asked.task.arguments)))

    def _take_in(self, deal: _Deal) -> None:
        """Wait until something is there, and take all that is."""
        assert deal.flying, "every job waits for another"
        by_pipe = {worker.pipe: worker for worker in deal.flying}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            reply = self._received(worker)
            asked = deal.flying.pop(worker)
            if reply.error is not None:
                reply.error.add_note(f"in the worker process on {worker.device}:\n{reply.trace}")
                raise reply.error
            if asked.task.ends is not None:
                asked.task.ends(reply.answer)
            asked.running.answers[asked.slot] = reply.answer
            asked.running.left -= 1

    def _send(self, worker: Process, data: bytes) -> None:
        try:
            worker.pipe.send_bytes(data)
        except OSError as error:
            raise self._dead(worker) from error

    def _received(self, worker: Process) -> Reply:
        try:
            reply: Reply = unpacked(worker.pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._dead(worker) from error
        for category, text in reply.warned:
            warnings.warn(text, category, stacklevel=2)
        if reply.peak_memory_mb is not None:
            self.peaks.append(reply.peak_memory_mb)
        return reply

    def _check_arrived(self, worker: Process, reply: Reply) -> None:
        error = reply.error
        if error is None:
            return
        if reply.stage == "unpack":
            raise ConfigError(
                f"{self.what} cannot be rebuilt in another process ({type(error).__name__}: {error}): define classes "
                "and functions of your own in a module that can be imported, not in a notebook or a prompt; or leave "
                "out devices and processes"
            ) from error
        raise ConfigError(
            f"the device {worker.device!r} cannot be used ({str(error).strip().partition(chr(10))[0]}): name one that "
            "torch has here, with enough memory"
        ) from error

    def _dead(self, worker: Process) -> MedFedPureError:
        begun = self._payload == b""
        hint = "a system does that to a process when memory runs short: start fewer"
        if not begun:
            hint = (
                'a script that starts workers is a file, and does so below `if __name__ == "__main__":`, for each '
                "worker imports it"
            )
        return MedFedPureError(f"the worker process on {worker.device} died ({worker.fate()}): {hint}")

    def _end(self, *, idle: bool = False) -> None:
        """Workers hold nothing that could be lost. An idle one leaves by itself, and clears up what it imported."""
        for worker in self._workers:
            worker.pipe.close()
            if not idle:
                worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers = []


class _Deal:
    """What is waited for in one `run`."""

    def __init__(self, source: Iterator[tuple[int, Job[Any]]]) -> None:
        self.source: Iterator[tuple[int, Job[Any]]] | None = source
        self.running: list[_Running] = []
        self.ready: list[_Asked] = []
        self.flying: dict[Process, _Asked] = {}
        self.ended: dict[int, Any] = {}

    def go_on(self, workers: int) -> None:
        """Every job as far as its answers lead; then new ones, until there is a task for each worker."""
        while True:
            moved = [self._go_on(one, one.answers) for one in list(self.running) if not one.left]
            if any(moved):  # another may have waited for it
                continue
            if self.source is None or len(self.ready) >= workers:
                return
            place, job = next(self.source, (-1, None))
            if job is None:
                self.source = None
            else:
                self.running.append(_Running(place, job))
                self._go_on(self.running[-1], None)

    def _go_on(self, running: _Running, answers: list[Any] | None) -> bool:
        """Whether it asked for something, or came to its end."""
        try:
            tasks = next(running.job) if answers is None else running.job.send(answers)
        except StopIteration as end:
            self.running.remove(running)
            self.ended[running.place] = end.value
            return True
        running.answers, running.left = [None] * len(tasks), len(tasks)
        self.ready += [_Asked(task, running, slot) for slot, task in enumerate(tasks)]
        return bool(tasks)


def team_for(
    work: W, devices: Sequence[str] | None, processes: int | None, threads: int | None, what: str
) -> Alone[W] | Team[W]:
    """Who works: this process, or workers, which begin when their block is entered.

    Args:
        work: what is worked with.
        devices: one worker for each, see `devices_of`.
        processes: so many workers on the CPU.
        threads: see `threads_of`.
        what: see `Team`.
    """
    names = devices_of(devices, processes)
    own = threads_of(threads, len(names))
    return Team(work, names, own, what) if names else Alone(work)
