"""Adversarial training: what the attack does to a batch, what it leaves alone, and that it makes models robust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.personalization import ClientRound, Update
from medfedpure.core.registry import create
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.testing.checking import global_rng_untouched, module_unchanged
from medfedpure.training.adversarial import AdversarialTask, harden
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.crafting import chosen_of, perturb
from medfedpure.training.loop import train
from medfedpure.training.trainer import LoopTrainer

TASK, AUGMENTED = (
    ClassificationTask(Augmentation(flip=False, shift=0)),
    ClassificationTask(Augmentation(intensity=0.2, noise=0.05)),
)
ALL = AdversarialTraining(share=1, eps=0.1, step=0.05, steps=5)


def batch(size: int = 16) -> Batch:
    return tiny_dataset().batch(torch.arange(size))


def streams(of: Batch) -> Streams:
    return Streams(3, of.ids)


def linear(weight: Tensor) -> nn.Module:
    """Logits (0, w . x)."""
    layer = nn.Linear(weight.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack((torch.zeros_like(weight), weight)))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def test_against_a_linear_model_the_attack_is_the_exact_maximum() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, generator=generator)
    given = Batch(0.3 + 0.4 * torch.rand(6, 1, 2, 4, generator=generator), torch.tensor([0, 1] * 3), torch.arange(6))
    toward = torch.where(given.labels[:, None] == 1, -weight, weight).view(6, 1, 2, 4)
    found = perturb(linear(weight), given, streams(given), ALL, TASK)
    torch.testing.assert_close(found, given.images + 0.1 * toward.sign())
    l2 = ALL.model_copy(update={"norm": "l2", "steps": 20})
    found = perturb(linear(weight), given, streams(given), l2, TASK)
    torch.testing.assert_close(found, given.images + 0.1 * toward / weight.norm(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_the_attack_keeps_its_budget_and_raises_the_loss(norm: str, random_start: bool) -> None:
    settings = AdversarialTraining(
        share=1, norm=norm, eps=0.1 if norm == "linf" else 1.0, step=0.3, steps=3, random_start=random_start
    )
    model, given = tiny_classifier(), batch()
    found = perturb(model, given, streams(given), settings, TASK)
    change = (found - given.images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= settings.eps + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    attacked = Batch(found, given.labels, given.ids)
    assert float(TASK.loss(model, attacked, streams(given))) > float(TASK.loss(model, given, streams(given))) + 0.1


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_only_lent(training: bool) -> None:
    model, given = tiny_classifier().requires_grad_(True).train(training), batch()
    next(model.children()).eval()
    with module_unchanged(model, "perturb"), global_rng_untouched("perturb"):
        perturb(model, given, streams(given), ALL, AUGMENTED)


def test_an_image_is_attacked_alike_in_every_batch() -> None:
    model, given = tiny_classifier().train(), batch()
    found = perturb(model, given, streams(given), ALL, AUGMENTED)
    half = torch.arange(0, 16, 2)
    part = Batch(given.images[half], given.labels[half], given.ids[half])
    again = perturb(model, part, streams(given).select(half), ALL, AUGMENTED)
    # A gradient next to zero may change its sign with rounding.
    assert float(((again - found[half]).abs() > 1e-5).float().mean()) < 0.01


@pytest.mark.parametrize(("share", "attacked"), [(0, 0), (0.02, 0), (0.25, 4), (0.5, 8), (1, 16)])
def test_the_share_is_of_images(share: float, attacked: int) -> None:
    given = batch()
    found = harden(tiny_classifier(), given, streams(given), ALL.model_copy(update={"share": share}), TASK)
    moved = (found.images != given.images).flatten(1).any(1)
    assert int(moved.sum()) == attacked
    assert torch.equal(found.labels, given.labels)
    if attacked == 8:
        assert not torch.equal(moved.nonzero()[:, 0], torch.arange(8)), "the first half of every batch is attacked"


@pytest.mark.parametrize(("size", "share"), [(16, 0.02), (1, 0.5), (1, 0.25)])
def test_a_share_that_rounds_to_none_is_one_image_of_some_batches(size: int, share: float) -> None:
    given, settings = batch(size), ALL.model_copy(update={"share": share})
    counts = [len(chosen_of(given, Streams(seed, given.ids), settings)) for seed in range(400)]
    assert set(counts) == {0, 1}
    assert sum(counts) / 400 == pytest.approx(share * size, abs=0.08)
    assert not any(
        len(chosen_of(given, Streams(seed, given.ids), settings.model_copy(update={"share": 0}))) for seed in range(400)
    )


def test_the_task_trains_on_what_the_attack_made_and_is_measured_with_and_without() -> None:
    model, given = tiny_classifier(), batch()
    task = AdversarialTask(TASK, ALL, TASK)
    attacked = replace(given, images=perturb(model, given, streams(given), ALL, TASK))
    torch.testing.assert_close(task.loss(model, given, streams(given)), TASK.loss(model, attacked, streams(given)))
    model.eval()
    figures, benign = task.metrics(model, tiny_dataset()), TASK.metrics(model, tiny_dataset())
    assert {key: figures.pop(key) for key in benign} == benign
    assert figures.keys() == {"robust_balanced_accuracy", "robust_loss"}
    assert figures["robust_balanced_accuracy"] < benign["balanced_accuracy"]
    assert figures["robust_loss"] > benign["loss"]
    other = AdversarialTask(TASK, ALL.model_copy(update={"eps": 0.2}), TASK)
    assert task.recipe() != other.recipe(), "a checkpoint would go on with another attack"


def test_a_share_of_zero_is_training_as_before() -> None:
    states = []
    for task in (TASK, AdversarialTask(TASK, ALL.model_copy(update={"share": 0}), TASK)):
        model = tiny_classifier(steps=0).requires_grad_(True)
        train(model, task, tiny_dataset(), TrainingConfig(steps=3, batch_size=8), seed=1)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# -- the point of it ----------------------------------------------------------------------------------------------


def fragile(seed: int, size: int = 120) -> ImageDataset:
    """The label is written twice: faintly but always in a stripe pattern, and boldly but noisily in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    sign = (2 * labels - 1)[:, None, None, None]
    stripes = torch.where(torch.arange(8) % 2 == 0, 4.0, -4.0)
    brightness = 30 * sign + 25 * torch.randn(size, 1, 1, 1, generator=generator)
    pixels = 128 + brightness + sign * stripes + 2 * torch.randn(size, 1, 8, 8, generator=generator)
    return ImageDataset(pixels.clamp(0, 255).to(torch.uint8), labels, torch.arange(size), ("no", "yes"))


def flat() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def robust_accuracy(model: nn.Module, data: ImageDataset, eps: float) -> float:
    settings = AdversarialTraining(share=1, eps=eps, step=eps / 4, steps=20)
    given = data.batch(torch.arange(len(data)))
    attacked = perturb(model.eval(), given, Streams(9, given.ids), settings, TASK)
    return float((model(attacked).argmax(1) == given.labels).float().mean())


@pytest.mark.parametrize("name", ["fedavg", "ditto", "mixture"])
def test_adversarial_training_raises_robust_accuracy(name: str) -> None:
    accuracy: dict[float, float] = {}
    options: Mapping[str, Any] = {"experts": 2} if name == "mixture" else {}
    for share in (0.0, 1.0):
        attack = {"share": share, "eps": "10/255", "step": "5/255", "steps": 3}
        strategy = create("personalization", name, adversarial=attack, **options)
        shared, private = strategy.initial_shared(flat, 0), {"a": {}, "b": {}}
        model = flat()
        for number in (1, 2):
            updates = []
            for client in "ab":
                r = ClientRound(
                    number,
                    2,
                    client,
                    shared,
                    private[client],
                    flat,
                    fragile(ord(client)),
                    None,
                    {},
                    1,
                    TASK,
                    TrainingConfig(steps=120, batch_size=32, learning_rate=0.02),
                    LoopTrainer(),
                )
                done = strategy.local_update(r)
                private[client] = done.private
                updates.append(Update(client, done.shared, done.num_examples, done.metrics))
                model = strategy.personal_model(replace(r, private=done.private, shared=done.shared))
            shared = strategy.aggregate(number, shared, updates)
        accuracy[share] = robust_accuracy(model, fragile(7), 10 / 255)
    assert accuracy[1.0] > accuracy[0.0] + 0.2, f"{name}: {accuracy}"


def normalized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def learned(task: ClassificationTask | AdversarialTask) -> nn.Module:
    model = normalized()
    train(model, task, fragile(1, 240), TrainingConfig(steps=120, batch_size=32, learning_rate=0.02), seed=2)
    return model


@pytest.fixture(scope="module")
def undefended() -> float:
    return robust_accuracy(learned(TASK), fragile(7), 10 / 255)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1.0, "method": "fast"},
        {"share": 1.0, "method": "trades"},
        {"share": 1.0, "method": "trades", "normalization": "dual"},
        {"share": 1.0, "awp": 0.01, "awp_start": 0.5, "eps_full": 0.3},
        {"share": 0.5, "normalization": "dual"},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_every_method_raises_robust_accuracy_through_batchnorm(options: dict[str, Any], undefended: float) -> None:
    settings = AdversarialTraining(**{"eps": "10/255", "step": "auto", "steps": 3, **options})
    found = robust_accuracy(learned(AdversarialTask(TASK, settings, TASK)), fragile(7), 10 / 255)
    assert found > undefended + 0.5
