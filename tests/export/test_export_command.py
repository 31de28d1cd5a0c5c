"""`medfedpure export` takes saved classifiers, defences and their parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chains import DATA
from exports import SHAPE, TORCH_FITS, predictor, squeezing
from torch import nn
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.errors import (
    ConfigError,
)
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.testing import tiny_classifier

pytestmark = TORCH_FITS


def command(*words: Any) -> Any:
    """`medfedpure export` in this process."""
    return CliRunner().invoke(app, ["export", *map(str, words)])


def test_the_command_exports_a_defence_and_its_classifier(tmp_path: Path) -> None:
    chain = squeezing()
    chain.save(tmp_path / "guarded")
    answer = command(tmp_path / "guarded", "--out", tmp_path / "new" / "guarded.pt2", "--format", "torch", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.output)["policy"] == "abstain"
    answer = command(tmp_path / "guarded", "--part", "classifier", "--out", tmp_path / "bare.pt2")
    assert answer.exit_code == 0, answer.output
    assert "images to logits; checked in torch" in answer.output
    assert "not a medical device" in answer.output
    (logits,) = torch.export.load(tmp_path / "bare.pt2").module()(DATA.images)
    assert torch.equal(logits, chain.predict(DATA.images, seed=0).logits)


def test_the_command_exports_the_noise_predictor_of_a_defence(tmp_path: Path) -> None:
    facts = ImageFacts(SHAPE, ("plain", "disc"))
    chain = DefendedClassifier(tiny_classifier(), purifier=predictor(), policy="purify_all", image_facts=facts)
    chain.save(tmp_path / "guarded")
    refused = command(tmp_path / "guarded", "--out", tmp_path / "all.pt2")
    assert isinstance(refused.exception, ConfigError)
    assert "--part classifier" in str(refused.exception)
    answer = command(tmp_path / "guarded", "--part", "purifier", "--out", tmp_path / "noise.pt2")
    assert answer.exit_code == 0, answer.output
    assert "noisy, timestep to noise" in answer.output


def test_the_command_says_what_it_takes(tmp_path: Path) -> None:
    chain = replace_classifier(squeezing())
    chain.save(tmp_path / "own")
    tiny_classifier().save(tmp_path / "model")
    create("purifier", "median").save(tmp_path / "median")
    for words, said in (
        ((tmp_path / "median",), "holds a purifier; a saved classifier or a saved defence is exported"),
        ((tmp_path / "model", "--part", "purifier"), "is a classifier, and its purifier was asked for"),
        ((tmp_path / "model", "--part", "head"), "no part is named 'head'"),
        ((tmp_path / "own",), "--classifier module:function"),
    ):
        answer = command(*words, "--out", tmp_path / "file.pt2")
        assert said in str(answer.exception), answer.output
    assert not (tmp_path / "file.pt2").exists()


def replace_classifier(chain: DefendedClassifier) -> DefendedClassifier:
    """The same defence around a module of one's own."""
    own = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    return DefendedClassifier(own, detector=chain.detector, policy="none", image_facts=chain.image_facts)


def test_the_command_exports_a_defence_around_a_module_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = replace_classifier(squeezing())
    chain.save(tmp_path / "own")
    (tmp_path / "exported_module.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    for part in ("defence", "classifier"):
        words = ("own", "--classifier", "exported_module:build", "--part", part)
        answer = command(*words, "--out", "file.pt2")
        assert answer.exit_code == 0, answer.exception
        logits = torch.export.load("file.pt2").module()(DATA.images)[0]
        assert torch.equal(logits, chain.predict(DATA.images, seed=0).logits)
