"""Group positives as an option of every strategy: what the task becomes, and that a federation runs with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import client_round, two_clients
from torch import nn

from medfedpure.core.errors import TrainingError
from medfedpure.core.personalization import ClientRound, PersonalizationStrategy
from medfedpure.core.registry import create
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.federation import Site, federate
from medfedpure.testing import tiny_dataset
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.group_positives import GroupPositivesTask
from medfedpure.training.group_sampling import Partnered

ON = {"group_positives": {"weight": 0.5, "images": 3}}
ATTACKED = {"adversarial": {"share": 0.5, "eps": 0.05, "step": 0.05, "steps": 1}}


def make_model() -> nn.Module:
    return create("classifier", "small_cnn", widths=(8,)).create_model(in_channels=1, num_classes=2, image_size=32)


def round_of(strategy: PersonalizationStrategy, sampling: str = "shuffled") -> ClientRound:
    data = tiny_dataset(16)
    r = client_round(strategy, data, "north", make_model=make_model)
    return replace(r, training=r.training.model_copy(update={"sampling": sampling, "batch_size": 8}))


def hardened(sampling: str = "shuffled", **options: object):
    strategy = create("personalization", "fedavg", options)
    r = round_of(strategy, sampling)
    return strategy.hardened(r.task, r), r.task


def test_without_them_a_task_is_what_it_was() -> None:
    task, plain = hardened()
    assert task is plain
    task, plain = hardened(**ATTACKED)
    assert isinstance(task, AdversarialTask)
    assert task.inner is task.objective is plain


def test_the_attack_raises_the_plain_loss_and_the_term_sees_what_it_made() -> None:
    task, plain = hardened(**ON, **ATTACKED)
    assert isinstance(task, AdversarialTask)
    assert isinstance(task.inner, GroupPositivesTask)
    assert task.inner.inner is task.objective is plain


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_batches_hold_groups_and_balance_classes_where_asked_for(sampling: str) -> None:
    for options in (ON, {**ON, **ATTACKED}):
        sampler = hardened(sampling, **options)[0].sampler()
        assert isinstance(sampler, Partnered)
        assert (sampler.balanced, sampler.images) == (sampling == "balanced", 3)


def test_a_network_without_features_is_refused_before_its_first_step() -> None:
    strategy = create("personalization", "fedavg", ON)
    data = replace(two_clients()["north"], groups=torch.arange(12) // 3)
    r = client_round(strategy, data, "north")
    with pytest.raises(TrainingError, match=r"Linear has no features\(images\)"):
        strategy.local_update(r)


@pytest.mark.parametrize("name", ["fedavg", "fedrep", "ditto", "mixture"])
def test_a_federation_trains_with_them(name: str) -> None:
    def rounds(**options: object) -> dict[str, nn.Module]:
        parts = tiny_dataset(48).partition(2)
        sites = [Site(f"client_{place}", part, None) for place, part in enumerate(parts)]
        return federate(
            sites,
            make_model=make_model,
            task=ClassificationTask(Augmentation()),
            strategy=create("personalization", name, options),
            training=TrainingConfig(steps=4, batch_size=8),
            rounds=2,
            seed=0,
        ).models

    first, again, off = rounds(**ON), rounds(**ON), rounds()
    for client, model in first.items():
        state = model.state_dict()
        assert all(torch.equal(value, again[client].state_dict()[key]) for key, value in state.items())
        assert any(not torch.equal(value, off[client].state_dict()[key]) for key, value in state.items())
