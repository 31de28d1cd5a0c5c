"""A whole defence as one folder: another process predicts the same, and nothing but the right folder loads."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import GoodDetector
from safetensors.torch import load_file, save_file
from torch import nn

from medfedpure.core import storage
from medfedpure.core.errors import ArtifactError, MedFedPureError, UnknownPluginError
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.testing import tiny_classifier, tiny_dataset

CHILD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from medfedpure.defence.chain import DefendedClassifier

torch.set_num_threads(1)
folder = Path(sys.argv[1])
chain = DefendedClassifier.load(folder / "saved")
given = load_file(folder / "given.safetensors")
found = chain.predict(given["images"], given["ids"], seed=11, batch_size=5)
names = ("labels", "logits", "bare_logits", "scores", "p_values", "flagged", "strength", "purified", "images")
save_file({name: getattr(found, name).contiguous().clone() for name in names}, folder / "found.safetensors")
print(chain.policy, chain.calibration.target_fpr, chain.calibration.scope)
"""


def own_module(width: int = 5) -> nn.Module:
    """A classifier that no plugin built."""
    torch.manual_seed(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


@pytest.fixture(scope="module")
def chain(workshop: Any) -> DefendedClassifier:
    """A calibrated chain of a small classifier, autoencoder and diffusion model."""
    built = DefendedClassifier(
        tiny_classifier(),
        detector=workshop.component("detector", "mae"),
        purifier=workshop.component("purifier", "ddpm"),
    )
    return built.calibrate(tiny_dataset(80, seed=3), 0.2, scope="federation")


@pytest.fixture
def saved(chain: DefendedClassifier, tmp_path: Path) -> Path:
    """The chain, saved."""
    chain.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_another_process_predicts_bit_identically(chain: DefendedClassifier, saved: Path) -> None:
    data = tiny_dataset(17, seed=9)
    save_file({"images": data.images, "ids": data.ids}, saved.parent / "given.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(saved.parent)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["purify_flagged", "0.2", "federation"], f"settings came back as {done.stdout}"
    here = chain.predict(data.images, data.ids, seed=11, batch_size=5)
    assert 0 < int(here.flagged.sum()) < 17, "some, not all, must be flagged for this test to say anything"
    for name, value in load_file(saved.parent / "found.safetensors").items():
        assert torch.equal(value, getattr(here, name)), f"{name} differs in another process"


def test_what_the_folder_holds(saved: Path) -> None:
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    parts = ("", "classifier/", "detector/", "purifier/")
    wanted = {part + name for part in parts for name in (storage.DOCUMENT, storage.TENSORS)}
    assert files == wanted, f"other files: {files ^ wanted}"
    for path in saved.rglob(storage.DOCUMENT):
        assert "torch.nn" not in path.read_text(encoding="utf-8"), "class paths must not be saved"


@pytest.mark.parametrize("policy", ["purify_all", "none", "abstain"])
def test_policies_and_missing_parts(policy, tmp_path: Path, workshop: Any) -> None:
    parts = {
        "purify_all": {"purifier": create("purifier", "median")},
        "none": {},
        "abstain": {"detector": workshop.component("detector", "mae")},
    }[policy]
    DefendedClassifier(tiny_classifier(), policy=policy, **parts).save(tmp_path / "saved")
    loaded = DefendedClassifier.load(tmp_path / "saved")
    assert loaded.policy == policy, "another policy came back"
    assert (loaded.detector is None, loaded.purifier is None) == ("detector" not in parts, "purifier" not in parts)
    assert loaded.calibration is None, "a calibration appeared"
    assert not loaded.training, "a defence is in eval mode"


def every_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_truncated_or_missing_file_is_one_clear_error(saved: Path) -> None:
    for path in every_file(saved):
        content = path.read_bytes()
        for harm in (content[: len(content) // 2], b"", None):
            path.unlink() if harm is None else path.write_bytes(harm)
            with pytest.raises(ArtifactError):
                DefendedClassifier.load(saved)
        path.write_bytes(content)
    DefendedClassifier.load(saved)


def test_every_edited_file_is_one_clear_error(saved: Path) -> None:
    for path in every_file(saved):
        content = bytearray(path.read_bytes())
        place = content.rfind(b"0") if path.suffix == ".json" else len(content) - 3
        content[place] ^= 1
        original = path.read_bytes()
        path.write_bytes(bytes(content))
        with pytest.raises(ArtifactError):
            DefendedClassifier.load(saved)
        path.write_bytes(original)


class _Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.target, "w"))


def test_pickles_are_not_executed(saved: Path, tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    for path in every_file(saved):
        content = path.read_bytes()
        path.write_bytes(pickle.dumps(_Bomb(str(exploded))))
        with pytest.raises(ArtifactError):
            DefendedClassifier.load(saved)
        path.write_bytes(content)
    assert not exploded.exists(), "a pickle was executed"


def test_exchanged_parts_are_noticed(saved: Path, tmp_path: Path, workshop: Any) -> None:
    for part in ("classifier", "detector", "purifier"):
        other = DefendedClassifier(
            tiny_classifier(steps=0), detector=create("detector", "mae"), purifier=create("purifier", "median")
        )
        other.save(tmp_path / "other")
        shutil.move(saved / part, tmp_path / "kept")
        shutil.copytree(tmp_path / "other" / part, saved / part)
        with pytest.raises(ArtifactError, match=f"{part} is not the part that was saved"):
            DefendedClassifier.load(saved)
        shutil.rmtree(saved / part)
        shutil.move(tmp_path / "kept", saved / part)
    DefendedClassifier.load(saved)


def test_foreign_folders(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for place in (tmp_path / "photos", tmp_path / "nowhere", saved / "detector", saved / storage.DOCUMENT):
        with pytest.raises(ArtifactError):
            DefendedClassifier.load(place)
    with pytest.raises(ArtifactError, match="not written by medfedpure"):
        DefendedClassifier.load(saved).save(tmp_path / "photos")


def test_unreadable_documents_with_a_right_seal(saved: Path) -> None:
    original = (saved / storage.DOCUMENT).read_text(encoding="utf-8")
    for change in ({"policy": "pray"}, {"parts": 3}, {"calibration": {}}, {"parts": {}}, {"tensors": None}):
        document = {**json.loads(original), **change}
        document["digest"] = storage._digest(document)
        storage.write_json(saved / storage.DOCUMENT, document)
        with pytest.raises(MedFedPureError):
            DefendedClassifier.load(saved)


def test_a_part_that_is_not_registered_cannot_be_saved(tmp_path: Path) -> None:
    chain = DefendedClassifier(tiny_classifier(), detector=GoodDetector(), policy="none")
    with pytest.raises(UnknownPluginError):
        chain.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == [], "half a defence was left behind"


def test_saving_again_replaces_the_folder(chain: DefendedClassifier, saved: Path) -> None:
    DefendedClassifier(tiny_classifier(), policy="none").save(saved)
    assert DefendedClassifier.load(saved).detector is None, "the old defence came back"
    assert not (saved / "detector").exists(), "old parts stayed"


def test_own_module(tmp_path: Path) -> None:
    module = own_module()
    module(torch.rand(8, 1, 32, 32))
    DefendedClassifier(module, purifier=create("purifier", "median"), policy="purify_all").save(tmp_path / "saved")
    with pytest.raises(ArtifactError, match="classifier=your_module"):
        DefendedClassifier.load(tmp_path / "saved")
    fresh = own_module()
    loaded = DefendedClassifier.load(tmp_path / "saved", classifier=fresh)
    images = tiny_dataset(4).images
    assert torch.equal(loaded.classifier(images), module.eval()(images)), "the weights were not brought back"
    for wrong in (own_module(6), own_module().double(), nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)), nn.Identity()):
        before = {key: value.clone() for key, value in wrong.state_dict().items()}
        with pytest.raises(ArtifactError, match=type(wrong).__name__):
            DefendedClassifier.load(tmp_path / "saved", classifier=wrong)
        unchanged = all(torch.equal(value, before[key]) for key, value in wrong.state_dict().items())
        assert unchanged, "a refused module was overwritten"


def test_a_module_beside_a_plugin_is_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="without classifier="):
        DefendedClassifier.load(saved, classifier=own_module())
