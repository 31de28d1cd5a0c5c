"""Update rules of the mixtures of experts against two clients' linear models, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import (
    SIZES,
    TOLERANCE,
    WEIGHTS,
    Linear,
    assert_agree,
    descend,
    losses,
    losses_of,
    rates,
    run,
    start,
    two_clients,
)
from torch import Tensor

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.personalization import Tensors
from medfedpure.core.registry import create


@pytest.fixture(scope="module")
def clients() -> dict[str, ImageDataset]:
    return two_clients()


def averaged(local: dict[str, list[Tensors]], k: int, parts: dict[str, float]) -> Tensors:
    """Expert k of all clients, each weighted by its part."""
    total = sum(parts.values())
    return {key: sum(parts[name] * experts[k][key] for name, experts in local.items()) / total for key in WEIGHTS}


def assert_found(result: Any, experts: list[Tensors], shares: dict[str, Tensor]) -> None:
    """A run ended with these two experts, and every client with its shares of them."""
    for k in (0, 1):
        assert_agree(result.shared, {f"experts.{k}.{key}": experts[k][key] for key in WEIGHTS})
    for name, model in result.models.items():
        torch.testing.assert_close(model.state_dict()["weights"], shares[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("weighting", ["examples", "responsibilities"])
def test_mixture_is_expectation_and_weighted_maximization(clients: dict[str, ImageDataset], weighting: str) -> None:
    strategy = create("personalization", "mixture", experts=2, weighting=weighting)
    first = strategy.initial_shared(Linear, 0)
    experts = [{key: first[f"experts.{place}.{key}"] for key in WEIGHTS} for place in (0, 1)]
    assert_agree(experts[0], start())
    assert not torch.allclose(experts[0]["body.weight"], experts[1]["body.weight"], atol=1e-2), "experts start equal"
    shares = {name: torch.tensor([0.5, 0.5]) for name in clients}
    for number in (1, 2):
        local: dict[str, list[Tensors]] = {}
        for name, data in clients.items():
            likelihood = torch.stack([(-losses(expert, data)).exp() for expert in experts], 1)
            q = shares[name] * likelihood / (shares[name] * likelihood).sum(1, keepdim=True)
            shares[name] = q.mean(0)
            local[name] = [
                descend(expert, lambda v, d=data, q_k=q[:, k]: (q_k * losses(v, d)).mean(), rates(number))
                for k, expert in enumerate(experts)
            ]
        for k in (0, 1):
            parts = {
                name: SIZES[name] * (1.0 if weighting == "examples" else float(shares[name][k])) for name in clients
            }
            experts[k] = averaged(local, k, parts)
    result = run(strategy, clients)
    assert_found(result, experts, shares)
    for name, model in result.models.items():
        data = clients[name]
        wanted = sum(shares[name][k] * (-losses(experts[k], data)).exp() for k in (0, 1))
        found = model(data.images).softmax(1).gather(1, data.labels[:, None])[:, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
        reported = [key for key in result.results[name].metrics if "weight" in key]
        assert bool(reported) == (weighting == "responsibilities"), f"{reported} would leave the client"


def one_step_against(experts: list[Tensors], share: Tensor, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """x + eps sign grad_x -log sum_k pi_k p_k(y | x), within [0, 1]."""
    leaf = x.clone().requires_grad_(True)
    likelihood = sum(share[k] * (-losses_of(expert, leaf, labels)).exp() for k, expert in enumerate(experts))
    (gradient,) = torch.autograd.grad(-likelihood.log().sum(), leaf)
    return (x + eps * gradient.sign()).clamp(0, 1)


def test_pfeddef_is_the_mixture_on_images_that_each_client_attacks(clients: dict[str, ImageDataset]) -> None:
    eps = 0.1
    attack = {"share": 1.0, "eps": eps, "step": eps, "steps": 1, "random_start": False}
    strategy = create("personalization", "pfeddef", experts=2, adversarial=attack)
    first = strategy.initial_shared(Linear, 0)
    experts = [{key: first[f"experts.{place}.{key}"] for key in WEIGHTS} for place in (0, 1)]
    shares = {name: torch.tensor([0.5, 0.5]) for name in clients}
    for number in (1, 2):
        local: dict[str, list[Tensors]] = {}
        for name, data in clients.items():
            x, labels = data.pixels.float().flatten(1) / 255, data.labels
            hard = one_step_against(experts, shares[name], x, labels, eps)
            likelihood = torch.stack([(-losses_of(expert, hard, labels)).exp() for expert in experts], 1)
            q = shares[name] * likelihood / (shares[name] * likelihood).sum(1, keepdim=True)
            shares[name] = q.mean(0)
            mine = [dict(expert) for expert in experts]
            for rate in rates(number):
                hard = one_step_against(mine, shares[name], x, labels, eps)
                for k in (0, 1):
                    leaves = {key: value.clone().requires_grad_(True) for key, value in mine[k].items()}
                    loss = (q[:, k] * losses_of(leaves, hard, labels)).mean()
                    gradients = torch.autograd.grad(loss, [leaves[key] for key in WEIGHTS])
                    mine[k] = {key: mine[k][key] - rate * g for key, g in zip(WEIGHTS, gradients, strict=True)}
            local[name] = mine
        for k in (0, 1):
            parts = {name: SIZES[name] * float(shares[name][k]) for name in clients}
            experts[k] = averaged(local, k, parts)
    result = run(strategy, clients)
    assert_found(result, experts, shares)
