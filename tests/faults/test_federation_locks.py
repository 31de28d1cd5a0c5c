"""One folder of state, one holder; whoever comes second is told who the first is."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.app import Message
from test_federation_data import TRAINING, quick, same, small_cnn, strategy, three_sites

from medfedpure.core import storage
from medfedpure.core.errors import ArtifactError
from medfedpure.federation import ClientSide, InProcessGrid, PrivateStore, RoundLoop, ServerSide, make_client_app
from medfedpure.federation.grid import acting_as_server
from medfedpure.federation.records import FederationConfig
from medfedpure.federation.run import MemorySites
from medfedpure.training.classification import ClassificationTask

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
HOLD = """
import sys, time
from medfedpure.core.storage import locked
with locked(sys.argv[1], "a rehearsal"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def end(other: subprocess.Popen[str]) -> None:
    """Kill it, so that it cannot clean up."""
    other.kill()
    other.wait()
    assert other.stdout is not None
    other.stdout.close()


def test_b07_a_second_process_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    """B7: pid, host and purpose of the holder are in the message; a killed holder holds nothing."""
    other = hold(tmp_path / "state")
    try:
        wanted = rf"state is in use by a rehearsal \(pid {other.pid} on host {socket.gethostname()}\)"
        with pytest.raises(ArtifactError, match=wanted), storage.locked(tmp_path / "state", "a run"):
            pytest.fail("two hold one folder")
    finally:
        end(other)
    left = tmp_path / ".state.lock"
    assert json.loads(left.read_text())["pid"] == other.pid, "a killed process leaves its file"
    with storage.locked(tmp_path / "state", "a run"):
        assert json.loads(left.read_text()) == {"pid": os.getpid(), "host": socket.gethostname(), "what": "a run"}
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_b07_the_same_process_is_refused_as_well(tmp_path: Path) -> None:
    """B7: two threads of one program, or a block inside a block; other folders are free."""
    link = tmp_path / "link"
    (tmp_path / "state").mkdir()
    link.symlink_to(tmp_path / "state")
    with storage.locked(tmp_path / "state", "a run"):
        for name in (tmp_path / "state", str(tmp_path / "x" / ".." / "state"), link):
            with pytest.raises(ArtifactError, match=f"pid {os.getpid()}"), storage.locked(name, "a run"):
                pass
        with storage.locked(tmp_path / "other", "a run"):
            pass
    with storage.locked(tmp_path / "state", "a run"):
        pass


def test_b07_a_folder_may_be_replaced_while_it_is_held(tmp_path: Path) -> None:
    """B7: the lock is on the name, so a run that is written beside and swapped stays alone."""
    with storage.locked(tmp_path / "run", "a run"):
        for _ in range(2):
            with storage.atomic_folder(tmp_path / "run") as work:
                storage.write_document(work, {"kind": "x"})
        with pytest.raises(ArtifactError), storage.locked(tmp_path / "run", "a run"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_b07_a_holder_on_another_host_is_not_judged_from_here(tmp_path: Path) -> None:
    """B7: whether its process lives cannot be seen: the message says what to remove."""
    left = tmp_path / ".state.lock"
    left.write_text(json.dumps({"pid": 1, "host": "elsewhere\x1b[2J", "what": "a run"}))
    with pytest.raises(ArtifactError, match=r"on host elsewhere\\x1b\[2J.*remove .*\.state\.lock") as caught:
        storage.locked(tmp_path / "state", "a run").__enter__()
    assert str(caught.value).isprintable()
    left.write_text("no json")
    with storage.locked(tmp_path / "state", "a run"):
        pass


def test_b07_many_at_once_get_it_one_after_the_other(tmp_path: Path) -> None:
    """B7: no moment in which two hold it, though the file comes and goes."""
    inside, most, done = [0], [0], [0]

    def work() -> None:
        while done[0] < 200:
            try:
                with storage.locked(tmp_path / "state", "a thread"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    done[0] += 1
                    inside[0] -= 1
            except ArtifactError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done[0] >= 200
    assert most == [1]


@pytest.mark.parametrize("name", ["n" * 250, "é" * 120])
def test_b07_a_long_name_can_be_held(name: str, tmp_path: Path) -> None:
    """B7: the lock's own name must fit, too."""
    with storage.locked(tmp_path / name, "a run"), pytest.raises(ArtifactError, match="in use"):
        storage.locked(tmp_path / name, "a run").__enter__()


def server(checkpoint: Path, state: Path) -> None:
    """A server with clients of its own."""
    made = strategy("fedavg")
    clients = ClientSide(made, ClassificationTask(), small_cnn, MemorySites(tuple(three_sites())), state)
    side = ServerSide(tuple("abc"), made, small_cnn, TRAINING, 1, 7, FederationConfig())
    grid = InProcessGrid(make_client_app(clients), 3)
    with acting_as_server(grid.run.run_id):
        RoundLoop(side, checkpoint=checkpoint).run(grid, grid.server_context())


def test_b07_a_second_server_on_one_state_folder_is_refused(tmp_path: Path) -> None:
    """B7: both finished, and overwrote each other."""
    other = hold(tmp_path / "checkpoint")
    try:
        with pytest.raises(ArtifactError, match=f"checkpoint is in use by .*pid {other.pid} "):
            server(tmp_path / "checkpoint", tmp_path / "private")
    finally:
        end(other)
    assert not (tmp_path / "checkpoint").exists()
    server(tmp_path / "checkpoint", tmp_path / "private")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "private"]


def test_b07_a_run_inside_a_run_on_one_folder_is_refused(tmp_path: Path) -> None:
    """B7: the first run is not disturbed."""
    places = {"state_dir": tmp_path / "state", "checkpoint": tmp_path / "checkpoint"}
    seen: list[str] = []

    def again(history: object) -> None:
        with pytest.raises(ArtifactError) as caught:
            quick(three_sites(), strategy("fedper"), **places)
        seen.append(str(caught.value))

    result = quick(three_sites(), strategy("fedper"), watch=again, **places)
    assert len(seen) == 4
    assert all(f"a federated run (pid {os.getpid()} on host " in text for text in seen)
    assert same(result.shared, quick(three_sites(), strategy("fedper")).shared)


def test_b07_a_private_store_is_held_while_its_client_works(tmp_path: Path) -> None:
    """B7: two processes of one site would overwrite each other's head; the second is left out and named."""
    held: list[subprocess.Popen[str]] = []

    def tap(message: Message) -> None:
        if message.metadata.message_type == "train" and message.metadata.group_id == "2" and not held:
            (run,) = (tmp_path / "model").iterdir()
            held.append(hold(run / "a"))
        if message.metadata.group_id == "3" and held and held[0].poll() is None:
            end(held[0])

    result = quick(three_sites(), strategy("fedper"), tap=tap, state_dir=tmp_path)
    assert [dict(record.failed) for record in result.history] == [{}, {"a": "ArtifactError (read_state)"}, {}]
    (run,) = (tmp_path / "model").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["a", "b", "c"]


def test_b07_the_folders_around_a_store_are_its_owners_alone(tmp_path: Path) -> None:
    """B7: holding a store opens nothing."""
    store = PrivateStore(tmp_path / "state", 11, "a", "fedper")
    with store.held():
        assert stat.S_IMODE(store.folder.parent.stat().st_mode) == 0o700
    assert list(store.folder.parent.iterdir()) == []
