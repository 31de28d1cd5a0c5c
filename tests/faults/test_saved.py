"""Faults of what is saved: a forged folder must not run code, take all memory, or be believed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from chains import diffusing

import medfedpure
from medfedpure import Calibration, ClassifierModel, DefendedClassifier
from medfedpure.core import storage
from medfedpure.core.errors import ArtifactError, CalibrationError, ConfigError, InputError


def forged(folder: Path, **changes: object) -> Path:
    """The document of a saved folder changed, and sealed again as a forger would."""
    path = folder / storage.DOCUMENT
    document = json.loads(path.read_text()) | changes
    document["digest"] = storage._digest(document)
    path.write_text(json.dumps(document))
    return folder


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    model = medfedpure.create("classifier", "small_cnn", widths=(4,)).create_model(
        in_channels=1, num_classes=2, image_size=16
    )
    model.save(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "x.pth"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "x.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1/x.pth"}},
        {"cache_dir": "/"},
        {"model_name": "hf-hub:someone/something"},
        {"act_layer": "../x"},
        {"drop_rate": 1e300},
        {"layers": [[[1]]]},
        {"depths": list(range(100))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_b01_a_saved_classifier_makes_timm_read_nothing(options: dict, classifier: Path) -> None:
    """B1: options of timm are those of an allow-list, of moderate size: no paths, addresses, caches."""
    pytest.importorskip("timm")
    folder = forged(classifier, plugin="timm", config={"model": "test_resnet", "options": options})
    with pytest.raises(ConfigError, match=r"cannot be set here|takes a number"):
        ClassifierModel.load(folder)


@pytest.mark.parametrize("name", ["hf-hub:a/b", "local-dir:/tmp", "x.pth", "../resnet18"])
def test_b01_a_model_is_one_that_timm_lists(name: str, classifier: Path) -> None:
    """B1: nor can the model's name make it fetch or read."""
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="timm knows no model"):
        ClassifierModel.load(forged(classifier, plugin="timm", config={"model": name}))


def test_b01_useful_options_still_pass() -> None:
    """B1: rates, shapes and layers by name are what such options are for."""
    pytest.importorskip("timm")
    options = {"drop_rate": 0.1, "act_layer": "gelu", "channels": [8, 8, 8, 8]}
    made = medfedpure.create("classifier", "timm", model="test_resnet", options={"drop_rate": 0.1, "act_layer": "gelu"})
    made.create_model(in_channels=1, num_classes=2, image_size=32)
    assert medfedpure.create("classifier", "timm", options=options).config.options == options


@pytest.mark.parametrize(
    ("kind", "name", "config"),
    [
        ("purifier", "art", {"preprocessor": "JpegCompression", "options": {"quality": "/etc/passwd"}}),
        ("purifier", "art", {"preprocessor": "../x"}),
        ("detector", "art", {"detector": "BeyondDetectorPyTorch"}),
        ("attack", "art", {"attack": "__class__"}),
        ("classifier", "mixture", {"expert": "mixture"}),
        ("classifier", "mixture", {"experts": 10**6}),
        ("classifier", "small_cnn", {"widths": [10**9]}),
        ("purifier", "ddpm", {"model": {"widths": [8 * 10**6]}}),
        ("purifier", "ddpm", {"model": {"layers_per_block": 10**6}}),
        ("purifier", "ddpm", {"schedule": {"timesteps": 10**12}}),
        ("detector", "mae", {"model": {"depth": 10**6}}),
    ],
)
def test_b01_no_configuration_reaches_further(kind: str, name: str, config: dict) -> None:
    """B1: every plugin whose configuration reaches a foreign constructor, or sizes a network, is bounded."""
    try:
        medfedpure.registry().load(kind, name)
    except medfedpure.MissingExtraError as error:
        pytest.skip(str(error))
    with pytest.raises((ConfigError, InputError)):
        medfedpure.create(kind, name, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 50_000},
        {"image_size": -1},
        {"image_size": "16"},
        {"image_size": 16.5},
        {"in_channels": 10**9},
        {"in_channels": True},
        {"class_names": ["one"]},
        {"class_names": "ab"},
        {"class_names": [1, 2]},
        {"class_names": {"a": 1, "b": 2}},
        {"config": 5},
        {"config": {"widths": [4, 4]}},
        {"plugin": 7},
    ],
    ids=str,
)
def test_b09_a_forged_classifier_is_refused_at_once(changes: dict, classifier: Path) -> None:
    """B9: sizes, names and types are checked before anything is built."""
    begun = time.perf_counter()
    with pytest.raises((ArtifactError, InputError, ConfigError, medfedpure.UnknownPluginError)):
        ClassifierModel.load(forged(classifier, **changes))
    assert time.perf_counter() - begun < 5, "it was built before it was checked"


def test_b09_integer_weights_are_refused(classifier: Path) -> None:
    """B9: tensors of another kind of number are not cast in silence."""
    document, tensors = storage.read_document(classifier)
    whole = {key: value.to(torch.int32) if value.is_floating_point() else value for key, value in tensors.items()}
    (classifier / storage.DOCUMENT).unlink()
    (classifier / storage.TENSORS).unlink()
    content = {key: value for key, value in document.items() if key not in ("format", "digest", "tensors")}
    storage.write_document(classifier, content, whole)
    with pytest.raises(ArtifactError, match="int32"):
        ClassifierModel.load(classifier)


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([1.0, float("nan"), 3.0], dtype=torch.float64),
        torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64),
        torch.tensor([1.0, float("inf")], dtype=torch.float64),
        torch.empty(0, dtype=torch.float64),
        torch.ones(2, 2, dtype=torch.float64),
        torch.arange(3),
    ],
    ids=["NaN", "unsorted", "infinite", "none", "a matrix", "integers"],
)
def test_b09_forged_calibration_scores_are_refused(scores: torch.Tensor, tmp_path: Path) -> None:
    """B9: calibration scores are finite and sorted, or the defence is not loaded."""

    chain = diffusing()
    chain.save(tmp_path / "saved")
    document, _ = storage.read_document(tmp_path / "saved")
    content = {key: value for key, value in document.items() if key not in ("format", "digest", "tensors")}
    storage.write_document(tmp_path / "saved", content, {"calibration.scores": scores})
    with pytest.raises((ArtifactError, CalibrationError)):
        DefendedClassifier.load(tmp_path / "saved")


@pytest.mark.parametrize(
    "calibration",
    [
        {"target_fpr": 7, "scope": "client"},
        {"target_fpr": "x", "scope": "client"},
        {"target_fpr": 0.1, "scope": "x"},
        5,
    ],
    ids=str,
)
def test_b09_forged_rates_are_refused(calibration: object, tmp_path: Path) -> None:
    """B9: so are rates and scopes that mean nothing."""
    chain = diffusing()
    chain.save(tmp_path / "saved")
    with pytest.raises((ArtifactError, CalibrationError)):
        DefendedClassifier.load(forged(tmp_path / "saved", calibration=calibration))


def test_b14_a_scope_that_does_not_exist_is_refused() -> None:
    """B14: `scope` is a word of two."""
    with pytest.raises(CalibrationError, match="client, federation"):
        Calibration.fit(torch.linspace(0, 1, 99), 0.05, scope="x")
