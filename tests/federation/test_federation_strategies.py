"""Every registered strategy through whole federated runs: what travels, what repeats, what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_federation_data import quick, same, small_cnn, three_sites
from wire import Wire, assert_no_scan, assert_nothing_private, assert_the_tap_sees

import medfedpure
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.registry import registry
from medfedpure.core.settings import TrainingConfig
from medfedpure.training.classification import ClassificationTask

NAMES = [record.name for record in registry().plugins("personalization")]
TRAINING = TrainingConfig(steps=4, batch_size=4, learning_rate=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_exports_what_it_evaluates_and_sends_nothing_private(name: str, tmp_path: Path) -> None:
    wire = Wire()
    sites = three_sites(validation=True)
    strategy = medfedpure.create("personalization", name)
    result = quick(sites, strategy, training=TRAINING, rounds=2, tap=wire, state_dir=tmp_path)
    assert not result.missing
    assert all(not record.failed for record in result.history)
    for site in sites:
        model = result.models[site.client_id]
        assert isinstance(model, ClassifierModel)
        assert site.validation is not None
        loss = ClassificationTask().metrics(model, site.validation)["loss"]
        assert loss == pytest.approx(result.history[-1].clients[site.client_id]["loss"], abs=1e-6)
        model.save(tmp_path / "saved" / site.client_id)
        loaded = ClassifierModel.load(tmp_path / "saved" / site.client_id)
        assert same(dict(loaded.state_dict()), dict(model.state_dict()))

    assert_the_tap_sees(result.shared, wire.everything)
    states = list(tmp_path.glob("model/run-*/*/*.safetensors"))
    assert {path.parent.name for path in states} == {"a", "b", "c"}
    assert_nothing_private(states, result.shared, wire.everything)
    for site in sites:
        assert_no_scan(site.train, wire.everything)


@pytest.mark.parametrize("name", NAMES)
def test_runs_repeat_whatever_the_order_of_the_sites(name: str) -> None:
    results = []
    for sites in (three_sites(), three_sites()[::-1]):
        torch.manual_seed(len(results))
        strategy = medfedpure.create("personalization", name)
        results.append(quick(sites, strategy, training=TRAINING, rounds=2))
    first, second = results
    assert same(first.shared, second.shared)
    for client, model in first.models.items():
        assert same(dict(model.state_dict()), dict(second.models[client].state_dict()))


def test_local_training_sends_no_tensor() -> None:
    result = quick(three_sites(), medfedpure.create("personalization", "local"), training=TRAINING, rounds=2)
    size = sum(value.numel() * 4 for value in small_cnn().state_dict().values())
    assert result.shared == {}
    assert result.history[-1].bytes_up < size / 2, "without tensors a message is small"


def test_experts_of_a_run_follow_its_seed() -> None:
    runs = [
        quick(three_sites(), medfedpure.create("personalization", "mixture"), training=TRAINING, rounds=2, seed=seed)
        for seed in (7, 8)
    ]
    weights = [run.shared["network.experts.1.head.weight"] for run in runs]
    assert not torch.equal(weights[0], weights[1])
