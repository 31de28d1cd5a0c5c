"""Update rules of the strategies against two clients' linear models, computed by hand."""

from __future__ import annotations

import pytest
import torch
from by_hand import (
    STEPS,
    WEIGHTS,
    Linear,
    assert_agree,
    client_round,
    descend,
    losses,
    mean,
    pull,
    rates,
    run,
    start,
    two_clients,
)
from torch import Tensor

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import ClientRound, Tensors
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig


@pytest.fixture(scope="module")
def clients() -> dict[str, ImageDataset]:
    return two_clients()


def test_fedavg(clients: dict[str, ImageDataset]) -> None:
    w = start()
    for number in (1, 2):
        local = {k: descend(w, lambda v, d=d: losses(v, d).mean(), rates(number)) for k, d in clients.items()}
        w = mean(local, WEIGHTS)
    result = run(create("personalization", "fedavg"), clients)
    assert_agree(result.shared, w)
    assert not torch.allclose(w["body.weight"], start()["body.weight"], atol=1e-2), "the reference must move"


def test_fedprox_pulls_to_the_global_model(clients: dict[str, ImageDataset]) -> None:
    w, free = start(), start()
    for number in (1, 2):
        local = {
            k: descend(w, lambda v, d=d, g=w: losses(v, d).mean() + pull(v, g, 0.7), rates(number))
            for k, d in clients.items()
        }
        w = mean(local, WEIGHTS)
        loose = {k: descend(free, lambda v, d=d: losses(v, d).mean(), rates(number)) for k, d in clients.items()}
        free = mean(loose, WEIGHTS)
    assert_agree(run(create("personalization", "fedprox", mu=0.7), clients).shared, w)
    assert_agree(run(create("personalization", "fedprox", mu=0), clients).shared, free)
    assert (w["head.weight"] - free["head.weight"]).abs().max() > 1e-3, "the pull must matter for this test"


def test_fedper_keeps_the_head(clients: dict[str, ImageDataset]) -> None:
    own = {name: start() for name in clients}
    for number in (1, 2):
        own = {k: descend(own[k], lambda v, d=d: losses(v, d).mean(), rates(number)) for k, d in clients.items()}
        body = mean(own, ["body.weight"])
        own = {k: {**w, **body} for k, w in own.items()}
    result = run(create("personalization", "fedper"), clients)
    for name, model in result.models.items():
        assert_agree(model.state_dict(), own[name])


@pytest.mark.parametrize(("share", "of_the_head"), [(0.5, 2), (0.75, 3), (0.01, 1), (0.99, 3)])
def test_fedrep_trains_the_head_and_then_the_body(
    clients: dict[str, ImageDataset], share: float, of_the_head: int
) -> None:
    own = {name: start() for name in clients}
    for number in (1, 2):
        steps = rates(number)
        for name, data in clients.items():
            fitted = descend(
                own[name], lambda v, d=data: losses(v, d).mean(), steps[:of_the_head], ["head.weight", "head.bias"]
            )
            own[name] = descend(fitted, lambda v, d=data: losses(v, d).mean(), steps[of_the_head:], ["body.weight"])
        body = mean(own, ["body.weight"])
        own = {k: {**w, **body} for k, w in own.items()}
    result = run(create("personalization", "fedrep", head_share=share), clients)
    assert result.shared.keys() == {"body.weight"}
    for name, model in result.models.items():
        assert_agree(model.state_dict(), own[name])
        assert all(weight.requires_grad for weight in model.parameters()), "frozen weights must be freed again"


def test_fedrep_freezes_running_statistics_too(clients: dict[str, ImageDataset]) -> None:
    strategy = create("personalization", "fedrep", head_share=0.99)
    r = client_round(strategy, clients["north"], "north", make_model=lambda: Linear(normalized=True))
    done = strategy.local_update(r)
    assert int(done.private["norm.num_batches_tracked"]) == 1, "three steps of the head and one of the body"


def test_fedrep_refuses_rounds_of_one_step(clients: dict[str, ImageDataset]) -> None:
    strategy = create("personalization", "fedrep")
    r = client_round(strategy, clients["north"], "north")
    short = ClientRound(**{**vars(r), "training": TrainingConfig(steps=2, batch_size=4)})
    with pytest.raises(FederationError, match=r"raise training.steps to at least 4"):
        strategy.local_update(short)


def test_fedbn_keeps_weights_and_statistics_of_normalization(clients: dict[str, ImageDataset]) -> None:
    scales = ("norm.weight", "norm.bias")
    own = {k: {**start(), "norm.weight": torch.ones(2), "norm.bias": torch.zeros(2)} for k in clients}
    statistics = {k: (torch.zeros(2), torch.ones(2)) for k in clients}

    def loss(w: Tensors, data: ImageDataset) -> Tensor:
        z = data.pixels.float().flatten(1) / 255 @ w["body.weight"].T
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() * w["norm.weight"] + w["norm.bias"]
        logits = z @ w["head.weight"].T + w["head.bias"]
        return (logits.logsumexp(1) - logits.gather(1, data.labels[:, None])[:, 0]).mean()

    for number in (1, 2):
        for name, data in clients.items():
            x = data.pixels.float().flatten(1) / 255
            for rate in rates(number):
                z = x @ own[name]["body.weight"].T
                before, spread = statistics[name]
                statistics[name] = (0.9 * before + 0.1 * z.mean(0), 0.9 * spread + 0.1 * z.var(0))
                own[name] = descend(own[name], lambda v, d=data: loss(v, d), [rate], [*WEIGHTS, *scales])
        common = mean(own, WEIGHTS)
        own = {k: {**w, **common} for k, w in own.items()}
    result = run(create("personalization", "fedbn"), clients, make_model=lambda: Linear(normalized=True))
    assert result.shared.keys() == set(WEIGHTS), "what belongs to BatchNorm must not travel"
    for name, model in result.models.items():
        state = model.state_dict()
        assert_agree(state, own[name])
        assert_agree(state, dict(zip(("norm.running_mean", "norm.running_var"), statistics[name], strict=True)))
        assert int(state["norm.num_batches_tracked"]) == 2 * STEPS


def test_fedbn_refuses_a_model_without_batchnorm() -> None:
    with pytest.raises(FederationError, match="fedavg"):
        create("personalization", "fedbn").split(Linear())


def test_ditto_trains_a_global_and_a_pulled_personal_model(clients: dict[str, ImageDataset]) -> None:
    w, own = start(), {name: start() for name in clients}
    for number in (1, 2):
        own = {
            k: descend(own[k], lambda v, d=d, g=w: losses(v, d).mean() + pull(v, g, 0.4), rates(number))
            for k, d in clients.items()
        }
        local = {k: descend(w, lambda v, d=d: losses(v, d).mean(), rates(number)) for k, d in clients.items()}
        w = mean(local, WEIGHTS)
    result = run(create("personalization", "ditto", lam=0.4), clients)
    assert_agree(result.shared, w)
    for name, model in result.models.items():
        assert_agree(model.state_dict(), own[name])
        assert not torch.allclose(own[name]["head.weight"], w["head.weight"], atol=1e-3), "personal = global"


def test_local_is_training_alone(clients: dict[str, ImageDataset]) -> None:
    own = {k: descend(start(), lambda v, d=d: losses(v, d).mean(), rates(1) + rates(2)) for k, d in clients.items()}
    result = run(create("personalization", "local"), clients)
    assert result.shared == {}
    for name, model in result.models.items():
        assert_agree(model.state_dict(), own[name])


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_normalization_can_stay_with_the_head_and_is_still_of_the_body(
    clients: dict[str, ImageDataset], name: str
) -> None:
    strategy = create("personalization", name, normalization="private")
    r = client_round(strategy, clients["north"], "north", make_model=lambda: Linear(normalized=True))
    assert r.shared.keys() == {"body.weight"}, "neither head nor normalization may travel"
    done = strategy.local_update(r)
    assert {"head.weight", "norm.weight", "norm.running_mean"} <= done.private.keys()
    assert not torch.equal(done.private["norm.weight"], torch.ones(2)), "what stays is trained all the same"
    assert int(done.private["norm.num_batches_tracked"]) == (STEPS if name == "fedper" else STEPS // 2)
