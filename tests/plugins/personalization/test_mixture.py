"""Mixtures: weights that are recovered, a gate that routes, shares of adversarial images; and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import ClientRound, PersonalizationStrategy, Tensors, Update
from medfedpure.core.registry import create
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.models.mixture import Gate, Mixture
from medfedpure.plugins.personalization.mixture import GateTask, mixture_of, responsibilities
from medfedpure.plugins.personalization.pfeddef import spread_shares
from medfedpure.testing import Setting, tiny_classifier, tiny_context, tiny_dataset
from medfedpure.testing.observing import client_round
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.trainer import LoopTrainer

STILL = ClassificationTask(Augmentation(flip=False, shift=0))


def federated(
    strategy: PersonalizationStrategy,
    clients: Mapping[str, ImageDataset],
    make_model: Callable[[], nn.Module],
    training: TrainingConfig,
    rounds: int,
    task: Task = STILL,
) -> dict[str, nn.Module]:
    """The personal models after so many rounds."""
    shared = strategy.initial_shared(make_model, 0)
    private: dict[str, Tensors] = {name: {} for name in clients}
    last: dict[str, ClientRound] = {}
    for number in range(1, rounds + 1):
        updates = []
        for name, data in clients.items():
            config = strategy.client_config(number, name, [])
            r = ClientRound(
                number,
                rounds,
                name,
                shared,
                private[name],
                make_model,
                data,
                None,
                config,
                1,
                task,
                training,
                LoopTrainer(),
            )
            done = strategy.local_update(r)
            private[name] = done.private
            updates.append(Update(name, done.shared, done.num_examples, done.metrics))
            last[name] = r
        shared = strategy.aggregate(number, shared, updates)
    return {name: strategy.personal_model(replace(r, shared=shared, private=private[name])) for name, r in last.items()}


def two_rules(share: float, seed: int, size: int = 300) -> tuple[ImageDataset, float]:
    """Images of two pixels; a share of the labels follows the first pixel, the others its opposite."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, 1, 1, 2), dtype=torch.uint8, generator=generator)
    first = torch.rand(size, generator=generator) < share
    labels = torch.where(first, pixels[:, 0, 0, 0] > 127, pixels[:, 0, 0, 0] <= 127).long()
    return ImageDataset(pixels, labels, torch.arange(size), ("no", "yes")), float(first.float().mean())


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 2))


def test_fedem_recovers_the_true_mixture_weights() -> None:
    """With a pure client of each rule the weights are identifiable: softer experts could not explain those two."""
    drawn = {
        name: two_rules(share, place) for place, (name, share) in enumerate(zip("abcd", (1, 0.7, 0.25, 0), strict=True))
    }
    clients = {name: data for name, (data, _) in drawn.items()}
    training = TrainingConfig(steps=400, batch_size=64, learning_rate=0.1)
    models = federated(create("personalization", "mixture", experts=2), clients, linear, training, 40)
    weights = {name: model.state_dict()["weights"] for name, model in models.items()}
    first = int(weights["a"].argmax())
    for name, (_, true) in drawn.items():
        assert float(weights[name].sum()) == pytest.approx(1, abs=1e-5)
        assert float(weights[name][first]) == pytest.approx(true, abs=0.05), f"client {name}"


def test_weighting_by_examples_leaves_experts_alike_under_adamw() -> None:
    """Why the default differs from the paper's server; with plain gradient descent both would do."""
    clients = {name: two_rules(share, ord(name))[0] for name, share in (("a", 1.0), ("d", 0.0))}
    training = TrainingConfig(steps=200, batch_size=64, learning_rate=0.1)
    weight = {}
    for weighting in ("examples", "responsibilities"):
        strategy = create("personalization", "mixture", experts=2, weighting=weighting)
        weight[weighting] = float(federated(strategy, clients, linear, training, 20)["a"].state_dict()["weights"].max())
    assert weight["examples"] < 0.95 < 0.99 < weight["responsibilities"], f"{weight}"


def two_populations(seed: int, size: int = 96) -> ImageDataset:
    """Dots in a corner or none; with the square above they mean the opposite of what they mean with it below.

    A small convolutional expert sees dots and square, but not where the square is; the gate does.
    """
    generator = torch.Generator().manual_seed(seed)
    above, dotted = (torch.rand(size, generator=generator) < 0.5 for _ in range(2))
    pixels = torch.randint(0, 30, (size, 1, 16, 16), generator=generator)
    pixels[above, :, 3:6, 3:6] += 150
    pixels[~above, :, 10:13, 3:6] += 150
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    corner = (rows > 9) & (rows < 14) & (columns > 9) & (columns < 14) & ((rows + columns) % 2 == 0)
    pixels[dotted] += 120 * corner
    return ImageDataset(
        pixels.to(torch.uint8), (above ^ dotted).long(), torch.arange(size), ("no", "yes"), sites=above.long()
    )


def test_the_gate_routes_each_image_to_an_expert() -> None:
    clients = {name: two_populations(place) for place, name in enumerate("ab")}
    training = TrainingConfig(steps=160, batch_size=32, learning_rate=0.03)
    gated = create("personalization", "mixture", experts=2, gate=True, gamma=0)
    architecture = create("classifier", "small_cnn", widths=(2,))

    def make_model() -> ClassifierModel:
        return architecture.create_model(in_channels=1, num_classes=2, image_size=16)

    models = federated(gated, clients, make_model, training, 4)
    (single, _) = federated(create("personalization", "fedavg"), clients, make_model, training, 4).values()
    fresh = two_populations(9)
    assert STILL.metrics(single, fresh)["accuracy"] < 0.7, "one expert must not suffice for this test"
    for model in models.values():
        assert STILL.metrics(model, fresh)["accuracy"] > 0.95
        pi = mixture_of(model).log_weights(fresh.images).exp().detach()
        on_above, on_below = pi[fresh.sites == 1].mean(0), pi[fresh.sites == 0].mean(0)
        assert float((on_above - on_below).abs().max()) > 0.5, f"the gate does not tell populations: {on_above}"
    states = [model.state_dict() for model in models.values()]
    for key in states[0]:
        travels = ".experts." in key and states[0][key].is_floating_point()
        assert travels == gated.is_shared(key, models["a"]) or not states[0][key].is_floating_point()
        if travels:
            assert torch.equal(states[0][key], states[1][key]), f"{key} is shared and differs"
    assert not torch.equal(states[0]["network.gate.output.weight"], states[1]["network.gate.output.weight"])


def test_the_loss_of_the_gate_is_its_formula() -> None:
    torch.manual_seed(0)
    model = Mixture([linear(), linear()], Gate(1, 2, 3))
    assert model.gate is not None
    nn.init.normal_(model.gate.output.weight)
    data, _ = two_rules(0.5, 0, size=6)
    batch = data.batch(torch.arange(6))
    pi = model.gate(batch.images).softmax(1)
    wanted = nn.functional.nll_loss(model(batch.images), batch.labels)
    wanted = wanted + 0.3 * sum(weight.square().sum() for weight in model.gate.parameters())
    wanted = wanted - 0.2 * (pi * pi.log()).sum(1).mean()
    found = GateTask(STILL, 0.3, 0.2).loss(model.eval(), batch, Streams(0, batch.ids))
    torch.testing.assert_close(found, wanted)


def test_mixture_logits_are_log_probabilities() -> None:
    torch.manual_seed(0)
    experts = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    model, images = Mixture(experts), torch.rand(5, 1, 2, 2)
    model.weights.copy_(torch.tensor([0.3, 0.7]))
    wanted = 0.3 * experts[0](images).softmax(1) + 0.7 * experts[1](images).softmax(1)
    torch.testing.assert_close(model(images).exp(), wanted)
    model.weights.copy_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(model(images).exp(), experts[0](images).softmax(1))
    flat = torch.zeros(2, 1, 8, 8, requires_grad=True)
    Gate(1, 2, 4)(flat).sum().backward()
    assert flat.grad is not None
    assert bool(flat.grad.isfinite().all()), "a black image must not break the gradient of the gate"


def test_responsibilities_are_posterior_probabilities() -> None:
    model = Mixture([linear(), linear()])
    with torch.no_grad():
        for parameter in model.experts[1].parameters():
            parameter.neg_()
    model.weights.copy_(torch.tensor([0.2, 0.8]))
    data, _ = two_rules(0.5, 0, size=7)
    batch = data.batch(torch.arange(7))
    joint = model.weights * torch.stack([e(batch.images).softmax(1)[range(7), batch.labels] for e in model.experts], 1)
    torch.testing.assert_close(responsibilities(model, [batch]), joint / joint.sum(1, keepdim=True))


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting.of(tiny_dataset(), tiny_context())


@pytest.mark.parametrize("gate", [False, True])
def test_mixture_state_stays_and_survives_rounds(setting: Setting, gate: bool) -> None:
    strategy = create("personalization", "mixture", experts=2, gate=gate)
    done = strategy.local_update(client_round(strategy, setting))
    own = {key: value for key, value in done.private.items() if ".experts." not in key}
    assert own, "no mixture state is kept"
    assert all(".experts." in key for key in done.shared), "mixture state travels"
    if not gate:
        reported = [done.metrics[f"mixture_weight_{place}"] for place in (0, 1)]
        assert own["network.weights"].tolist() == pytest.approx(reported), "reported otherwise than kept"
    model = strategy.personal_model(client_round(strategy, setting, number=2, shared=done.shared, private=done.private))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in own.items())
    assert isinstance(model, ClassifierModel)
    assert model.architecture.config.experts == 2


def test_an_expert_that_nobody_uses_stays_as_it_was() -> None:
    strategy = create("personalization", "mixture", experts=2, weighting="responsibilities")
    previous = {"experts.0.w": torch.zeros(2), "experts.1.w": torch.ones(2)}
    weights = {"mixture_weight_0": 1.0, "mixture_weight_1": 0.0}
    updates = [Update(name, {key: value + 5 for key, value in previous.items()}, 3, weights) for name in "ab"]
    mean = strategy.aggregate(1, previous, updates)
    assert mean["experts.0.w"].tolist() == [5, 5]
    assert mean["experts.1.w"].tolist() == [1, 1]
    for wrong in ({}, {"mixture_weight_0": 0.2, "mixture_weight_1": 0.2}):
        with pytest.raises(FederationError, match="client a reports the mixture weights"):
            strategy.aggregate(1, previous, [replace(updates[0], metrics=wrong)])


def test_what_a_mixture_cannot_train_is_refused(setting: Setting) -> None:
    class Other(Task):
        def loss(self, model: nn.Module, batch: object, streams: object) -> Tensor:
            return torch.zeros(())

    strategy = create("personalization", "mixture")
    with pytest.raises(FederationError, match="task is Other"):
        strategy.local_update(replace(client_round(strategy, setting), task=Other()))
    with pytest.raises(FederationError, match="no mixture"):
        strategy.split(tiny_classifier())
    with pytest.raises(FederationError, match="classifier plugin"):
        create("personalization", "mixture", gate=True).network(linear)
    with pytest.raises(FederationError, match="stay equal"):
        strategy.initial_shared(lambda: nn.Sequential(nn.Flatten()), 0)


def test_shares_are_spread_so_that_every_expert_sees_enough() -> None:
    images, ones = torch.tensor([10.0, 30.0, 20.0]), torch.ones(3)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    torch.testing.assert_close(spread_shares(images, weights, ones, 0.4), torch.full((3,), 0.4, dtype=torch.float64))
    limit = torch.tensor([0.0, 1.0, 1.0])
    shares = spread_shares(images, weights, limit, 0.4)
    seen = (images[:, None] * weights).double().T @ shares / (images @ weights).double()
    torch.testing.assert_close(seen, torch.full((2,), 0.4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(shares[0]) == 0, "a client attacks more than it can afford"
    assert float(shares[1]) > 0.4, "who can afford more must make up for it"
    nobody = spread_shares(images, weights, torch.zeros(3), 0.4)
    assert nobody.tolist() == [0, 0, 0]


def test_pfeddef_sends_each_client_its_share(setting: Setting) -> None:
    strategy = create("personalization", "pfeddef", experts=2, resources={"poor": 0.1})
    assert strategy.client_config(1, "poor", []) == {"adversarial_share": 0.1}
    assert strategy.client_config(1, "rich", []) == {"adversarial_share": 0.5}
    rounds = {name: client_round(strategy, setting, client_id=name) for name in ("poor", "rich")}
    assert strategy.adversarial(rounds["poor"]).share == 0.1
    done = {name: strategy.local_update(r) for name, r in rounds.items()}
    updates = [Update(name, d.shared, d.num_examples, d.metrics) for name, d in done.items()]
    strategy.aggregate(1, rounds["poor"].shared, updates)
    assert strategy.client_config(2, "poor", [])["adversarial_share"] == pytest.approx(0.1)
    assert strategy.client_config(2, "rich", [])["adversarial_share"] == pytest.approx(0.9, abs=0.05)
    again = client_round(strategy, setting, number=2, client_id="rich")
    assert strategy.adversarial(again).share == pytest.approx(0.9, abs=0.05), "the client must use what it was sent"
    assert strategy.adversarial(replace(again, config={})).share == pytest.approx(0.5)
