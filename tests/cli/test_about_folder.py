"""`medfedpure info FOLDER`: what a saved folder holds, and what restricts it."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
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


def test_a_module_of_ones_own_is_named(tmp_path: Path) -> None:
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    DefendedClassifier(own, purifier=create("purifier", "median"), policy="purify_all").save(tmp_path / "defence")
    facts = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "defence"), "--json"]).output)
    assert facts["classifier"] == "Sequential, a module of one's own, whose code is not here"
    assert all(facts.values()), "no line is empty"


def test_what_a_mix_was_chosen_by_is_readable(tmp_path: Path) -> None:
    shares = {"robust": 0.5, "plain": 0.9, "mixed": 0.6}
    chosen = {"images": 9, "attack": "pgd", "beta": 0.9, "stands": 3, "right": 4, "clean": shares, "attacked": shares}
    built = create("classifier", "mixed", chosen=chosen, robust_config={"widths": [4]}, plain_config={"widths": [4]})
    built.create_model(in_channels=1, num_classes=2, image_size=8).save(tmp_path / "mix")
    said = " ".join(CliRunner().invoke(app, ["info", str(tmp_path / "mix")]).output.split())
    assert "clean (robust 0.5, plain 0.9, mixed 0.6)" in said


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


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("RuntimeError('operator torchvision::nms does not exist')", "are of different builds"),
        ("OSError('_C.so: undefined symbol: _ZN5torch')", "are of different builds"),
        ("ImportError('no libpng')", "broken: no libpng"),
    ],
)
def test_torchvision_of_another_build_is_told(
    raised: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text(f"raise {raised}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    facts = json.loads(CliRunner().invoke(app, ["info", "--json"]).output)
    assert words in facts["torchvision"]
    assert {facts["extras"][extra] for extra in ("mae", "diffusion")} == {"broken"}
    if "different" in words:
        assert facts["torchvision"].endswith("install both together from one index, see docs/how-to/install.md")
        assert f"torch {torch.__version__} and torchvision {version('torchvision')}" in facts["torchvision"]


def test_a_pair_that_works_is_two_versions() -> None:
    facts = json.loads(CliRunner().invoke(app, ["info", "--json"]).output)
    assert facts["torchvision"] == version("torchvision")
    assert "broken" not in facts["extras"].values()
