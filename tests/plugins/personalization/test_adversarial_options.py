"""Every built-in strategy with every option of adversarial training: it takes it, or refuses it before it trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from conftest import Workshop

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.errors import ConfigError, PartnersWarning, TrainingError
from medfedpure.core.personalization import LocalResult, PersonalizationStrategy, Tensors
from medfedpure.core.registry import create, registry
from medfedpure.core.settings import AdversarialTraining
from medfedpure.testing import Setting
from medfedpure.testing.observing import client_round
from medfedpure.testing.personalizations import next_round
from medfedpure.training.adversarial import AdversarialTask

NAMES = [record.name for record in registry().plugins("personalization")]
ATTACK = {"share": 0.5, "eps": 0.1, "step": "auto", "steps": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "fast": {"method": "fast"},
    "trades": {"method": "trades"},
    "awp": {"awp": 0.01},
    "dual": {"normalization": "dual"},
    "dual_clean": {"normalization": "dual_clean"},
    "trades, dual, awp": {"method": "trades", "normalization": "dual", "awp": 0.01},
    "schedule": {"eps_zero": 0.1, "eps_full": 0.9},
}
MODELS = {"ditto": ["", "personal."]}


@pytest.fixture(scope="module")
def setting(workshop: Workshop) -> Setting:
    return workshop.setting


@pytest.fixture(scope="module")
def without(setting: Setting) -> Callable[[str], Tensors]:
    """The personal model of a strategy after two rounds with the attack alone."""

    @cache
    def trained(name: str) -> Tensors:
        strategy = made(name, {})
        done = two_rounds(strategy, setting)[1]
        return strategy.personal_model(next_round(strategy, setting, done)).state_dict()

    return trained


def made(name: str, options: dict[str, Any], **more: Any) -> PersonalizationStrategy:
    fitting = {**({"experts": 2} if name in ("mixture", "pfeddef") else {}), **more}
    strategy: PersonalizationStrategy = create("personalization", name, adversarial={**ATTACK, **options}, **fitting)
    return strategy


def two_rounds(strategy: PersonalizationStrategy, setting: Setting) -> tuple[LocalResult, LocalResult]:
    first = strategy.local_update(client_round(strategy, setting))
    return first, strategy.local_update(next_round(strategy, setting, first))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_takes_the_option_or_refuses_it(
    name: str, option: str, setting: Setting, without: Callable[[str], Tensors]
) -> None:
    if name in ("mixture", "pfeddef") and "trades" in option:
        with pytest.raises(ConfigError, match="set gate to true"):
            made(name, OPTIONS[option])
        strategy = made(name, OPTIONS[option], gate=True)
    else:
        strategy = made(name, OPTIONS[option])
    with_option, plainly = two_rounds(strategy, setting), without(name)
    plain = strategy.network(client_round(strategy, setting).make_model).state_dict()
    for result in with_option:
        assert result.shared.keys() == client_round(strategy, setting).shared.keys(), "what travels has other names"
        assert all(bool(value.isfinite().all()) for value in (*result.shared.values(), *result.private.values()))
    assert with_option[0].private.keys() == with_option[1].private.keys()
    model = strategy.personal_model(next_round(strategy, setting, with_option[1]))
    assert isinstance(model, ClassifierModel)
    assert model.state_dict().keys() == plain.keys(), "the model that is exported has other tensors"
    changed = [key for key in plain if not (key in plainly and torch.equal(plainly[key], model.state_dict()[key]))]
    assert changed, "the option does nothing"


@pytest.mark.parametrize("name", NAMES)
def test_the_second_set_stays_at_the_client_and_survives_rounds(name: str, setting: Setting) -> None:
    first, second = two_rounds(made(name, {"normalization": "dual"}), setting)
    for prefix in MODELS.get(name, [""]):
        kept = [key for key in first.private if key.startswith(f"{prefix}beside the model.")]
        means = [key for key in kept if key.endswith("running_mean")]
        assert means
        assert not any("beside the model" in key for key in first.shared)
        counters = [key for key in kept if key.endswith("num_batches_tracked")]
        steps = [int(first.private[key]) for key in counters], [int(second.private[key]) for key in counters]
        assert all(two == 2 * one > 0 for one, two in zip(*steps, strict=True)), f"it begins anew: {steps}"


@pytest.mark.parametrize("name", ["fedrep"])
def test_a_part_that_is_held_still_keeps_its_second_set(name: str, setting: Setting) -> None:
    strategy = made(name, {"normalization": "dual"}, head_share=0.5)
    r = client_round(strategy, setting)
    done = strategy.local_update(r)
    counters = [int(v) for k, v in done.private.items() if "beside" in k and k.endswith("num_batches_tracked")]
    assert counters == [1] * len(counters), "one of two steps is the body's"


def test_other_parts_than_classifiers_take_pgd_alone() -> None:
    task = create("purifier", "ddpm", model={"widths": (8, 16)}).task()
    for method in ("fast", "trades"):
        with pytest.raises(TrainingError, match=r'take "pgd"'):
            AdversarialTask(task, AdversarialTraining(share=0.5, method=method), task)


@pytest.mark.parametrize("option", ["trades", "dual", "trades, dual, awp"])
def test_group_positives_stand_beside_every_option(option: str, setting: Setting) -> None:
    grouped = {"weight": 0.5, "same_class": True}
    strategy = create("personalization", "fedavg", adversarial={**ATTACK, **OPTIONS[option]}, group_positives=grouped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartnersWarning)
        done, alone = two_rounds(strategy, setting)[1], two_rounds(made("fedavg", OPTIONS[option]), setting)[1]
    assert done.private.keys() == alone.private.keys()
    assert any(not torch.equal(value, alone.shared[key]) for key, value in done.shared.items())
