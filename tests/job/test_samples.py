"""A run whose classifier also learns from what the purifier draws: in order, checked, and never in a held-out part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError, DataError
from medfedpure.data.synthetic import synthetic
from medfedpure.job import components
from medfedpure.job.config import RunConfig
from medfedpure.job.federate_config import FederateConfig
from medfedpure.job.run import run_job

SMALL: dict[str, Any] = {
    "data": {
        "plugin": "phantom",
        "config": {"images": 240, "image_size": 24},
        "clients": 2,
        "train": 0.3,
        "calibrate": 0.4,
    },
    "classifier": {
        "plugin": "small_cnn",
        "config": {"widths": [8, 8]},
        "rounds": 2,
        "training": {"steps": 4, "batch_size": 8},
        "samples": 0.5,
    },
    "purifier": {
        "plugin": "class_ddpm",
        "config": {
            "model": {"widths": [8, 8], "unshuffle": 4},
            "training": {"steps": 4, "batch_size": 8},
            "sampling": {"num_inference_steps": 2},
            "generation": {"steps": 2},
        },
    },
    "detector": {"plugin": "denoising_disagreement", "config": {"steps": 1}},
    "attack": {"plugin": "pgd_eot", "config": {"steps": 1}},
    "evaluation": {"compare": ["local"]},
}


def changed(**settings: Any) -> RunConfig:
    content = copy.deepcopy(SMALL)
    for path, value in settings.items():
        *sections, key = path.split("__")
        table = content
        for section in sections:
            table = table[section]
        table[key] = value
    return RunConfig.parse(content)


def test_classifiers_learn_from_samples_and_nothing_else_does(tmp_path, monkeypatch) -> None:
    learned: list[dict[str, ImageDataset]] = []
    train_classifiers = components.train_classifiers

    def watched(config, sites, strategy):
        learned.append({site.client_id: site.train for site in sites})
        assert not any(bool(synthetic(site.validation).any()) for site in sites)
        return train_classifiers(config, sites, strategy)

    fitted: list[ImageDataset] = []
    fit_locally = components._fit_locally

    def seen(component, site, *rest):
        fitted.append(site.train)
        return fit_locally(component, site, *rest)

    monkeypatch.setattr("medfedpure.job.run.train_classifiers", watched)
    monkeypatch.setattr(components, "_fit_locally", seen)
    said: list[str] = []
    job = run_job(changed(), tmp_path / "run", say=said.append)
    assert list(job.result.federated)[:2] == ["purifier", "classifier"], "the purifier is trained first"
    assert len(learned) == 2, "the job's own strategy and the one beside it"
    for given in learned:
        for client, data in given.items():
            own = job.parts[client]
            marks = synthetic(data)
            assert int(marks.sum()) == round(0.5 * len(own["train"]))
            assert torch.equal(data.pixels[~marks], own["train"].pixels)
            assert not any(bool(synthetic(part).any()) for part in own.values())
            held_out = torch.cat([part.groups for name, part in own.items() if name != "train"])
            assert not bool(torch.isin(data.groups, held_out).any())
    first, second = (data[~synthetic(data)] for data in learned[0].values())
    assert first.fingerprint() != second.fingerprint()
    assert all(learned[0][client].fingerprint() == learned[1][client].fingerprint() for client in learned[0])
    assert fitted
    assert not any(bool(synthetic(data).any()) for data in fitted), "a detector or a purifier was fitted on samples"
    assert sum("synthetic images added" in line for line in said) == 2, said
    assert job.result.sizes["client_0"]["train"] == len(job.parts["client_0"]["train"]), "recorded images are counted"


def test_what_cannot_draw_is_refused_before_training(tmp_path) -> None:
    def refused(error: type[Exception], words: str, **settings: Any) -> None:
        said: list[str] = []
        with pytest.raises(error, match=words):
            run_job(changed(**settings), tmp_path / "run", say=said.append)
        assert not any("steps of" in line for line in said), said

    plain = {key: value for key, value in SMALL["purifier"]["config"].items() if key != "generation"}
    refused(ConfigError, "'ddpm' does not: choose class_ddpm", purifier={"plugin": "ddpm", "config": plain})
    refused(DataError, "phantom has 2 classes, and the model draws 4", purifier__config__generation={"classes": 4})


def test_a_federation_of_the_classifier_alone_has_nobody_who_draws() -> None:
    content = {key: SMALL[key] for key in ("data", "classifier")}
    with pytest.raises(ConfigError, match=r"classifier\.samples are drawn by a purifier"):
        FederateConfig.parse(content)
