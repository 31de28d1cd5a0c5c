"""Saving that is killed, watched, shared between processes, or given an unusual place to write to."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from medfedpure.core import storage
from medfedpure.core.disk import whole
from medfedpure.core.errors import ArtifactError

WAYS = ["exchange", "two steps"]
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from medfedpure.core.disk import whole

assert "torch" not in sys.modules, "a process with many threads must not fork"
folder, way = Path(sys.argv[1]), sys.argv[2]
if way == "two steps":
    whole._exchanged = lambda one, other: False

def save(number):
    with whole.atomic_folder(folder) as work:
        for name in (whole.DOCUMENT, "other"):
            (work / name).write_text(str(number))

def load():
    def read():
        one, other = [int((folder / name).read_text()) for name in (whole.DOCUMENT, "other")]
        assert one == other, f"a mixture of {one} and {other}"
        return one
    return whole.steadily(folder, read)

def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}".encode())
            os._exit(1)
        os._exit(0)
    return child

def die_at(line):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(os.path.join("disk", "whole.py")):
            return None
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
"""
if not hasattr(os, "fork"):
    pytest.skip("processes that are killed are forked here", allow_module_level=True)


def run(body: str, folder: Path, way: str) -> str:
    """What a process of its own prints; it has one thread, so that it may fork."""
    command = [sys.executable, "-c", PROGRAM + body, str(folder), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_b02_a_save_that_is_killed_at_any_line_loses_nothing(tmp_path: Path, way: str) -> None:
    """B2: whichever line was the last, the next load finds the old save or the new one, whole."""
    body = """
save(0)
number = line = 0
while True:
    line += 1
    number += 1
    child = forked(lambda: (die_at(line), save(number)))
    ended = os.waitpid(child, 0)[1] == 0
    found = load()
    assert found in (number - 1, number), (line, found)
    if ended:
        break
    save(number)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], f"litter after line {line}"
print(line)
"""
    assert int(run(body, tmp_path / "saved", way)) > 30, "too few places to die at were tried"


@pytest.mark.parametrize("way", WAYS)
def test_b02_two_hundred_kills_at_random_lose_nothing(tmp_path: Path, way: str) -> None:
    """B2: of a process that saves again and again, at random moments."""
    body = """
random.seed(0)
save(0)

def for_ever(number):
    while True:
        number += 1
        save(number)

last = 0
for attempt in range(200):
    child = forked(lambda: for_ever(last))
    time.sleep(random.uniform(0.001, 0.008))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = load()
    assert found >= last, f"{found} was found after {last}"
    last = found
save(last + 1)
assert [path.name for path in folder.parent.iterdir()] == [folder.name], "litter"
print(last)
"""
    assert int(run(body, tmp_path / "saved", way)) > 0, "nothing was ever saved"


@pytest.mark.parametrize("way", WAYS)
def test_b02_saving_and_loading_at_once_never_fail(tmp_path: Path, way: str) -> None:
    """B2: two savers and a loader in loops, each in a process of its own."""
    body = """
save(0)
children = [forked(lambda: [save(number) for number in range(150)]) for _ in range(2)]
loads = 0
while children:
    load()
    loads += 1
    ended, status = os.waitpid(-1, os.WNOHANG)
    if ended:
        assert status == 0, "a saver failed"
        children.remove(ended)
assert [path.name for path in folder.parent.iterdir()] == [folder.name], "litter"
print(loads)
"""
    assert int(run(body, tmp_path / "saved", way)) > 20, "hardly anything was loaded meanwhile"


def test_b02_threads_save_and_load_at_once(tmp_path: Path) -> None:
    """B2: the same for threads of one process, which share its locks' owner."""
    folder, problems = tmp_path / "saved", []
    save(folder, 0)

    def work(call) -> None:
        try:
            for number in range(40):
                call(number)
        except Exception as error:
            problems.append(error)

    calls = (lambda n: save(folder, n), lambda n: save(folder, -n), lambda _: storage.read_document(folder))
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_b02_what_a_kill_left_under_version_1_comes_back(tmp_path: Path) -> None:
    """B2: the hidden folder of an older version is the save that was thought lost."""
    save(tmp_path / "saved", 7)
    (tmp_path / "saved").rename(tmp_path / ".saved.ab12_xyz.old")
    assert storage.read_document(tmp_path / "saved")[0]["number"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_b02_a_living_save_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """B2: only what is ours and abandoned is cleared away."""
    (tmp_path / ".medfedpure-notes").mkdir()
    (tmp_path / ".saved.backup").write_text("mine")
    with storage.atomic_folder(tmp_path / "saved") as slow:
        storage.write_document(slow, {"kind": "thing", "number": 1})
        save(tmp_path / "saved", 2)
        assert slow.is_dir(), "a save at work was taken for a leftover"
    assert storage.read_document(tmp_path / "saved")[0]["number"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".medfedpure-notes", ".saved.backup", "saved"]


def test_b02_a_reader_that_meets_another_save_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B2: also where locks do not work, a folder that was replaced while it was read is read anew."""
    monkeypatch.setattr(whole, "_held", lambda path, shared=False: None)
    folder, seen = tmp_path / "saved", []
    save(folder, 1)

    def read() -> int:
        found = storage.read_document_only(folder)["number"]
        if not seen:
            save(folder, 2)
        seen.append(found)
        return found

    assert storage.steadily(folder, read) == 2, f"read {seen}"


@pytest.mark.parametrize(("mask", "modes"), [(0o077, (0o700, 0o600)), (0o002, (0o775, 0o664)), (0o022, (0o755, 0o644))])
def test_b15_the_umask_is_honoured(tmp_path: Path, mask: int, modes: tuple[int, int]) -> None:
    """B15: folders and files have the permissions that the user's umask leaves."""
    before = os.umask(mask)
    try:
        save(tmp_path / "saved", 1)
        storage.write_json(tmp_path / "results.json", {})
        storage.write_bytes(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(before)

    def mode(name: str) -> int:
        return (tmp_path / name).stat().st_mode & 0o777

    assert mode("saved") == modes[0]
    for name in (f"saved/{storage.DOCUMENT}", f"saved/{storage.TENSORS}", "results.json"):
        assert mode(name) == modes[1], name
    assert mode("secret") == 0o600


def test_b15_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    """B15: what a link points to is written, and the link stays one; for folders, files and links to nothing yet."""
    save(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "far").mkdir()
    (tmp_path / "new").symlink_to(Path("far") / "fresh")
    (tmp_path / "file.json").symlink_to(Path("far") / "file.json")
    for name, place in (("link", "real"), ("new", "far/fresh")):
        save(tmp_path / name, 2)
        assert (tmp_path / name).is_symlink(), f"{name} was replaced"
        assert storage.read_document(tmp_path / place)[0]["number"] == 2, f"{place} is stale"
    storage.write_json(tmp_path / "file.json", {"a": 1})
    assert (tmp_path / "file.json").is_symlink()
    assert json.loads((tmp_path / "far" / "file.json").read_text()) == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "file.json", "link", "new", "real"]


@pytest.mark.parametrize("name", ["n" * 250, "ü" * 125])
def test_b15_long_names(tmp_path: Path, name: str) -> None:
    """B15: names of 250 bytes work, longer ones than a file system has are refused in words."""
    save(tmp_path / name, 1)
    save(tmp_path / name, 2)
    assert storage.read_document(tmp_path / name)[0]["number"] == 2
    storage.write_json(tmp_path / f"{name}json", {})
    with pytest.raises(ArtifactError, match="name too long"):
        save(tmp_path / (name * 2), 1)
    with pytest.raises(ArtifactError, match="name too long"):
        storage.write_json(tmp_path / (name * 2), {})


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only"), (errno.EDQUOT, "quota")]
)
@pytest.mark.parametrize("call", ["fsync", "mkdir", "open"])
def test_c_a_full_or_read_only_disk_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, call: str
) -> None:
    """C, disk full and read-only: folder and reason are named, and what was there stays as it was."""
    save(tmp_path / "saved", 1)
    storage.write_json(tmp_path / "results.json", {"a": 1})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        if call == "open":
            broken.setattr(Path, "open", fail)
        else:
            broken.setattr(os, call, fail)
        with pytest.raises(ArtifactError, match=words) as caught:
            save(tmp_path / "saved", 2)
        assert str(tmp_path / "saved") in str(caught.value)
        if call != "mkdir":
            with pytest.raises(ArtifactError, match=rf"results\.json.*{words}"):
                storage.write_json(tmp_path / "results.json", {"a": 2})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_c_a_place_that_cannot_be_is_said_in_words(tmp_path: Path) -> None:
    """C, read-only: a file where a folder is wanted, on the way or at its end."""
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "saved"):
        with pytest.raises(ArtifactError, match="file"):
            save(place, 1)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, '{"format": 2, "a": ' + "[" * 900 + "]" * 900 + "}", f'{{"a": {"1" * 5000}}}'],
    ids=["brackets", "braces", "900 deep", "5000 digits"],
)
def test_c_documents_nested_deep_or_with_endless_numbers(tmp_path: Path, content: str) -> None:
    """C, deep JSON and integers of 5,000 digits: a damaged folder, not a RecursionError or ValueError."""
    save(tmp_path / "saved", 1)
    (tmp_path / "saved" / storage.DOCUMENT).write_text(content)
    with pytest.raises(ArtifactError, match=storage.DOCUMENT):
        storage.read_document(tmp_path / "saved")


class Extra(nn.Linear):
    """A layer that keeps what is no tensor beside its tensors."""

    def __init__(self, state: object) -> None:
        super().__init__(2, 2)
        self.extra = state

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


def test_c_extra_state_is_saved_where_it_is_a_tensor_and_refused_in_words_where_not(tmp_path: Path) -> None:
    """C, get_extra_state: nothing but tensors and JSON is ever saved, and that is said."""
    good = Extra(torch.arange(3.0))
    with storage.atomic_folder(tmp_path / "good") as work:
        storage.write_document(work, {"kind": "module"}, good.state_dict())
    other = Extra(torch.zeros(3))
    storage.load_strictly(other, storage.read_document(tmp_path / "good")[1], "it")
    assert torch.equal(other.extra, torch.arange(3.0))
    assert storage.layout_hash(good) == storage.layout_hash(other)

    bad = Extra({"scale": 3})
    with pytest.raises(ArtifactError, match="_extra_state is a dict"), storage.atomic_folder(tmp_path / "bad") as work:
        storage.write_document(work, {"kind": "module"}, bad.state_dict())
    for call in (storage.layout_hash, lambda module: storage.check_tensors(module, {}, "it")):
        with pytest.raises(ArtifactError, match="register_buffer"):
            call(bad)
    assert not (tmp_path / "bad").exists()


def save(folder: Path, number: int) -> None:
    """One small folder."""
    with storage.atomic_folder(folder) as work:
        storage.write_document(work, {"kind": "thing", "number": number}, {"x": torch.full((9,), float(number))})
