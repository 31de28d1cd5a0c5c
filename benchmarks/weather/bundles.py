"""Saved defences that are wrong, by accident or by a forger who sealed them anew; and saving that goes wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import medfedpure
from benchmarks.weather.cases import Case, Seen, Wrong, as_nobody, full_disk, read_or_refused, refused, untouched
from medfedpure.core import storage
from medfedpure.core.errors import MedFedPureError
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(40, size=16)
_DOCUMENT, _TENSORS = "medfedpure.json", "tensors.safetensors"
_KEPT = "the folder, and nothing beside it"


@cache
def defence(seed: int = 1) -> medfedpure.DefendedClassifier:
    """A small calibrated chain."""
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "smoothing"),
    )
    return made.calibrate(DATA, 0.3, seed=seed)


def _changed(change: Callable[[Path], object], may_be_loaded: bool = False) -> Callable[[Path], Seen]:
    """Save, spoil, load."""

    def act(folder: Path) -> Seen:
        defence().save(folder / "saved")
        change(folder / "saved")
        with untouched(folder):
            ask = read_or_refused if may_be_loaded else refused
            said = ask(lambda: medfedpure.DefendedClassifier.load(folder / "saved").predict(DATA.images[:4], seed=0))
        if (folder / "owned").exists() or Path("owned").exists():
            raise Wrong("what was planted was executed")
        return Seen(said, _KEPT)

    return act


def _text(change: Callable[[str], str], part: str = "") -> Callable[[Path], None]:
    def apply(saved: Path) -> None:
        path = saved / part / _DOCUMENT
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return apply


def _sealed(change: Callable[[dict[str, Any]], object], part: str = "") -> Callable[[Path], None]:
    """A document changed and sealed anew, and the documents above it with it: no digest gives it away."""

    def apply(saved: Path) -> None:
        told = json.loads((saved / part / _DOCUMENT).read_bytes())
        change(told)
        _seal(saved, part, told)

    return apply


def _seal(saved: Path, part: str, told: dict[str, Any]) -> None:
    told["digest"] = storage._digest(told)
    (saved / part / _DOCUMENT).write_text(json.dumps(told))
    if part:
        above = json.loads((saved / _DOCUMENT).read_bytes())
        above["parts"][part] = told["digest"]
        _seal(saved, "", above)


def _tensor_bytes(change: Callable[[bytes], bytes], part: str, sealed: bool) -> Callable[[Path], None]:
    def apply(saved: Path) -> None:
        import hashlib

        path = saved / part / _TENSORS
        data = change(path.read_bytes())
        path.write_bytes(data)
        if sealed:
            _sealed(lambda told: told.update(tensors=hashlib.sha256(data).hexdigest()), part)(saved)

    return apply


def _tensors(change: Callable[[dict[str, torch.Tensor]], object], part: str) -> Callable[[Path], None]:
    """Tensors changed, and all sealed anew."""

    def apply(saved: Path) -> None:
        found = load_file(saved / part / _TENSORS)
        change(found)
        save_file(found, saved / part / "other")
        data = (saved / part / "other").read_bytes()
        (saved / part / "other").unlink()
        _tensor_bytes(lambda _: data, part, True)(saved)

    return apply


def _flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 4]) + data[-4:]


def _huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**40) + data[8:]


def _beyond_the_end(_: bytes) -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(16)


class _Planted:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


def _exchanged(saved: Path) -> None:
    """The detector of another defence, whole and sealed."""
    other = medfedpure.create("detector", "feature_squeezing", bits=[3])
    shutil.rmtree(saved / "detector")
    other.save(saved / "detector")


def _piped(name: str) -> Callable[[Path], None]:
    def apply(saved: Path) -> None:
        (saved / name).unlink()
        os.mkfifo(saved / name)

    return apply


def _nan(found: dict[str, torch.Tensor]) -> None:
    key = next(key for key, value in found.items() if value.is_floating_point())
    found[key] = torch.full_like(found[key], float("nan"))


def _a_file(saved: Path) -> None:
    shutil.rmtree(saved)
    saved.write_text("no folder")


INPUTS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "a bit of the weights flipped": (_tensor_bytes(_flipped, "classifier", False), False),
    "weights cut off": (_tensor_bytes(lambda data: data[:-100], "classifier", False), False),
    "no byte of weights": (_tensor_bytes(lambda _: b"", "classifier", False), False),
    "weights cut off, sealed anew": (_tensor_bytes(lambda data: data[:-100], "classifier", True), False),
    "weights with a header of 1 TiB, sealed anew": (_tensor_bytes(_huge_header, "classifier", True), False),
    "weights that lie beyond the end, sealed anew": (_tensor_bytes(_beyond_the_end, "classifier", True), False),
    "weights that are a pickle, sealed anew": (
        _tensor_bytes(lambda _: pickle.dumps(_Planted()), "classifier", True),
        False,
    ),
    "weights of NaN, sealed anew": (_tensors(_nan, "classifier"), False),
    "weights of another shape, sealed anew": (
        _tensors(lambda found: found.update({next(iter(found)): torch.zeros(3)}), "classifier"),
        False,
    ),
    "a weight too many, sealed anew": (_tensors(lambda found: found.update(more=torch.zeros(3)), "classifier"), False),
    "calibration scores of NaN, sealed anew": (_tensors(_nan, ""), False),
    "no calibration scores, sealed anew": (
        _tensors(lambda found: (found.clear(), found.update(x=torch.ones(1))), ""),
        False,
    ),
    "a word of the document changed": (_text(lambda text: text.replace("policy", "policies")), False),
    "a digest changed": (_text(lambda text: text.replace('"digest": "', '"digest": "0')), False),
    "the document cut off": (_text(lambda text: text[:-20]), False),
    "no byte of the document": (_text(lambda _: ""), False),
    "the document of another encoding": (
        lambda saved: (saved / _DOCUMENT).write_bytes(b"\xff\xfe" + "{}".encode("utf-16-le")),
        False,
    ),
    "JSON 10000 deep": (_text(lambda _: "[" * 10_000 + "]" * 10_000), False),
    "JSON 10000 deep within a document": (
        _text(lambda _: '{"format": 2, "x": ' + "[" * 10_000 + "]" * 10_000 + "}"),
        False,
    ),
    "a number of 5000 digits": (_text(lambda _: '{"format": ' + "9" * 5000 + "}"), False),
    "a list in place of the document": (_text(lambda _: "[]"), False),
    "a format of the future": (_sealed(lambda told: told.update(format=99)), False),
    "a format that is a word": (_sealed(lambda told: told.update(format="2")), False),
    "a kind that is a list, in format 1": (_sealed(lambda told: told.update(format=1, kind=["defence"])), False),
    "parts that are a list": (_sealed(lambda told: told.update(parts=["classifier"])), False),
    "a part whose name leads outside": (_sealed(lambda told: told["parts"].update({"../../x": "0"})), False),
    "a plugin whose name leads outside": (_sealed(lambda told: told.update(plugin="../../x"), "detector"), False),
    "a plugin of another kind": (_sealed(lambda told: told.update(kind="attack", plugin="pgd"), "detector"), False),
    "a configuration that is none": (_sealed(lambda told: told.update(config=[1]), "detector"), False),
    "an unknown option": (_sealed(lambda told: told["config"].update(more=1), "detector"), False),
    "a false-positive rate of 2": (_sealed(lambda told: told["calibration"].update(target_fpr=2.0)), False),
    "a vote of -1 draws": (_sealed(lambda told: told.update(vote={"draws": -1})), False),
    "images of 2 to the 40th pixels": (
        _sealed(lambda told: told["images"].update(image_shape=[1, 2**20, 2**20])),
        False,
    ),
    "a network of a billion channels": (
        _sealed(lambda told: told["config"].update(widths=[10**9, 10**9]), "classifier"),
        False,
    ),
    "no part folder": (lambda saved: shutil.rmtree(saved / "detector"), False),
    "no weights": (lambda saved: (saved / "classifier" / _TENSORS).unlink(), False),
    "no document": (lambda saved: (saved / _DOCUMENT).unlink(), False),
    "a part of another defence": (_exchanged, False),
    "a file too many": (lambda saved: (saved / "notes.txt").write_text("mine"), True),
    "a pickle beside the weights": (lambda saved: (saved / "model.pt").write_bytes(pickle.dumps(_Planted())), True),
    "a file in place of the folder": (_a_file, False),
    "the document is a named pipe": (_piped(_DOCUMENT), False),
    "the weights are a named pipe": (_piped(_TENSORS), False),
    "a part that links to itself": (
        lambda saved: (shutil.rmtree(saved / "detector"), (saved / "detector").symlink_to("detector")),
        False,
    ),
}

_SAVE = """
import os, sys, time
from benchmarks.weather.bundles import defence
chain = defence()
print("begun", flush=True)
while True:
    chain.save(sys.argv[1])
"""


def _full(folder: Path) -> Seen:
    defence().save(folder / "saved")
    with untouched(folder), full_disk(1000):
        said = refused_or_os(lambda: defence(2).save(folder / "saved"))
    medfedpure.DefendedClassifier.load(folder / "saved")
    return Seen(said, "the defence of before; nothing beside it")


def refused_or_os(call: Callable[[], object]) -> str:
    """What a call raises; an error of the system names file and reason, and is right where nothing else can be said."""
    try:
        return refused(call)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"


def _killed(folder: Path) -> Seen:
    """Killed ten times at any moment of saving over and over: what is there loads."""
    process = None
    for place in range(3):
        process = subprocess.Popen([sys.executable, "-c", _SAVE, str(folder / "saved")], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            threading.Event().wait(0.5 + 0.013 * place)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        medfedpure.DefendedClassifier.load(folder / "saved")
    defence().save(folder / "saved")
    left = [path.name for path in folder.iterdir()]
    if left != ["saved"]:
        raise Wrong(f"left behind: {left}")
    return Seen("killed three times in the midst of saving", "a whole defence each time; the next save clears up")


def _read_only(folder: Path) -> Seen:
    defence().save(folder / "saved")
    folder.chmod(0o555)
    try:
        with untouched(folder), as_nobody():
            said = refused_or_os(lambda: defence(2).save(folder / "saved"))
    finally:
        folder.chmod(0o755)
    return Seen(said, "the defence of before")


def _unreadable(folder: Path) -> Seen:
    defence().save(folder / "saved")
    (folder / "saved" / "classifier" / _TENSORS).chmod(0)
    with untouched(folder), as_nobody():
        said = refused(lambda: medfedpure.DefendedClassifier.load(folder / "saved"))
    return Seen(said, _KEPT)


def _two(folder: Path) -> Seen:
    """Two threads save over and over what a third one loads."""
    others: list[BaseException] = []
    defence().save(folder / "saved")

    def work(act: Callable[[], object]) -> None:
        try:
            for _ in range(15):
                act()
        except MedFedPureError as error:
            others.append(error)
        except BaseException as error:
            others.append(error)

    chains = [defence(1), defence(2)]
    acts: list[Callable[[], object]] = [lambda one=one: one.save(folder / "saved") for one in chains]  # type: ignore[misc]
    acts.append(lambda: medfedpure.DefendedClassifier.load(folder / "saved"))
    threads = [threading.Thread(target=work, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if others:
        raise others[0]
    medfedpure.DefendedClassifier.load(folder / "saved")
    return Seen("30 saves and 15 loads at once, all of them well", "a whole defence; nothing beside it")


def _foreign(folder: Path) -> Seen:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    with untouched(folder):
        said = refused(lambda: defence().save(folder / "mine"))
    return Seen(said, "the files in it")


def cases() -> Iterator[Case]:
    """All of them."""
    for name, (change, may_be_loaded) in INPUTS.items():
        yield Case("bundles", name, "input", _changed(change, may_be_loaded))
    yield Case("bundles", "a folder of other files to save into", "input", _foreign)
    yield Case("bundles", "a full disk while saving", "fault", _full)
    yield Case("bundles", "killed while saving", "fault", _killed)
    yield Case("bundles", "a read-only folder to save into", "fault", _read_only)
    yield Case("bundles", "weights that may not be read", "fault", _unreadable)
    yield Case("bundles", "two that save and one that loads at once", "fault", _two)
