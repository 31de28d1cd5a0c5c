"""`medfedpure info FOLDER`: what a saved folder holds, and what restricts it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.testing import tiny_classifier


def test_a_restriction_of_use_is_shown_with_the_defence_around_it(tmp_path: Path) -> None:
    config = {"model": "resnet50", "options": {"layers": [1, 1, 1, 1]}, "imagenet_input": True}
    architecture = create("classifier", "timm", config)
    shape = {"in_channels": 1, "num_classes": 2, "image_size": 32}
    published = architecture.create_model(**shape, seed=3).network.backbone.state_dict()
    torch.save(published, tmp_path / "lvmmed_resnet.torch")
    model = architecture.create_model(**shape, weights=tmp_path / "lvmmed_resnet.torch", rename="lvmmed_resnet")
    median = create("purifier", "median")
    DefendedClassifier(model, purifier=median, policy="purify_all").save(tmp_path / "defence")
    said = CliRunner().invoke(app, ["info", str(tmp_path / "defence")]).output
    assert "purify_all" in said
    assert "RESTRICTED: non-commercial use only" in said
    assert str(tmp_path) not in said
    facts = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "defence"), "--json"]).output)
    assert facts["kind"] == "defence"
    assert facts["classifier's weights"].startswith("RESTRICTED")


def test_a_classifier_without_beginnings_says_nothing_of_them(tmp_path: Path) -> None:
    tiny_classifier(16, steps=0).save(tmp_path / "saved")
    facts = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "saved"), "--json"]).output)
    assert facts == {
        "kind": "classifier_model",
        "plugin": "small_cnn",
        "in channels": "1",
        "image size": "16",
        "classes": facts["classes"],
    }


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert answer.exit_code != 0
