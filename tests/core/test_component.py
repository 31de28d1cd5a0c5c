"""Components: configuration in, fitted state out and back, by plugin name only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import GoodDetector

from medfedpure.core import storage
from medfedpure.core.component import Component
from medfedpure.core.detector import Detector
from medfedpure.core.errors import ArtifactError, ConfigError, InputError, NotFittedError, UnknownPluginError
from medfedpure.core.purifier import Purifier
from medfedpure.core.registry import create
from medfedpure.core.results import State


@pytest.fixture
def saved(workshop: Any, tmp_path: Path) -> Path:
    """A fitted detector, saved."""
    workshop.component("detector", "mae").save(tmp_path / "part")
    return tmp_path / "part"


def edit(folder: Path, **changes: Any) -> None:
    """Change a document and seal it again: what a person who knows the format could do."""
    document = json.loads((folder / storage.DOCUMENT).read_text(encoding="utf-8"))
    document.update(changes)
    document["digest"] = storage._digest(document)
    storage.write_json(folder / storage.DOCUMENT, document)


def test_a_base_class_loads_by_name(saved: Path, workshop: Any) -> None:
    part = workshop.component("detector", "mae")
    for base in (Component, Detector, type(part)):
        loaded = base.load(saved)
        assert type(loaded) is type(part), f"{base.__name__}.load gives a {type(loaded).__name__}"
        assert loaded.config == part.config, "the configuration came back changed"
        assert loaded.name == part.name, "the name came back changed"
        assert loaded.fitted, "a fitted part must come back fitted"
        for key, value in part.fitted_state().tensors.items():
            assert torch.equal(loaded.fitted_state().tensors[key], value), f"{key} came back changed"


def test_what_a_folder_says(saved: Path) -> None:
    document = json.loads((saved / storage.DOCUMENT).read_text(encoding="utf-8"))
    assert (document["kind"], document["plugin"], document["distribution"]) == ("detector", "mae", "medfedpure")
    assert "module" not in json.dumps(document), "a folder names plugins, never class paths"


def test_another_kind_or_class_is_refused(saved: Path) -> None:
    for wrong in (Purifier, type(create("detector", "denoising_disagreement"))):
        with pytest.raises(ArtifactError, match="was wanted"):
            wrong.load(saved)


def test_unfitted_parts_can_be_saved(tmp_path: Path, workshop: Any) -> None:
    fresh = workshop.unfitted("detector", "mae")
    fresh.save(tmp_path / "part")
    loaded = Detector.load(tmp_path / "part")
    assert not loaded.fitted, "an unfitted part came back fitted"
    with pytest.raises(NotFittedError, match="fit"):
        loaded.check_fitted()


def test_an_unregistered_class_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UnknownPluginError, match="not registered"):
        GoodDetector().save(tmp_path / "part")
    assert not (tmp_path / "part").exists(), "something was left behind"


def test_edited_folders_give_one_clear_error(saved: Path) -> None:
    document = json.loads((saved / storage.DOCUMENT).read_text(encoding="utf-8"))
    tensors = storage.read_document(saved)[1]
    config = document["config"]
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"plugin": "no_such_plugin"}, UnknownPluginError),
        ({"config": {**config, "no_such_option": 1}}, ConfigError),
        ({"config": {**config, "noise": "loud"}}, ConfigError),
        ({"config": {**config, "model": {**config["model"], "width": 32}}}, ArtifactError),
        ({"values": {}}, ArtifactError),
        ({"values": {"shape": "round"}}, ArtifactError),
        ({"tensors": None}, ArtifactError),
    ]
    for changes, error in cases:
        edit(saved, **changes)
        with pytest.raises(error):
            Detector.load(saved)
        edit(saved, **{key: document[key] for key in changes})
    assert Detector.load(saved).fitted, "the unedited folder must load"
    storage.write_document(saved, document, dict(list(tensors.items())[1:]))
    with pytest.raises(ArtifactError, match="missing"):
        Detector.load(saved)


def test_a_sealed_folder_without_what_it_needs_is_an_artifact_error(saved: Path) -> None:
    document = json.loads((saved / storage.DOCUMENT).read_text(encoding="utf-8"))
    for key in ("plugin", "config", "fitted", "values"):
        lacking = {name: value for name, value in document.items() if name not in (key, "digest")}
        lacking["digest"] = storage._digest(lacking)
        storage.write_json(saved / storage.DOCUMENT, lacking)
        with pytest.raises(ArtifactError):
            Detector.load(saved)


def test_state_for_a_part_that_keeps_none(tmp_path: Path) -> None:
    create("purifier", "median").save(tmp_path / "part")
    assert Purifier.load(tmp_path / "part").config == create("purifier", "median").config, "another configuration"
    edit(tmp_path / "part", values={"secret": 1})
    with pytest.raises(ArtifactError, match="holds no fitted state"):
        Purifier.load(tmp_path / "part")


def test_flags_and_names() -> None:
    part = GoodDetector()
    assert part.name == "GoodDetector", "an unregistered part is called by its class"
    assert create("purifier", "median").name == "median", "a registered part is called by its name"
    assert part.fitted, "a part that needs no fit is ready"
    assert part.fitted_state() == State(), "and it has nothing to keep"
    with pytest.raises(ConfigError):
        GoodDetector(threshold=1)


def test_an_instance_may_compute_what_its_class_leaves_open() -> None:
    class Computes(GoodDetector):
        needs_fit = True

        def __init__(self) -> None:
            super().__init__()
            self.needs_fit = False
            self.deterministic = True

    assert GoodDetector.needs_fit is False, "the default of the class"
    assert GoodDetector.deterministic is False, "the default of the class"
    assert Computes().fitted, "the instance needs no fit"
    assert Computes().deterministic, "the instance is deterministic"


def test_modes_stay_in_eval() -> None:
    part = GoodDetector()
    part.network = torch.nn.Dropout(0.5)
    assert not part.train().training, "train() must keep eval mode"
    assert not part.network.training, "also inside"


def test_checked_calls() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    median = create("purifier", "median")
    assert median(images, 0.5).images.shape == images.shape, "a number is one strength for all"

    class ChangesShape(type(median)):
        def purify(self, images, strength, *, streams):
            result = super().purify(images, strength, streams=streams)
            return type(result)(result.images[..., :-1], result.nfe)

    with pytest.raises(InputError, match="must be kept"):
        ChangesShape()(images)

    class WrongScores(GoodDetector):
        def score(self, images, *, context, streams):
            return images.flatten(1)

    with pytest.raises(InputError, match="must return floating scores"):
        WrongScores()(images)
