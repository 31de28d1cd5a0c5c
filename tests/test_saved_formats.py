"""What earlier versions saved is still read, and answers as it did; what a later one saved is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import medfedpure
from medfedpure import DefendedClassifier, Prediction, Streams
from medfedpure.core import storage
from medfedpure.core.errors import ArtifactError
from medfedpure.job.subject import load_subject

SAVED = Path(__file__).parent / "fixtures" / "format_1"
IMAGES = load_file(SAVED / "images.safetensors")["pixels"].float() / 255
DETERMINISTIC = ("deterministic", "mahalanobis", "own_module")
STOCHASTIC = ("ddpm", "mae")


class Own(nn.Sequential):
    """The user's own module, whose weights the folder holds."""


def load(name: str) -> DefendedClassifier:
    own = Own(nn.Flatten(), nn.Linear(24 * 24, 2)) if name == "own_module" else None
    return DefendedClassifier.load(SAVED / "defences" / name, classifier=own)


def assert_as_it_was(name: str, found: Prediction) -> None:
    answers = load_file(SAVED / "defences" / f"{name}.safetensors")
    for field in ("labels", "flagged", "purified", "abstained"):
        assert torch.equal(getattr(found, field), answers[field]), f"{field} changed"
    assert torch.allclose(found.probabilities, answers["probabilities"], atol=1e-4), "probabilities changed"
    assert torch.allclose(found.images[:8], answers["images"], atol=1e-4), "cleaned images changed"
    if "scores" in answers:
        assert torch.allclose(found.scores, answers["scores"], atol=1e-4, rtol=1e-3), "scores changed"


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_defences_answer_equally(name: str) -> None:
    assert_as_it_was(name, load(name).predict(IMAGES, seed=9))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_under_the_noise_of_their_time_stochastic_ones_do_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DefendedClassifier, "_streams", lambda _, seed, ids: Streams(seed, ids, "format_1"))
    assert_as_it_was(name, load(name).predict(IMAGES, seed=9))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_under_todays_noise_their_verdicts_agree(name: str) -> None:
    answers, found = load_file(SAVED / "defences" / f"{name}.safetensors"), load(name).predict(IMAGES, seed=9)
    agreeing = float((found.labels == answers["labels"]).double().mean())
    assert agreeing >= 0.99, f"only {agreeing:.1%} of {len(IMAGES)} verdicts are as they were"


def test_what_is_saved_again_is_of_todays_format(tmp_path: Path) -> None:
    chain = load("ddpm")
    chain.save(tmp_path / "again")
    documents = [json.loads(path.read_text()) for path in (tmp_path / "again").rglob(storage.DOCUMENT)]
    assert {document["format"] for document in documents} == {storage.FORMAT}
    again = DefendedClassifier.load(tmp_path / "again").predict(IMAGES[:20], seed=1)
    assert torch.equal(again.scores, chain.predict(IMAGES[:20], seed=1).scores)


def test_a_run_is_evaluated_on_its_own_test_images() -> None:
    subject = load_subject(SAVED / "run", client="client_1")
    assert subject.name == "client_1"
    assert set(subject.attackers) == {"client_0"}
    assert set(subject.federation) == {"client_0", "client_1"}
    results = json.loads((SAVED / "run" / "results.json").read_text())
    test = subject.federation["client_0"][1]
    assert len(test) == results["sizes"]["client_0"]["test"]
    bare = results["clients"][0]["bare"]["clean_balanced_accuracy"]
    found = subject.federation["client_0"][0].predict(test.images, ids=test.ids, seed=0)
    right = found.bare_logits.argmax(1) == test.labels
    balanced = sum(float(right[test.labels == label].double().mean()) for label in (0, 1)) / 2
    assert balanced == pytest.approx(bare), "the images or the classifier are not those of the run"


def edited(source: Path, target: Path, format: int) -> Path:
    """A copy of a saved folder whose documents say another format, with digests that fit."""
    shutil.copytree(source, target)
    for path in target.rglob(storage.DOCUMENT):
        document = json.loads(path.read_text()) | {"format": format}
        document["digest"] = storage._digest(document)
        path.write_text(json.dumps(document))
    return target


def test_a_defence_of_a_later_version_is_refused(tmp_path: Path) -> None:
    later = edited(SAVED / "defences" / "deterministic", tmp_path / "later", 99)
    with pytest.raises(ArtifactError, match=r"format 99, that of a later medfedpure.*upgrade medfedpure"):
        DefendedClassifier.load(later)


def test_a_run_of_a_later_version_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SAVED / "run", tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ArtifactError, match=r"format 99, that of a later medfedpure.*upgrade medfedpure"):
        load_subject(tmp_path / "run")


def test_a_format_that_never_was_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="reads formats 1 to"):
        DefendedClassifier.load(edited(SAVED / "defences" / "deterministic", tmp_path / "odd", 0))


def test_a_purifier_of_format_1_has_its_settings_in_their_sections() -> None:
    purifier = load("ddpm").purifier
    assert purifier.config.sampling.num_inference_steps == 3
    assert purifier.config.schedule.kind == "cosine"
    with pytest.raises(medfedpure.core.errors.ConfigError):
        medfedpure.create("purifier", "ddpm", num_inference_steps=3)
