"""`predict` while disks fill up, processes die and files are edited."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.weather.bundles import DATA, defence
from benchmarks.weather.cases import Case, Seen, Wrong, as_nobody, full_disk, refused, untouched
from benchmarks.weather.scans_made import DICOM, NIFTI, PICTURES, SECRET
from medfedpure.core.storage import locked
from medfedpure.verdicts.predict import predict_files

_COUNT = 12
_WORKER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
from benchmarks.weather.bundles import defence
from medfedpure.verdicts.predict import predict_files
chain = defence()
whole = chain.predict
def slow(*words, **more):
    print("batch", flush=True)
    time.sleep(0.2)
    return whole(*words, **more)
chain.predict = slow
predict_files(chain, [sys.argv[1]], sys.argv[2], seed=7, batch_size=1, made_by="me")
"""


def _inbox(folder: Path) -> Path:
    """Sound scans."""
    (folder / "in").mkdir()
    for place in range(_COUNT):
        Image.fromarray(DATA.pixels[place, 0].numpy()).save(folder / "in" / f"{place:02}.png")
    return folder / "in"


def _predict(folder: Path, out: str = "rows.csv", **options: Any) -> str:
    words: dict[str, Any] = {"seed": 7, "batch_size": 4, "made_by": "me", **options}
    return predict_files(defence(), [folder / "in"], folder / out, **words).describe()


def _labels(path: Path) -> list[tuple[str, str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [(Path(row["file"]).name, row["label"], row["flagged"]) for row in csv.DictReader(stream)]


def _whole(folder: Path) -> None:
    """That rows that were interrupted say what an uninterrupted call says, each file once."""
    _predict(folder, "whole.csv")
    if _labels(folder / "rows.csv") != _labels(folder / "whole.csv"):
        raise Wrong("the rows differ from those of a call that nothing interrupted")


def _bad_inbox(folder: Path) -> Seen:
    """All wrong files at once: a row each, and the sound ones keep their verdicts."""
    inbox = _inbox(folder)
    _predict(folder, "alone.csv")
    for written, ending in ((DICOM, "dcm"), (NIFTI, "nii"), (PICTURES, "png")):
        for place, (name, write) in enumerate(written.items()):
            if "million" not in name:
                write(inbox / f"x{place:03}.{ending}")
    os.mkfifo(inbox / "pipe.png")
    (inbox / "loop.png").symlink_to("loop.png")
    (inbox / "below").mkdir()
    (inbox / "below" / "up").symlink_to(inbox)
    with untouched(inbox):
        told = _predict(folder)
    sound = [row for row in _labels(folder / "rows.csv") if row[0][:2].isdecimal()]
    if sound != _labels(folder / "alone.csv"):
        raise Wrong("the verdicts on sound files depend on the files beside them")
    if SECRET in (folder / "rows.csv").read_text(encoding="utf-8"):
        raise Wrong("a patient is named in a row")
    return Seen(told, "the verdicts on sound files")


def _full_disk(folder: Path) -> Seen:
    _inbox(folder)
    _predict(folder, "whole.csv")
    size = (folder / "whole.csv").stat().st_size
    with full_disk(size // 2):
        said = refused(lambda: _predict(folder))
    before = (folder / "rows.csv").read_bytes()
    _predict(folder)
    lines = before.splitlines(keepends=True)
    kept = b"".join(line for line in lines if line.endswith(b"\n"))
    if not kept or not (folder / "rows.csv").read_bytes().startswith(kept):
        raise Wrong("rows that were whole are lost")
    _whole(folder)
    return Seen(said, f"{kept.count(bytes([10])) - 1} rows; the same call goes on to the same rows")


def _worker(folder: Path) -> subprocess.Popen[bytes]:
    """A process that writes a row every 0.2 seconds, and has begun."""
    words = [sys.executable, "-c", _WORKER, str(folder / "in"), str(folder / "rows.csv")]
    made = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert made.stdout is not None
    for _ in range(5):
        made.stdout.readline()
    return made


def _signalled(number: int) -> Callable[[Path], Seen]:
    def act(folder: Path) -> Seen:
        _inbox(folder)
        process = _worker(folder)
        process.send_signal(number)
        _, errors = process.communicate()
        kept = (folder / "rows.csv").read_bytes().count(b"\n") - 1
        if not 1 <= kept < _COUNT:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise Wrong(f"{kept} rows are there, and it ended with {process.returncode}: {last}")
        _predict(folder)
        _whole(folder)
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
        if left:
            raise Wrong(f"left behind: {left}")
        return Seen(f"it ends with {process.returncode}", f"{kept} rows; the same call goes on to the same rows")

    return act


def _two_writers(folder: Path) -> Seen:
    _inbox(folder)
    process = _worker(folder)
    try:
        said = refused(lambda: _predict(folder))
    finally:
        process.communicate()
    if process.returncode:
        raise Wrong("the first writer failed")
    _whole(folder)
    return Seen(said, "the rows of the first")


def _cut_anywhere(folder: Path) -> Seen:
    """Cut off behind twenty of its bytes, and continued."""
    _inbox(folder)
    _predict(folder, "whole.csv")
    content = (folder / "whole.csv").read_bytes()
    for length in range(0, len(content), max(len(content) // 20, 1)):
        (folder / "rows.csv").write_bytes(content[:length])
        _predict(folder)
        if _labels(folder / "rows.csv") != _labels(folder / "whole.csv"):
            raise Wrong(f"cut off behind {length} bytes, it does not go on to the same rows")
    return Seen("it goes on from each of twenty bytes", "every row that was whole")


def _edited(change: Callable[[bytes], bytes]) -> Callable[[Path], Seen]:
    def act(folder: Path) -> Seen:
        _inbox(folder)
        _predict(folder)
        path = folder / "rows.csv"
        path.write_bytes(change(path.read_bytes()))
        with untouched(folder):
            said = refused(lambda: _predict(folder))
        return Seen(said, "the edited file")

    return act


def _out_is(make: Callable[[Path], object]) -> Callable[[Path], Seen]:
    def act(folder: Path) -> Seen:
        _inbox(folder)
        make(folder / "rows.csv")
        with untouched(folder):
            return Seen(refused(lambda: _predict(folder)), "what stood there, and the scans")

    return act


def _read_only(folder: Path) -> Seen:
    _inbox(folder)
    _predict(folder, "warm.csv")  # what is imported late may be out of reach of nobody
    (folder / "closed").mkdir(mode=0o555)
    with untouched(folder), as_nobody():
        return Seen(refused(lambda: _predict(folder, "closed/rows.csv")), "the folder")


def _vanishing(folder: Path) -> Seen:
    """Files that go away while others are read."""
    inbox = _inbox(folder)
    ended = threading.Event()

    def remove() -> None:
        time.sleep(0.02)
        for path in sorted(inbox.iterdir(), reverse=True)[:6]:
            path.unlink()
        ended.set()

    thread = threading.Thread(target=remove)
    thread.start()
    told = _predict(folder, batch_size=1, workers=1)
    thread.join()
    if len(_labels(folder / "rows.csv")) != _COUNT:
        raise Wrong("not a row for each file")
    return Seen(told, "the rows of the others")


def _dead_lock(folder: Path) -> Seen:
    """A lock whose process was killed."""
    _inbox(folder)
    process = _worker(folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if not list(folder.glob(".*.lock")):
        raise Wrong("no lock was left, so that nothing was asked")
    return Seen(_predict(folder), "its rows; the lock is taken over")


def _held(folder: Path) -> Seen:
    _inbox(folder)
    with locked(folder / "rows.csv", "somebody else"):
        return Seen(refused(lambda: _predict(folder)), "the lock of the other")


def _short_key(folder: Path) -> Seen:
    _inbox(folder)
    (folder / "key").write_bytes(b"few")
    with untouched(folder):
        return Seen(refused(lambda: _predict(folder, key_file=folder / "key")), "the key")


def _odd_names(folder: Path) -> Seen:
    """Names with line ends, escapes, formulas and bytes that are no text: one line each."""
    _inbox(folder)
    sound = (folder / "in" / "00.png").read_bytes()
    for name in (b"a\nb.png", b"\x1b[2J.png", b"=1+1.png", b"\xff\xfe.png", b'a,"b.png', b"x" * 250 + b".png"):
        Path(os.fsdecode(bytes(folder / "in") + b"/" + name)).write_bytes(sound)
    told = _predict(folder)
    lines = (folder / "rows.csv").read_text(encoding="utf-8").splitlines()
    if len(lines) != 1 + _COUNT + 6 or any("\x1b" in line for line in lines):
        raise Wrong("a name is not one plain line")
    return Seen(told, "one line for each file, without escapes")


def _empty(folder: Path) -> Seen:
    (folder / "in").mkdir()
    with untouched(folder):
        return Seen(refused(lambda: _predict(folder)), "no file of rows is begun")


def cases() -> Iterator[Case]:
    """All of them."""
    inputs: dict[str, Callable[[Path], Seen]] = {
        "every wrong scan, a pipe and loops of links in one folder": _bad_inbox,
        "names with line ends, escapes, formulas, no text": _odd_names,
        "a folder without a scan": _empty,
        "rows of another defence": _edited(lambda content: content.replace(b",me\n", b",you\n")),
        "rows under other columns": _edited(lambda content: content.replace(b"label", b"labels", 1)),
        "a line that is no row": _edited(lambda content: content + b"what is this\n"),
        "a row whose number is a word": _edited(lambda content: content.replace(b".png,0,1", b".png,zero,1", 1)),
        "rows that are no text": _edited(lambda content: content + b"\xff\xfe,\n"),
        "a picture in place of the rows": _out_is(lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n")),
        "a folder in place of the rows": _out_is(Path.mkdir),
        "a named pipe in place of the rows": _out_is(os.mkfifo),
        "a link to itself in place of the rows": _out_is(lambda path: path.symlink_to(path)),
        "a key of three bytes": _short_key,
    }
    faults: dict[str, Callable[[Path], Seen]] = {
        "a full disk": _full_disk,
        "killed": _signalled(signal.SIGKILL),
        "told to end": _signalled(signal.SIGTERM),
        "interrupted": _signalled(signal.SIGINT),
        "cut off behind twenty of its bytes": _cut_anywhere,
        "two writers of one file": _two_writers,
        "a lock that a killed process left": _dead_lock,
        "a lock that somebody holds": _held,
        "a read-only folder": _read_only,
        "scans that go away meanwhile": _vanishing,
    }
    for name, act in inputs.items():
        yield Case("predict", name, "input", act)
    for name, act in faults.items():
        yield Case("predict", name, "fault", act)
