"""Saved folders: whole or absent, checked before anything is used, and nothing in them can execute."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import medfedpure
from medfedpure.core import storage
from medfedpure.core.disk import whole
from medfedpure.core.errors import ArtifactError

DOCUMENT = {"kind": "thing", "values": {"size": 3, "name": "é"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small saved folder."""
    with storage.atomic_folder(tmp_path / "saved") as work:
        storage.write_document(work, DOCUMENT, {"weight": torch.arange(600.0), "count": torch.tensor(3)})
    return tmp_path / "saved"


def test_what_is_written_is_read(folder: Path) -> None:
    document, tensors = storage.read_document(folder, kind="thing")
    assert document["values"] == DOCUMENT["values"], "the values came back changed"
    assert torch.equal(tensors["weight"], torch.arange(600.0)), "a tensor came back changed"
    assert tensors["count"].dtype == torch.int64, "integers must stay integers"
    assert sorted(path.name for path in folder.iterdir()) == [storage.DOCUMENT, storage.TENSORS], "stray files"
    assert (folder / storage.DOCUMENT).read_text(encoding="utf-8").count("\n") > 3, "a person must be able to read it"


def test_shared_and_strided_tensors_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    with storage.atomic_folder(tmp_path / "saved") as work:
        storage.write_document(work, DOCUMENT, {"a": base, "b": base, "turned": base.T, "half": base.bfloat16()})
    tensors = storage.read_document(tmp_path / "saved")[1]
    assert torch.equal(tensors["turned"], base.T), "a transposed tensor came back changed"
    assert tensors["half"].dtype == torch.bfloat16, "bfloat16 must stay"


def test_without_tensors(tmp_path: Path) -> None:
    with storage.atomic_folder(tmp_path / "saved") as work:
        storage.write_document(work, DOCUMENT)
    assert storage.read_document(tmp_path / "saved")[1] == {}, "no tensor was saved"


@pytest.mark.parametrize("file", [storage.DOCUMENT, storage.TENSORS])
@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.95])
def test_truncated(folder: Path, file: str, keep: float) -> None:
    path = folder / file
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep == 1 else keep * len(content))])
    with pytest.raises(ArtifactError, match=file.split(".")[0]):
        storage.read_document(folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [('"size": 3', '"size": 4'), ('"kind": "thing"', '"kind": "thinG"'), ('"format": 2', '"format": 1')],
)
def test_edited_document(folder: Path, before: str, after: str) -> None:
    path = folder / storage.DOCUMENT
    text = path.read_text(encoding="utf-8")
    assert before in text, "the test edits what is not there"
    path.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(ArtifactError):
        storage.read_document(folder)


def test_reformatted_document_is_the_same(folder: Path) -> None:
    path = folder / storage.DOCUMENT
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert storage.read_document(folder)[0]["values"] == DOCUMENT["values"], "white space must not matter"


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "{}", "\xff\xfe", "{", '{"format": 1}'])
def test_foreign_document(folder: Path, content: str) -> None:
    (folder / storage.DOCUMENT).write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError):
        storage.read_document(folder)


def test_edited_tensors(folder: Path) -> None:
    path = folder / storage.TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="SHA-256"):
        storage.read_document(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / storage.TENSORS).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        storage.read_document(folder)
    with pytest.raises(ArtifactError, match="not a folder saved by medfedpure"):
        storage.read_document(tmp_path / "nowhere")


class _Bomb:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_make_file, (str(self.target),))


def _make_file(name: str) -> None:
    Path(name).touch()


@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "with a matching digest"])
def test_a_pickle_is_refused_and_not_executed(folder: Path, tmp_path: Path, sealed: bool) -> None:
    exploded = tmp_path / "exploded"
    content = pickle.dumps(_Bomb(exploded))
    (folder / storage.TENSORS).write_bytes(content)
    if sealed:
        document = json.loads((folder / storage.DOCUMENT).read_text(encoding="utf-8"))
        document["tensors"] = storage.hashlib.sha256(content).hexdigest()
        document["digest"] = storage._digest(document)
        storage.write_json(folder / storage.DOCUMENT, document)
    with pytest.raises(ArtifactError):
        storage.read_document(folder)
    assert not exploded.exists(), "the pickle was executed"
    pickle.loads(content)
    assert exploded.exists(), "the payload of this test does nothing, so that it would prove nothing"


def test_nothing_in_the_package_unpickles() -> None:
    root = Path(medfedpure.__file__).parent
    forbidden = re.compile(
        r"\bimport\s+(pickle|dill|cloudpickle|joblib|shelve|marshal)\b|\bfrom\s+(pickle|dill|cloudpickle|joblib|shelve)\b"
        r"|\bpickle\.|torch\.load\b(?!\([^#]*weights_only=True)|torch\.save\b|allow_pickle\s*=\s*True|\byaml\.(unsafe_)?load\b|(?<![\w.])eval\(|\bexec\("
    )
    sources = sorted(root.rglob("*.py"))
    assert len(sources) > 20, f"only {len(sources)} files were looked at"
    between_own_processes = {root / "parallel" / "worker.py": ["torch.save(", "torch.load(io.BytesIO(data)"]}
    for path in sources:
        allowed = between_own_processes.get(path, [])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if forbidden.search(line) and not any(words in line for words in allowed):
                pytest.fail(f"{path.relative_to(root)}:{number} can execute what it reads: {line}")


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="'thing'; a 'detector' was wanted"):
        storage.read_document(folder, kind="detector")


def test_foreign_folders_are_not_overwritten(tmp_path: Path) -> None:
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "photo.jpg").write_bytes(b"photo")
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    for place in (holiday, tmp_path / "letter.txt"):
        with pytest.raises(ArtifactError, match="was not written by medfedpure"), storage.atomic_folder(place):
            pytest.fail("the block must not run")
    assert (holiday / "photo.jpg").read_bytes() == b"photo", "the photo is gone"
    assert (tmp_path / "letter.txt").read_text(encoding="utf-8") == "dear", "the letter is gone"


def test_empty_and_own_folders_are_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", folder):
        with storage.atomic_folder(place) as work:
            storage.write_document(work, {"kind": "other"})
        assert storage.read_document(place)[0]["kind"] == "other", "the folder was not replaced"
        assert not (place / storage.TENSORS).exists(), "a file of the old content stayed"


def test_a_failure_leaves_the_old_folder(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(place: Path) -> None:
        with storage.atomic_folder(place) as work:
            storage.write_document(work, {"kind": "new"})
            raise KeyboardInterrupt

    for place in (folder, tmp_path / "fresh"):
        with pytest.raises(KeyboardInterrupt):
            fail(place)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "the old folder was harmed"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"], "temporary folders stayed"


def test_a_failure_while_renaming_brings_the_old_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if Path(target) == folder and not self.name.endswith(".old"):
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(whole, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(ArtifactError, match="disk full"), storage.atomic_folder(folder) as work:
        storage.write_document(work, {"kind": "new"})
    monkeypatch.undo()
    assert storage.read_document(folder)[0]["kind"] == "thing", "the old folder is gone"
    assert [path.name for path in folder.parent.iterdir()] == ["saved"], "temporary folders stayed"


def test_a_failed_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    storage.write_json(path, {"a": 1})
    monkeypatch.setattr(whole.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ArtifactError, match="disk full"):
        storage.write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}, "the old file was harmed"
    assert [found.name for found in tmp_path.iterdir()] == ["results.json"], "temporary files stayed"


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "a.json", {"a": float("nan")})


def test_tensors_are_loaded_strictly() -> None:
    module = nn.Linear(3, 2)
    good = {key: torch.ones_like(value) for key, value in module.state_dict().items()}
    storage.load_strictly(module, good, "it")
    assert bool((module.weight == 1).all()), "nothing was loaded"
    for wrong, problem in (
        ({"weight": good["weight"]}, "missing bias"),
        ({**good, "extra": torch.ones(1)}, "unexpected extra"),
        ({**good, "bias": torch.ones(3)}, r"bias is \(3,\), not \(2,\)"),
    ):
        with pytest.raises(ArtifactError, match=problem):
            storage.load_strictly(module, wrong, "it")


def test_layout_hash() -> None:
    assert storage.layout_hash(nn.Linear(3, 2)) == storage.layout_hash(nn.Linear(3, 2)), "values must not matter"
    others = (nn.Linear(3, 3), nn.Linear(3, 2, bias=False), nn.Linear(3, 2).double(), nn.Sequential(nn.Linear(3, 2)))
    for other in others:
        assert storage.layout_hash(other) != storage.layout_hash(nn.Linear(3, 2)), f"{other} has the same hash"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_place_is_held_whatever_bytes_its_name_has(tmp_path):
    with storage.locked(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")), "a test"):
        assert len(list(tmp_path.iterdir())) == 1
