"""Files that are wrong, read one by one; and places where a file should be."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.weather.cases import Case, Seen, Wrong, as_nobody, read_or_refused, refused, untouched
from benchmarks.weather.scans_made import DICOM, MAY_BE_READ, NIFTI, PICTURES, SECRET, Writer, picture
from medfedpure.core.errors import MedFedPureError
from medfedpure.data.readers.scans import ScanReader

_READER = ScanReader(32, 1, colour_to_grey=True)
_SAME = "the file, and nothing beside it"


def _told(path: Path, may_be_read: bool = False) -> str:
    """What the reader says of a path."""
    ask = read_or_refused if may_be_read else refused
    said = ask(lambda: _checked(path))
    if SECRET in said:
        raise Wrong("the patient is named in the error")
    return said


def _checked(path: Path) -> None:
    pixels = _READER.read(path).pixels
    if not len(pixels) or pixels.dtype != torch.uint16 or tuple(pixels.shape[2:]) != (32, 32):
        raise Wrong(f"it was read as {tuple(pixels.shape)}, {pixels.dtype}")


def _file(name: str, write: Writer, ending: str) -> Case:
    def act(folder: Path) -> Seen:
        path = folder / f"scan{ending}"
        write(path)
        with untouched(folder):
            return Seen(_told(path, name in MAY_BE_READ), _SAME)

    return Case("readers", name, "input", act)


def _place(name: str, make: Callable[[Path], object], may_be_read: bool = False, fault: bool = False) -> Case:
    def act(folder: Path) -> Seen:
        path = folder / "scan.png"
        make(path)
        return Seen(_told(path, may_be_read), _SAME)

    return Case("readers", name, "fault" if fault else "input", act)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _unreadable(folder: Path) -> Seen:
    path = folder / "scan.png"
    path.write_bytes(picture())
    path.chmod(0)
    with as_nobody():
        said = _told(path)
    return Seen(said, _SAME)


def _changing(folder: Path) -> Seen:
    """Read over and over while somebody writes anew what is there, whole and cut off."""
    path, ended, told = folder / "scan.png", threading.Event(), set()
    whole = picture(size=(64, 64))
    path.write_bytes(whole)

    def rewrite() -> None:
        place = 0
        while not ended.is_set():
            place += 1
            path.write_bytes(whole[: place * 7 % len(whole)])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            told.add(read_or_refused(lambda: _checked(path)).partition(":")[0])
    finally:
        ended.set()
        writer.join()
    path.write_bytes(whole)
    _checked(path)
    return Seen(f"300 times one of: {', '.join(sorted(told))}", "it is read as soon as it is whole again")


def _vanishing(folder: Path) -> Seen:
    path = folder / "scan.png"
    path.write_bytes(picture())
    kind = "image"
    path.unlink()
    return Seen(refused(lambda: _READER.read(path, kind)), "nothing was made in its place")  # type: ignore[arg-type]


def _many_threads(folder: Path) -> Seen:
    """All wrong DICOM and NIfTI files at once, by eight threads, beside a sound one."""
    sound = folder / "sound.png"
    sound.write_bytes(picture())
    paths = []
    for place, write in enumerate([*DICOM.values(), *PICTURES.values()]):
        paths.append(folder / f"{place}.dcm")
        write(paths[-1])
    others: list[BaseException] = []

    def read(own: list[Path]) -> None:
        for path in own:
            try:
                _READER.read(path)
            except MedFedPureError:
                continue
            except BaseException as error:
                others.append(error)

    threads = [threading.Thread(target=read, args=(paths[place::8],)) for place in range(8)]
    with untouched(folder):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if others:
        raise others[0]
    _checked(sound)
    return Seen(f"{len(paths)} files: an error of ours or a picture each", "the sound file beside them is read")


def cases() -> Iterator[Case]:
    """All of them."""
    for written, ending in ((DICOM, ".dcm"), (NIFTI, ".nii"), (PICTURES, ".png")):
        for name, write in written.items():
            yield _file(name, write, ending)
    yield _place("a named pipe", os.mkfifo)
    yield _place("a folder with the name of a picture", Path.mkdir)
    yield _place("a link to itself", lambda path: path.symlink_to(path))
    yield _place("a link to nothing", lambda path: path.symlink_to("gone"))
    yield _place("a link to an endless device", lambda path: path.symlink_to("/dev/zero"))
    yield _place("a socket", _socket)
    yield _place("nothing", lambda _: None)
    yield Case("readers", "a file that may not be read", "fault", _unreadable)
    yield Case("readers", "a file that changes while it is read", "fault", _changing)
    yield Case("readers", "a file that is gone when it is read", "fault", _vanishing)
    yield Case("readers", "wrong files read by eight threads at once", "fault", _many_threads)
