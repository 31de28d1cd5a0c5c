"""Workers: equal answers in the order of the jobs, errors that say what happened, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from labour import Labour, Unwelcome

from medfedpure.core.errors import ConfigError, InputError, MedFedPureError, ProbabilitiesWarning
from medfedpure.parallel.jobs import Job, Task, asked, devices_of, once, threads_of
from medfedpure.parallel.team import Alone, Team


@pytest.fixture(scope="module")
def team() -> Iterator[Team[Labour]]:
    with Team(Labour(3), ["cpu", "cpu"], 1) as found:
        yield found


def summing(number: int, passed: list[int]) -> Job[float]:
    """Two rounds of tasks, the second made from the answers to the first; not before the job before it has ended."""
    first = yield [Task("add", (torch.arange(size) * number,)) for size in (1, 2, 3)]
    while number and number - 1 not in passed:
        yield []
    (second,) = yield [Task("add", (torch.cat(first),))]
    passed.append(number)
    return float(second.sum())


def test_several_answer_as_one_does_in_the_order_of_the_jobs(team: Team[Labour]) -> None:
    alone = list(Alone(Labour(3)).run(summing(number, passed) for passed in [[]] for number in range(5)))
    passed: list[int] = []
    assert list(team.run(summing(number, passed) for number in range(5))) == alone
    assert passed == list(range(5))
    assert len(set(alone)) == 5


def test_the_heaviest_is_dealt_first_and_every_answer_is_told_at_once(team: Team[Labour]) -> None:
    told: list[tuple[str, float]] = []

    def job(weight: float) -> Job[float]:
        (answer,) = yield [
            Task(
                "wait",
                (weight / 100,),
                begins=lambda: told.append(("begins", weight)),
                ends=lambda answer: told.append(("ends", answer * 100)),
                weight=weight,
            )
        ]
        return float(answer)

    waits = [1.0, 5.0, 9.0, 2.0]
    assert list(team.run(job(weight) for weight in waits)) == [weight / 100 for weight in waits]
    assert sorted(told) == sorted((what, weight) for weight in waits for what in ("begins", "ends"))
    assert told.index(("begins", 9.0)) < told.index(("begins", 2.0))


def test_a_loader_is_read_as_workers_get_on(team: Team[Labour]) -> None:
    read: list[int] = []

    def jobs() -> Iterator[Job[Any]]:
        for place in range(20):
            read.append(place)
            yield asked(Task("add", (torch.tensor([place]),)))

    found = team.run(jobs())
    assert int(next(found)) == 3
    assert len(read) < 10, "not all at once"
    assert [int(one) for one in found] == [place + 3 for place in range(1, 20)]


def test_workers_have_threads_of_their_own_and_do_not_hear_ctrl_c(team: Team[Labour]) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    found = list(team.run(asked(Task("about")) for _ in range(8)))
    assert os.getpid() not in {one["pid"] for one in found}
    assert {(one["threads"], one["omp"], one["deaf"]) for one in found} == {(1, "1", True)}
    assert os.environ.get("OMP_NUM_THREADS") == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert team.peak_memory_mb is not None
    assert team.peak_memory_mb > 10


def test_what_a_worker_warns_of_is_warned_of_here(team: Team[Labour]) -> None:
    with pytest.warns(ProbabilitiesWarning, match="rows sum to 1"):
        assert list(team.run([asked(Task("warn"))])) == [1]


def test_a_warning_that_cannot_travel_is_the_nearest_that_can(team: Team[Labour]) -> None:
    with pytest.warns() as told:
        assert list(team.run([asked(Task("warn_in_its_own_way"))])) == [1]
    found = {str(each.message): each.category for each in told}
    assert found == {"rows sum to 2": ProbabilitiesWarning, "rows sum to 3": UserWarning}


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        ("refuse", InputError, "no such images"),
        ("break_down", MedFedPureError, "ValueError"),
        ("break_down_at_home", MedFedPureError, "Mine: of the script"),
    ],
)
def test_an_error_is_the_workers_own(call: str, kind: type[Exception], text: str) -> None:
    with Team(Labour(), ["cpu"], 1) as team, pytest.raises(kind, match=text) as raised:
        list(team.run([asked(Task(call))]))
    assert "in the worker process on cpu" in raised.value.__notes__[0]
    assert f"in {call}" in raised.value.__notes__[0], "where it was"


def test_a_dead_worker_is_named_and_takes_the_others_with_it() -> None:
    with Team(Labour(), ["cpu", "cpu"], 1) as team:
        processes = [worker.process for worker in team._workers]
        pids = [process.pid for process in processes]
        with pytest.raises(MedFedPureError, match=r"on cpu died \(signal SIGKILL\): .*start fewer"):
            list(team.run([asked(Task("wait", (600.0,))), asked(Task("die"))]))
    assert all(gone(pid or 0) for pid in pids)


def test_ctrl_c_ends_all_workers() -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    with Team(Labour(), ["cpu", "cpu"], 1) as team:
        pids = [worker.process.pid for worker in team._workers]
        with pytest.raises(KeyboardInterrupt):
            list(team.run([asked(Task("wait", (600.0,))), asked(Task("about", begins=stopped))]))
    assert all(gone(pid or 0) for pid in pids)


ORPHANED = """
import os, signal
from labour import Labour
from medfedpure.parallel.jobs import Task, asked
from medfedpure.parallel.team import Team

with Team(Labour(), ["cpu", "cpu"], 1) as team:
    print(team._workers[0].process.pid, flush=True)
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    list(team.run([asked(Task("wait", (600.0,))), asked(Task("wait", (600.0,), begins=kill))]))
"""


def test_workers_leave_with_whoever_started_them() -> None:
    """However that ended: it is killed while one of them works for ten minutes."""
    path = os.pathsep.join(path for path in sys.path if path)
    answer = subprocess.run(
        [sys.executable, "-c", ORPHANED], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    pid = int(answer.stdout)
    deadline = time.monotonic() + 30
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(pid), "it works on for nobody"


def gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have asked yet how."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_what_cannot_travel_is_said_before_anything_begins() -> None:
    with pytest.raises(ConfigError, match=r"the defences cannot be sent .*at the top of a module"):
        Team(Labour(baggage=lambda: None), ["cpu"], 1, "the defences")
    with (
        pytest.raises(ConfigError, match=r"cannot be rebuilt .*MyNet.*not in a notebook"),
        Team(Labour(baggage=Unwelcome()), ["cpu"], 1),
    ):
        pass


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cuda:77' cannot be used"), Team(Moving(), ["cuda:77"], 1):
        pass


class Moving(Labour):
    """Does what a defence does when it arrives."""

    def arrive(self, device: torch.device) -> None:
        torch.zeros(1).to(device)


@pytest.mark.parametrize(
    ("devices", "processes", "text"),
    [
        (["cuda:0"], 2, "one of the two"),
        (None, 0, "from 1; got 0"),
        (None, True, "from 1"),
        ("cuda:0", None, "a list"),
        ([], None, "a list"),
        (["gpu"], None, "got 'gpu'"),
        (["cpu", "cuda:0"], None, "cpu and cuda give different answers"),
    ],
)
def test_wrong_workers_are_refused(devices: Any, processes: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        devices_of(devices, processes)


def test_threads_are_shared_among_workers() -> None:
    assert devices_of(None, 1) == devices_of(None, None) == []
    assert devices_of(None, 3) == ["cpu"] * 3
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert [threads_of(None, workers) for workers in (2, 5, 9)] == [2, 1, 1]
    finally:
        torch.set_num_threads(before)
    assert threads_of(4, 2) == 4
    for wrong, workers in ((0, 2), (True, 2), (2, 0)):
        with pytest.raises(ConfigError, match="threads"):
            threads_of(wrong, workers)


def test_once_is_once() -> None:
    told: list[int] = []
    act = once(lambda: told.append(1))
    act()
    act()
    assert told == [1]
