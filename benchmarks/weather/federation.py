"""A federation in which one site sends nonsense, dies or comes late, and servers whose disk or clock fails."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from malformed import HELLO, TRAIN, Forge
from test_federation_data import images, same
from test_federation_replies import FORGER, TRAINING, ForgingGrid, linear, run

from benchmarks.weather.cases import Case, Seen, Wrong, full_disk, refused
from medfedpure.core.storage import locked
from medfedpure.federation import (
    ClientSide,
    FederationConfig,
    InProcessGrid,
    PrivateStore,
    RoundLoop,
    ServerSide,
    Site,
    make_client_app,
)
from medfedpure.federation.checkpoint import RunCheckpoint
from medfedpure.federation.client import working
from medfedpure.federation.grid import acting_as_server
from medfedpure.federation.run import MemorySites
from medfedpure.plugins.personalization.fedavg import FedAvg
from medfedpure.training.classification import ClassificationTask

logging.getLogger("medfedpure").setLevel(logging.CRITICAL)
_OTHERS = "the model of the others is that of a run without the site"


@cache
def _honest() -> dict[str, torch.Tensor]:
    """What a and c make without b."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return dict(run(Path(folder), "ac").shared)


def _left_out(loop: RoundLoop) -> Seen:
    """That b was left out of every round, the others' model is theirs, and the reason may be printed."""
    for record in loop.history:
        if set(record.failed) != {"b"} or set(record.clients) != {"a", "c"}:
            raise Wrong(f"round {record.round}: {sorted(record.clients)} took part, {dict(record.failed)} failed")
    why = loop.history[0].failed["b"]
    if not why.isprintable():
        raise Wrong("what a site sent reached a message as it is")
    if not same(loop.shared, _honest()):
        raise Wrong("the model of the others differs")
    return Seen(f"left out: {why}", _OTHERS)


def _forged(forge: Forge, kind: str) -> Callable[[Path], Seen]:
    def act(folder: Path) -> Seen:
        found = [_left_out(run(folder / str(number), forge=forge, kind=kind, number=number)) for number in range(3)]
        return found[0]

    return act


class _Grid(ForgingGrid):
    """Node b's replies are lost, or an older one comes in place of each."""

    mode = "lost"

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.older: list[Any] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        """What came, but of b."""
        found = []
        for message in InProcessGrid.pull_messages(self, message_ids):
            own = message.metadata.src_node_id == FORGER and message.metadata.message_type == "train"
            if own and self.mode == "lost":
                continue
            if own and self.mode == "replayed":
                self.older.append(message.content)
                message.content = self.older[0]
            found.append(message)
        return found


def _loop(folder: Path, *, grid: str = "", **changes: Any) -> RoundLoop:
    """Two rounds of a, b and c; with what makes them go on where they ended."""
    sites = tuple(Site(name, images(4 + 2 * place, place, side=4)) for place, name in enumerate("abc"))
    clients = ClientSide(FedAvg(), ClassificationTask(), linear, MemorySites(sites), folder / "state")
    config = FederationConfig(round_timeout=changes.pop("timeout", 0.5), start_timeout=0.5)
    side = ServerSide(tuple("abc"), FedAvg(), linear, TRAINING, 2, 7, config)
    loop = RoundLoop(side, **changes)
    made = (_Grid if grid else InProcessGrid)(make_client_app(clients), 3)
    if isinstance(made, _Grid):
        made.mode = grid
    with working(1, 7), acting_as_server(made.run.run_id):
        loop.run(made, made.server_context())
    return loop


def _lost(folder: Path) -> Seen:
    return _left_out(_loop(folder, grid="lost"))


def _replayed(folder: Path) -> Seen:
    """In round 2, b's reply of round 1 comes again."""
    loop = _loop(folder, grid="replayed")
    (first, second) = loop.history
    if "b" not in first.clients or "b" not in second.failed:
        raise Wrong(f"b in round 1: {'b' in first.clients}; in round 2: {'b' in second.clients}")
    return Seen(f"left out of round 2: {second.failed['b']}", "the rounds of the others")


def _dies(folder: Path) -> Seen:
    """Site b's process raises what ends it, in the midst of its training."""

    sites = tuple(Site(name, images(4 + 2 * "abc".index(name), "abc".index(name), side=4)) for name in "abc")

    class Mortal(FedAvg):
        def local_update(self, r: Any) -> Any:
            if r.client_id == "b":
                raise MemoryError
            return super().local_update(r)

    clients = ClientSide(Mortal(), ClassificationTask(), linear, MemorySites(sites), folder)
    config = FederationConfig(round_timeout=0.5, start_timeout=0.5)
    loop = RoundLoop(ServerSide(tuple("abc"), Mortal(), linear, TRAINING, 2, 7, config))
    grid = InProcessGrid(make_client_app(clients), 3)
    with working(1, 7), acting_as_server(grid.run.run_id):
        loop.run(grid, grid.server_context())
    return _left_out(loop)


def _clock(jump: float) -> Callable[[Path], Seen]:
    """The wall clock jumps with every look at it."""

    def act(folder: Path) -> Seen:
        wanted, now, looks = _loop(folder / "one"), time.time, [0]

        def jumping() -> float:
            looks[0] += 1
            return now() + jump * looks[0]

        with patch("time.time", jumping):
            found = _loop(folder / "other", timeout=20.0)
        if any(record.failed for record in found.history) or not same(found.shared, wanted.shared):
            raise Wrong(f"{[dict(record.failed) for record in found.history]}")
        return Seen("both rounds, all three clients", "the model is that of a run with a steady clock")

    return act


def _stopped(folder: Path) -> Path:
    """The checkpoint of a run that was cut off behind its first round."""

    class Cut(Exception):
        pass

    def watch(history: Any) -> None:
        if len(history) == 1:
            raise Cut

    try:
        _loop(folder, checkpoint=folder / "run", watch=watch)
    except Cut:
        return folder / "run"
    raise Wrong("the run was not cut off")


def _spoilt(change: Callable[[Path], object]) -> Callable[[Path], Seen]:
    """A checkpoint that is wrong is refused, and is left as it is."""

    def act(folder: Path) -> Seen:
        run = _stopped(folder)
        (state,) = run.glob("round-*")
        change(state)
        before = sorted(path.name for path in run.rglob("*"))
        said = refused(lambda: _loop(folder, checkpoint=run))
        if sorted(path.name for path in run.rglob("*")) != before:
            raise Wrong("the checkpoint was changed")
        return Seen(said, "the checkpoint")

    return act


def _patch(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(state: Path) -> None:
        (state / name).write_bytes(change((state / name).read_bytes()))

    return apply


def _sealed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    from medfedpure.core.storage import _digest

    def apply(state: Path) -> None:
        told = json.loads((state / "medfedpure.json").read_bytes())
        change(told)
        told["digest"] = _digest(told)
        (state / "medfedpure.json").write_text(json.dumps(told))

    return apply


def _full(folder: Path, *, everywhere: bool = False) -> Seen:
    """No room for the second round's state: the first one's stays, and the run goes on from there."""
    run, write = _stopped(folder), RunCheckpoint.write

    def no_room(checkpoint: RunCheckpoint, saved: Any) -> None:
        with full_disk(200):
            write(checkpoint, saved)

    if everywhere:
        with full_disk(200):
            said = refused(lambda: _loop(folder, checkpoint=run))
    else:
        with patch.object(RunCheckpoint, "write", no_room):
            said = refused(lambda: _loop(folder, checkpoint=run))
    if [path.name for path in run.iterdir()] != ["round-00001"]:
        raise Wrong(f"the checkpoint holds {[path.name for path in run.iterdir()]}")
    found = _loop(folder, checkpoint=run)
    if not same(found.shared, _loop(folder / "other").shared):
        raise Wrong("it does not go on to the same model")
    return Seen(said, "the state of round 1; it goes on to the same model")


_SERVER = """
import os, sys
from pathlib import Path
from benchmarks.weather.federation import _loop
_loop(Path(sys.argv[1]), checkpoint=Path(sys.argv[1]) / "run", watch=lambda history: os._exit(9))
"""


def _killed(folder: Path) -> Seen:
    """The process of a server ends behind its first round; its lock is taken over."""
    ended = subprocess.run([sys.executable, "-c", _SERVER, str(folder)], check=False).returncode
    if ended != 9 or not list(folder.glob(".run.lock")):
        raise Wrong(f"it ended with {ended}; locks {list(folder.glob('.*'))}")
    found = _loop(folder, checkpoint=folder / "run")
    if not same(found.shared, _loop(folder / "other").shared):
        raise Wrong("it does not go on to the same model")
    return Seen("the next server takes the lock over and goes on", "round 1; the same model as without an end")


def _two_servers(folder: Path) -> Seen:
    with locked(folder / "run", "the server of a federated run"):
        return Seen(refused(lambda: _loop(folder, checkpoint=folder / "run")), "the first server's checkpoint")


def _store(folder: Path) -> PrivateStore:
    store = PrivateStore(folder, 7, "a", "fedavg")
    store.write(1, {"w": torch.ones(2)}, confirmed=0)
    store.offer(1, (0.5,), {"w": torch.ones(2)})
    return store


def _private(change: Callable[[Path], object], best: bool = False) -> Callable[[Path], Seen]:
    """Private tensors that are wrong are refused by their owner."""

    def act(folder: Path) -> Seen:
        store = _store(folder)
        change(store.folder)
        return Seen(refused(lambda: store.best(1) if best else store.read(1)), "the folder")

    return act


def _private_full(folder: Path) -> Seen:
    store = _store(folder)
    with full_disk(60):
        said = _of_system(lambda: store.write(2, {"w": torch.zeros(2)}, confirmed=1))
    if not torch.equal(store.read(1)["w"], torch.ones(2)):
        raise Wrong("the state of the round before is another one")
    return Seen(said, "the state of the round before")


def _of_system(call: Callable[[], object]) -> str:
    """An error of ours or of the system's disk: the client's app reports its class, and the server leaves it out."""
    try:
        return refused(call)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"


def cases() -> Iterator[Case]:
    """All of them."""
    for forge in TRAIN:
        yield Case("federation", f"an update: {forge.__name__.replace('_', ' ')}", "input", _forged(forge, "train"))
    for forge in HELLO[:4]:
        yield Case("federation", f"a hello: {forge.__name__.replace('_', ' ')}", "input", _forged(forge, "query.hello"))
    spoilt: dict[str, Callable[[Path], object]] = {
        "a bit of its tensors flipped": _patch("tensors.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "its tensors cut off": _patch("tensors.safetensors", lambda data: data[:-4]),
        "its document cut off": _patch("medfedpure.json", lambda data: data[:-9]),
        "its document 10000 deep": _patch("medfedpure.json", lambda _: b"[" * 10_000),
        "of another run": _sealed(lambda told: told["recipe"].update(seed=99)),
        "rounds that are words": _sealed(lambda told: told.update(rounds=["one"])),
        "figures that are no numbers": _sealed(lambda told: told["rounds"][0]["clients"]["a"].update(train_loss="x")),
        "a number of its run that is none": _sealed(lambda told: told.update(run="seven")),
    }
    for name, change in spoilt.items():
        yield Case("federation", f"a checkpoint, {name}", "input", _spoilt(change))
    deep = b"[" * 5000
    private: dict[str, Callable[[Path], Seen]] = {
        "private tensors that are gone": _private(lambda folder: (folder / "round-00001.safetensors").unlink()),
        "private tensors cut off": _private(lambda folder: (folder / "round-00001.safetensors").write_bytes(b"\0" * 9)),
        "the folder of private tensors is gone": _private(shutil.rmtree),
        "a document of private tensors 5000 deep": _private(lambda f: (f / "round-00001.json").write_bytes(deep)),
        "a best model's document 5000 deep": _private(lambda f: (f / "best.json").write_bytes(deep), best=True),
        "a best model's worth that is no number": _private(
            lambda f: (f / "best.json").write_text('{"round": 1, "worth": [1' + "0" * 400 + "]}"), best=True
        ),
    }
    for name, act in private.items():
        yield Case("federation", name, "input", act)
    faults: dict[str, Callable[[Path], Seen]] = {
        "a site whose memory ends in mid-round": _dies,
        "replies that are lost": _lost,
        "a reply of the round before, once more": _replayed,
        "a clock that jumps a day ahead at each look": _clock(86_400.0),
        "a clock that jumps a day back at each look": _clock(-86_400.0),
        "a full disk under the checkpoint": _full,
        "a full disk under server and sites": lambda folder: _full(folder, everywhere=True),
        "a full disk under private tensors": _private_full,
        "the server killed between two rounds": _killed,
        "two servers on one checkpoint": _two_servers,
    }
    for name, act in faults.items():
        yield Case("federation", name, "fault", act)
