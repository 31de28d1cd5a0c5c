"""The distilled purifier: one evaluation, nothing drawn, near its teacher, and hardened together with a classifier."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import InputError, NotFittedError
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.evaluation.readings import hear
from medfedpure.plugins.purifiers.guidance import GuidedTask
from medfedpure.testing.checking import global_rng_untouched
from medfedpure.training.classification import ClassificationTask

LEARNS = {"steps": 150, "batch_size": 8, "learning_rate": 5e-3, "ema": 0.98}
SMALL = {
    "model": {"widths": (8, 16)},
    "t_min": 60,
    "t_max": 120,
    "sampling": {"num_inference_steps": 3},
    "training": LEARNS,
    "distillation": {"training": {**LEARNS, "steps": 80, "learning_rate": 3e-3}},
}


def bars(size: int = 48) -> ImageDataset:
    """A bright bar on dark ground, left or right."""
    streams = Streams(0, torch.arange(size))
    labels = torch.arange(size) % 2
    pixels = 0.15 + 0.1 * streams.uniform((1, 16, 16), stage="ground")
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 2:14, 3 + 8 * label : 6 + 8 * label] += 0.6
    return ImageDataset((pixels * 255).to(torch.uint8), labels, torch.arange(size), ("left", "right"))


def sides() -> nn.Module:
    """Reads the brighter half, and one pixel far too closely: fooled by small perturbations."""
    reader = nn.Linear(256, 2)
    weight = torch.zeros(16, 16)
    weight[:, :8], weight[:, 8:] = -0.1, 0.1
    weight = weight + 0.4 * (Streams(5, torch.arange(1)).normal((16, 16), stage="quirk")[0])
    with torch.no_grad():
        reader.weight.copy_(torch.stack((-weight.flatten(), weight.flatten())))
        reader.bias.zero_()
    return nn.Sequential(nn.Flatten(), reader)


@pytest.fixture(scope="module")
def trained():
    return medfedpure.create("purifier", "one_step", **SMALL).fit(bars())


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().detach())


def test_one_evaluation_and_nothing_drawn(trained) -> None:
    images, strength = bars().images[:4], torch.tensor([0.0, 0.5, 1.0, 1.0])
    with global_rng_untouched("purify"):
        first, second = (trained(images, strength, streams=Streams.for_batch(seed, 4)) for seed in (1, 2))
    assert torch.equal(first.images, second.images)
    assert first.nfe.tolist() == [1, 1, 1, 1]
    assert first.timestep.tolist() == [60, 90, 120, 120]
    assert trained.deterministic
    chain = medfedpure.DefendedClassifier(sides(), purifier=trained, policy="purify_all")
    assert torch.equal(chain(images), chain(images))


def test_the_students_evaluations_are_counted(trained) -> None:
    """By an evaluation: one each where the student purifies, and one each where a detector borrows the teacher."""
    data, classifier = bars(6), sides()
    chain = medfedpure.DefendedClassifier(classifier, purifier=trained, policy="purify_all")
    said = hear(chain, data.images, data.ids, seed=0, draws=2, batch_size=4)
    assert said.rows == 2 * 6
    detector = medfedpure.create("detector", "score_norm", timestep=60)
    both = medfedpure.DefendedClassifier(classifier, detector=detector, purifier=trained, policy="purify_all")
    asked = hear(both.calibrate(bars(40), 0.1), data.images, data.ids, seed=0, draws=2, batch_size=4)
    assert asked.rows == 2 * 6 * 2


def test_the_student_answers_what_the_teacher_answers_on_average(trained) -> None:
    images = bars().images[:16]
    moved = (images + 0.03 * (2 * Streams.for_batch(9, 16).uniform((1, 16, 16), stage="moved") - 1)).clamp(0, 1)
    full = torch.ones(16)
    drawn = [trained.teacher()(images, full, streams=Streams.for_batch(seed, 16)).images for seed in range(24)]
    mean = torch.stack(drawn).mean(0)
    untaught = trained.once(trained.network, moved, 120 * full)
    assert distance(trained(moved, full).images, mean) < 0.5 * distance(untaught, mean)
    assert distance(trained(moved, full).images, mean) < 0.5 * distance(drawn[0], mean), "nearer than one draw"


def test_what_is_saved_answers_the_same(trained, tmp_path) -> None:
    trained.save(tmp_path / "part")
    again = medfedpure.Purifier.load(tmp_path / "part")
    images = bars().images[:3]
    assert torch.equal(again(images, 1.0).images, trained(images, 1.0).images)
    kept = again.denoise(images, torch.full((3,), 40.0), steps=1, streams=Streams.for_batch(0, 3))
    assert torch.equal(kept, trained.denoise(images, torch.full((3,), 40.0), steps=1, streams=Streams.for_batch(0, 3)))


def test_a_teacher_that_clients_trained_is_distilled_at_each(trained) -> None:
    own = medfedpure.create("purifier", "one_step", **SMALL)
    own.adopt(trained.network, (1, 16, 16))
    with pytest.raises(NotFittedError):
        own(bars().images[:1])
    own.finish_fit(bars(), seed=0)
    torch.testing.assert_close(own(bars().images[:4]).images, trained(bars().images[:4]).images)


def test_hardening_makes_the_whole_harder_to_fool_and_leaves_the_classifier_alone() -> None:
    hardly = {"steps": 2, "batch_size": 8}
    options = {**SMALL, "training": hardly, "distillation": {"training": hardly}}
    purifier, reader, data = medfedpure.create("purifier", "one_step", **options).fit(bars()), sides(), bars()
    attack = medfedpure.create("attack", "pgd_eot", eps=0.06, step=0.015, steps=10)

    def right() -> float:
        chain = medfedpure.DefendedClassifier(reader, purifier=purifier, policy="purify_all")
        found = attack(medfedpure.exact_view(chain), data.images, data.labels, streams=Streams(3, data.ids))
        return float((chain(found.images).argmax(1) == data.labels).double().mean())

    before, weights = right(), copy.deepcopy(reader.state_dict())
    settings = AdversarialTraining(share=1.0, eps=0.06, steps=3)
    purifier.harden(data, reader, settings, TrainingConfig(steps=30, batch_size=16, learning_rate=5e-3), keep=0.1)
    assert right() > before + 0.2, f"{before} before, {right()} after"
    assert all(torch.equal(value, weights[key]) for key, value in reader.state_dict().items())
    purifier.harden(data, reader, settings, TrainingConfig(steps=2, batch_size=16), with_classifier=True)
    assert not torch.equal(reader[1].weight, weights["1.weight"])


@pytest.mark.parametrize("options", [{"method": "trades"}, {"awp": 0.01}, {"share": 0.5}])
def test_hardening_by_every_method_keeps_near_the_teacher(trained, options) -> None:
    purifier, settings = (
        copy.deepcopy(trained),
        AdversarialTraining(**{"share": 1.0, "eps": 0.03, "steps": 1, **options}),
    )
    log = purifier.harden(bars(), sides(), settings, TrainingConfig(steps=2, batch_size=4), keep=10.0)
    assert log.steps == 2
    assert distance(purifier(bars().images[:4]).images, trained(bars().images[:4]).images) < 1e-2


def test_hardening_without_an_attack_is_refused(trained) -> None:
    with pytest.raises(InputError, match="share of 0"):
        trained.harden(bars(), sides(), AdversarialTraining(), TrainingConfig(steps=1))
    with pytest.raises(NotFittedError):
        medfedpure.create("purifier", "one_step").harden(
            bars(), sides(), AdversarialTraining(share=1.0), TrainingConfig(steps=1)
        )


def test_guidance_restores_what_a_static_attack_took_and_leaves_the_classifier_alone() -> None:
    hardly = {"steps": 2, "batch_size": 8}
    options = {**SMALL, "training": hardly, "distillation": {"training": hardly}}
    purifier, reader, data = medfedpure.create("purifier", "one_step", **options).fit(bars()), sides(), bars()
    attack = medfedpure.create("attack", "pgd_eot", eps=0.06, step=0.015, steps=10)
    chain = medfedpure.DefendedClassifier(reader, purifier=purifier, policy="purify_all")
    attacked = attack(medfedpure.static_view(chain), data.images, data.labels, streams=Streams(3, data.ids)).images

    def right(images: Tensor) -> float:
        return float((chain(images).argmax(1) == data.labels).double().mean())

    before, weights = right(attacked), copy.deepcopy(reader.state_dict())
    settings = AdversarialTraining(share=0.5, eps=0.06, steps=3)
    purifier.guide(data, reader, settings, TrainingConfig(steps=30, batch_size=16, learning_rate=5e-3))
    assert right(attacked) > before + 0.2, f"{before} before, {right(attacked)} after"
    assert right(data.images) > 0.9
    assert all(torch.equal(value, weights[key]) for key, value in reader.state_dict().items())


def test_guidance_compares_answers_with_those_of_benign_images() -> None:
    """Without attacked images the loss is that of the formula, by hand."""
    batch, reader, settings = next(bars().batches(4)), sides(), AdversarialTraining(share=0.0, eps=0.0)
    task = GuidedTask(ClassificationTask(Augmentation(flip=False, shift=0)), reader, lambda _, x: 0.5 * x, settings)
    with torch.no_grad():
        found = task.loss(nn.Identity(), batch, Streams(0, batch.ids))
        wanted = (reader(0.5 * batch.images) - reader(batch.images)).abs().mean()
    torch.testing.assert_close(found, wanted)


def test_guidance_without_an_attack_is_refused(trained) -> None:
    with pytest.raises(InputError, match="share above 0"):
        trained.guide(bars(), sides(), AdversarialTraining(), TrainingConfig(steps=1))
    with pytest.raises(NotFittedError):
        medfedpure.create("purifier", "one_step").guide(
            bars(), sides(), AdversarialTraining(share=1.0), TrainingConfig(steps=1)
        )


@pytest.mark.parametrize("teach", ["guide", "harden"])
def test_a_classifier_that_was_still_training_is_left_as_it_was(trained, teach) -> None:
    """Its BatchNorm counts nothing, its weights get no gradient, and it goes on in the mode in which it came."""
    reader = nn.Sequential(nn.BatchNorm2d(1), sides()).train()
    before = copy.deepcopy(reader.state_dict())
    attack = AdversarialTraining(share=1.0, eps=0.03, steps=1)
    getattr(copy.deepcopy(trained), teach)(bars(), reader, attack, TrainingConfig(steps=2, batch_size=4))
    assert all(torch.equal(value, before[key]) for key, value in reader.state_dict().items())
    assert all(part.training for part in reader.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in reader.parameters())
