"""Update rules of the strategies against two clients' linear models, computed here with plain torch formulas.

The model is softmax(W x + b) on 1x2 images; one round is a few full-batch steps of plain gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.augmentation import Augmentation
from medfedpure.core.classifier import ClassificationTask
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import ClientRound, LocalResult, PersonalizationStrategy, Tensors, Update
from medfedpure.core.registry import create
from medfedpure.core.training import TrainingConfig

RATE, STEPS, TOLERANCE = 0.5, 4, 1e-6
SIZES = {"north": 12, "south": 4}


class PlainDescent(ClassificationTask):
    """Cross-entropy without augmentation, by gradient descent without momentum."""

    def __init__(self) -> None:
        super().__init__(Augmentation(flip=False, shift=0))

    def optimizer(self, parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=config.learning_rate)


class Linear(nn.Module):
    """A body that is one matrix, a head that is an affine map; between them BatchNorm where asked for."""

    def __init__(self, normalized: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2, bias=False)
        self.norm = nn.BatchNorm1d(2) if normalized else nn.Identity()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[1.0, 0.2], [-0.3, 0.8]]))
            self.head.weight.copy_(torch.tensor([[0.4, -0.5], [-0.1, 0.6]]))
            self.head.bias.copy_(torch.tensor([0.1, -0.1]))

    def head_keys(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(images.flatten(1))))
        return logits


WEIGHTS = ("body.weight", "head.weight", "head.bias")


@pytest.fixture(scope="module")
def clients() -> dict[str, ImageDataset]:
    """Two clients of different size whose labels follow different rules."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for place, (name, size) in enumerate(SIZES.items()):
        pixels = torch.randint(0, 256, (size, 1, 1, 2), dtype=torch.uint8, generator=generator)
        labels = (pixels[:, 0, 0, place] > 127).long()
        made[name] = ImageDataset(pixels, labels, torch.arange(size), ("no", "yes"))
    return made


def client_round(
    strategy: PersonalizationStrategy,
    data: ImageDataset,
    name: str,
    *,
    number: int = 1,
    shared: Tensors | None = None,
    private: Tensors | None = None,
    make_model: Callable[[], nn.Module] = Linear,
) -> ClientRound:
    """Round `number` of 2, STEPS steps long, each over all images of the client."""
    return ClientRound(
        round=number,
        rounds=2,
        client_id=name,
        shared=strategy.initial_shared(make_model, 0) if shared is None else shared,
        private=private or {},
        make_model=make_model,
        train=data,
        validation=None,
        config=strategy.client_config(number, name, []),
        seed=5,
        task=PlainDescent(),
        training=TrainingConfig(
            steps=2 * STEPS, batch_size=len(data), learning_rate=RATE, warmup=0, weight_decay=0, clip_norm=1e6
        ),
    )


@dataclass(frozen=True)
class TwoRounds:
    """What two rounds of both clients left behind."""

    shared: Tensors
    results: Mapping[str, LocalResult]
    models: Mapping[str, nn.Module]


def run(
    strategy: PersonalizationStrategy,
    clients: Mapping[str, ImageDataset],
    rounds: int = 2,
    make_model: Callable[[], nn.Module] = Linear,
) -> TwoRounds:
    """Rounds of both clients, as a federation has them."""
    shared = strategy.initial_shared(make_model, 0)
    private: dict[str, Tensors] = {name: {} for name in clients}
    done: dict[str, LocalResult] = {}
    for number in range(1, rounds + 1):
        for name, data in clients.items():
            r = client_round(
                strategy,
                data,
                name,
                number=number,
                shared=shared,
                private=private[name],
                make_model=make_model,
            )
            done[name] = strategy.local_update(r)
            private[name] = done[name].private
        updates = [Update(name, d.shared, d.num_examples, d.metrics) for name, d in done.items()]
        shared = strategy.aggregate(number, shared, updates)
    models = {
        name: strategy.personal_model(
            client_round(
                strategy, data, name, number=rounds, shared=shared, private=private[name], make_model=make_model
            )
        )
        for name, data in clients.items()
    }
    return TwoRounds(shared, done, models)


# -- the reference: weights as a plain dictionary, gradients of the formula of the loss ---------------------------


def start() -> Tensors:
    return {key: value.detach().clone() for key, value in Linear().state_dict().items()}


def rates(number: int) -> list[float]:
    """The cosine from 1 down to 2 % of the peak, without a warm-up, over both rounds."""
    places = torch.arange(STEPS * (number - 1), STEPS * number, dtype=torch.float64)
    return (RATE * (0.02 + 0.49 * (1 + torch.cos(torch.pi * places / (2 * STEPS))))).tolist()


def losses(w: Tensors, data: ImageDataset) -> Tensor:
    """-log softmax_y(W_h W_b x + b) of each image."""
    return losses_of(w, data.pixels.float().flatten(1) / 255, data.labels)


def descend(
    w: Tensors, loss: Callable[[Tensors], Tensor], steps: Sequence[float], keys: Sequence[str] = WEIGHTS
) -> Tensors:
    """w <- w - rate * gradient, for some of the weights."""
    for rate in steps:
        free = {key: w[key].clone().requires_grad_(True) for key in keys}
        gradients = torch.autograd.grad(loss({**w, **free}), list(free.values()))
        w = {**w, **{key: w[key] - rate * g for key, g in zip(keys, gradients, strict=True)}}
    return w


def mean(parts: Mapping[str, Tensors], keys: Sequence[str]) -> Tensors:
    """(12 north + 4 south) / 16."""
    return {key: 0.75 * parts["north"][key] + 0.25 * parts["south"][key] for key in keys}


def pull(w: Tensors, anchor: Tensors, strength: float) -> Tensor:
    total = torch.zeros(())
    for key in WEIGHTS:
        total = total + ((w[key] - anchor[key]) ** 2).sum()
    return strength / 2 * total


def assert_agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, value in wanted.items():
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}"
        )


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
            experts[k] = {
                key: sum(parts[name] * local[name][k][key] for name in clients) / sum(parts.values()) for key in WEIGHTS
            }
    result = run(strategy, clients)
    for k in (0, 1):
        assert_agree(result.shared, {f"experts.{k}.{key}": experts[k][key] for key in WEIGHTS})
    for name, model in result.models.items():
        torch.testing.assert_close(model.state_dict()["weights"], shares[name], rtol=0, atol=TOLERANCE)
        data = clients[name]
        wanted = sum(shares[name][k] * (-losses(experts[k], data)).exp() for k in (0, 1))
        found = model(data.images).softmax(1).gather(1, data.labels[:, None])[:, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
        reported = [key for key in result.results[name].metrics if "weight" in key]
        assert bool(reported) == (weighting == "responsibilities"), f"{reported} would leave the client"


def losses_of(w: Tensors, x: Tensor, labels: Tensor) -> Tensor:
    """-log softmax_y(W_h W_b x + b) of flat images `(N, 2)`."""
    logits = x @ w["body.weight"].T @ w["head.weight"].T + w["head.bias"]
    return logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


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
            experts[k] = {
                key: sum(parts[name] * local[name][k][key] for name in clients) / sum(parts.values()) for key in WEIGHTS
            }
    result = run(strategy, clients)
    for k in (0, 1):
        assert_agree(result.shared, {f"experts.{k}.{key}": experts[k][key] for key in WEIGHTS})
    for name, model in result.models.items():
        torch.testing.assert_close(model.state_dict()["weights"], shares[name], rtol=0, atol=TOLERANCE)


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
