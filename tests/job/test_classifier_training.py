"""What the classifier's section of a run file says of its training reaches it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.federation import Site
from medfedpure.job.components import train_classifiers
from medfedpure.job.config import RunConfig
from medfedpure.testing import tiny_dataset

ADVERSARIAL = {"share": 0.5, "eps": 0.05, "step": "auto", "steps": 1, "normalization": "dual", "eps_full": 0.5}
CLASSIFIER = {
    "plugin": "small_cnn",
    "config": {"widths": [4, 8]},
    "rounds": 3,
    "training": {"steps": 6, "batch_size": 8, "learning_rate": 0.05},
    "strategy": {"plugin": "fedavg", "config": {"adversarial": ADVERSARIAL}},
}
TOML = """
[data]
plugin = "phantom"

[classifier]
plugin = "small_cnn"
label_smoothing = 0.1
keep = "best"

[classifier.training]
decay_all = false

[classifier.strategy]
plugin = "fedavg"

[classifier.strategy.config.adversarial]
share = 1.0
step = "auto"

[detector]
plugin = "denoising_disagreement"

[purifier]
plugin = "ddpm"
"""


def sites() -> list[Site]:
    both = tiny_dataset(48, size=16)
    half: list[ImageDataset] = [both.select(torch.arange(48) // 4 % 2 == place) for place in (0, 1)]
    return [
        Site(name, own.select(torch.arange(24) < 16), own.select(torch.arange(24) >= 16))
        for name, own in zip("ab", half, strict=True)
    ]


def trained(**changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = RunConfig.parse(
        {
            "data": {"plugin": "phantom", "clients": 2},
            "classifier": {**CLASSIFIER, **changes},
            "detector": {"plugin": "denoising_disagreement"},
            "purifier": {"plugin": "ddpm"},
        }
    )
    models, rounds = train_classifiers(config, sites(), config.classifier.strategy)
    return {name: model.state_dict() for name, model in models.items()}, rounds


def test_smoothing_and_the_best_round_reach_the_training() -> None:
    last, rounds = trained()
    smoothed, _ = trained(label_smoothing=0.4)
    assert any(not torch.equal(value, smoothed["a"][key]) for key, value in last["a"].items())
    best, again = trained(keep="best")
    for one, two in zip(rounds, again, strict=True):
        assert one["clients"] == two["clients"], "what is kept must not change what is trained"
    for client in "ab":
        own = [document["clients"][client] for document in rounds]
        worth = [(figures["robust_balanced_accuracy"], -figures["robust_loss"]) for figures in own]
        same = all(torch.equal(best[client][key], last[client][key]) for key in last[client])
        assert same is (worth.index(max(worth)) == len(worth) - 1)


def test_a_run_file_says_it_all(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TOML, encoding="utf-8")
    config = RunConfig.from_toml(path)
    assert (config.classifier.label_smoothing, config.classifier.keep) == (0.1, "best")
    assert config.classifier.training.decay_all is False
    path.write_text(config.to_toml(), encoding="utf-8")
    again = RunConfig.from_toml(path).classifier.strategy
    strategy = medfedpure.create("personalization", again.plugin, again.config)
    assert strategy.config.adversarial.step is None
    assert strategy.config.adversarial.step_size == pytest.approx(2.5 * 0.015 / 7)
