"""Strategies: what travels, the weighted mean, and a round's place in the schedule."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from planted import GoodStrategy
from torch import nn

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import Update, train_round, weighted_mean
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig
from medfedpure.testing import Setting, tiny_classifier, tiny_context, tiny_dataset
from medfedpure.testing.checking import assert_equal, seed_everything
from medfedpure.testing.observing import client_round


@pytest.fixture(scope="module")
def setting() -> Setting:
    """A small data set and classifier."""
    return Setting.of(tiny_dataset(), tiny_context())


def tensors(*values: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor(values)}


def test_the_mean_is_weighted_by_examples() -> None:
    updates = [Update("a", tensors(0.0, 1.0), 30), Update("b", tensors(4.0, 1.0), 10)]
    assert weighted_mean(tensors(9.0, 9.0), updates)["weight"].tolist() == [1.0, 1.0], "0.75 of a and 0.25 of b"


def test_the_mean_is_exact_for_every_order() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [
        Update(f"client{i}", {"w": torch.randn(500, generator=generator) * 10.0**i}, 7 * i + 1) for i in range(6)
    ]
    previous = {"w": torch.zeros(500)}
    mean = weighted_mean(previous, updates)
    for order in torch.stack([torch.randperm(6, generator=generator) for _ in range(10)]).tolist():
        assert_equal(weighted_mean(previous, [updates[i] for i in order]), mean, "updates in another order")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_keeps_the_dtype(dtype: torch.dtype) -> None:
    value = {"w": torch.ones(3, dtype=dtype)}
    assert weighted_mean(value, [Update("a", value, 1), Update("b", value, 2)])["w"].dtype == dtype, "another dtype"


def test_wrong_updates() -> None:
    previous = tensors(0.0)
    for updates, text in (
        ([], "no client"),
        ([Update("a", {}, 1)], "client a sent other tensors than wanted: weight"),
        ([Update("a", {**previous, "extra": torch.zeros(1)}, 1)], "extra"),
        ([Update("a", tensors(0.0, 1.0), 1)], "client a"),
        ([Update("a", previous, 0)], "examples"),
        ([Update("a", previous, 5), Update("b", previous, -1)], "examples"),
        ([Update("a", tensors(float("nan")), 1)], "client a"),
    ):
        with pytest.raises(FederationError, match=text):
            weighted_mean(previous, updates)


@pytest.mark.parametrize(("steps", "rounds"), [(10, 1), (10, 3), (10, 10), (7, 2), (100, 7)])
def test_windows_cover_the_schedule(setting: Setting, steps: int, rounds: int) -> None:
    base = client_round(GoodStrategy(), setting)
    windows = [
        replace(base, round=number, rounds=rounds, training=TrainingConfig(steps=steps)).window()
        for number in range(1, rounds + 1)
    ]
    assert windows[0][0] == 0, "the first round starts the schedule"
    assert windows[-1][1] == steps, "the last round ends it"
    assert all(one[1] == two[0] for one, two in pairwise(windows)), "gaps between rounds"


def test_integer_buffers_stay_whatever_the_strategy_says(setting: Setting) -> None:
    shared, private = create("personalization", "fedavg").split(tiny_classifier())
    counters = {key for key in tiny_classifier().state_dict() if key.endswith("num_batches_tracked")}
    assert counters, "this network counts batches"
    assert private.keys() == counters, "with fedavg only the counters stay"
    assert not counters & shared.keys(), "a counter travels"


def test_a_personal_head_stays(setting: Setting) -> None:
    model = tiny_classifier()
    shared, private = create("personalization", "fedper").split(model)
    assert model.head_keys() <= private.keys(), "the head travels"
    assert "network.body.0.weight" in shared, "the body stays"
    with pytest.raises(FederationError, match="head_keys"):
        create("personalization", "fedper").split(nn.Linear(2, 2))


def test_heads_differ_and_bodies_agree_after_two_clients(setting: Setting) -> None:
    strategy = create("personalization", "fedper")
    north, south = (replace(setting, train=part) for part in setting.train.partition(2, seed=1))
    rounds = [client_round(strategy, part, client_id=name) for part, name in ((north, "north"), (south, "south"))]
    done = [strategy.local_update(r) for r in rounds]
    updates = [Update(r.client_id, d.shared, d.num_examples) for r, d in zip(rounds, done, strict=True)]
    mean = strategy.aggregate(1, rounds[0].shared, updates)
    models = [
        strategy.personal_model(replace(r, shared=mean, private=d.private)) for r, d in zip(rounds, done, strict=True)
    ]
    one, two = (model.state_dict() for model in models)
    assert torch.equal(one["network.body.0.weight"], two["network.body.0.weight"]), "bodies must agree"
    assert not torch.equal(one["network.head.weight"], two["network.head.weight"]), "heads must be personal"


def test_rounds_repeat_and_differ_by_client_seed(setting: Setting) -> None:
    strategy = create("personalization", "fedavg")
    seed_everything(1)
    first = strategy.local_update(client_round(strategy, setting)).shared
    seed_everything(2)
    assert_equal(strategy.local_update(client_round(strategy, setting)).shared, first, "equal seed")
    other = strategy.local_update(replace(client_round(strategy, setting), seed=99)).shared
    assert not torch.equal(other["network.head.weight"], first["network.head.weight"]), "the seed does nothing"


def test_a_round_trains_its_share_of_the_steps(setting: Setting) -> None:
    r = client_round(GoodStrategy(), setting, number=2)
    assert train_round(r, r.make_model()).steps == 2, "the second of two rounds of four steps has two"
