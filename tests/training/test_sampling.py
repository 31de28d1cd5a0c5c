"""Batches: the usual order is as it always was, classes can be balanced, and samplers and steps can be one's own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ArtifactError, TrainingError
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.task import BatchSampler, Step, WrappedTask
from medfedpure.testing import tiny_dataset
from medfedpure.testing.checking import assert_equal, global_rng_untouched
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train
from medfedpure.training.sampling import Balanced, Shuffled, checked_batches
from medfedpure.training.step import GradientStep

DATA = tiny_dataset(32, size=16)
SKEWED = DATA.select(torch.cat(((DATA.labels == 0).nonzero()[:13, 0], (DATA.labels == 1).nonzero()[:3, 0])))
BUDGET = TrainingConfig(steps=12, batch_size=8, learning_rate=1e-2, ema=0.9, checks=6)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def drawn(sampler: BatchSampler, data: ImageDataset, batch_size: int, seed: int, count: int) -> list[Tensor]:
    return list(islice(sampler.batches(data, batch_size, seed), count))


class Uneven(BatchSampler):
    """Batches of 0, 1, 2, 3, 0, 1 ... images, in the order of the data."""

    def batches(self, data: ImageDataset, batch_size: int, seed: int) -> Iterator[Tensor]:
        start = number = 0
        while True:
            yield torch.arange(start, start + number % 4) % len(data)
            start, number = start + number % 4, number + 1


class PerImage(Step):
    """The mean of the gradients of one image each."""

    def __call__(self, model, task, batch, streams, *, optimizer, parameters, config):
        total, losses = [torch.zeros_like(weight) for weight in parameters], []
        for place in range(len(batch.ids)):
            index = torch.tensor([place])
            one = type(batch)(batch.images[index], batch.labels[index], batch.ids[index])
            loss = task.loss(model, one, streams.select(index))
            for held, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                held += gradient / len(batch.ids)
            losses.append(loss.detach())
        for weight, gradient in zip(parameters, total, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        return torch.stack(losses).mean()


# Drawn by the loop before it had samplers.
@pytest.mark.parametrize(
    ("size", "batch_size", "seed", "wanted"),
    [
        (5, 3, 0, [[2, 1, 4], [0, 3, 0], [1, 3, 4], [2, 0, 2], [4, 1, 3]]),
        (7, 4, 11, [[5, 1, 2, 3], [6, 4, 0, 0], [5, 3, 4, 2], [6, 1, 1, 4], [3, 0, 2, 5]]),
        (3, 5, 2, [[0, 1, 2, 0, 2], [1, 0, 1, 2, 1], [0, 2, 1, 2, 0], [1, 0, 2, 2, 0], [1, 2, 0, 1, 2]]),
    ],
)
def test_the_usual_order_is_as_it_was(size: int, batch_size: int, seed: int, wanted: list[list[int]]) -> None:
    found = drawn(Shuffled(), DATA.select(torch.arange(size)), batch_size, seed, len(wanted))
    assert [batch.tolist() for batch in found] == wanted


def test_balanced_batches_hold_every_class_equally_often() -> None:
    assert torch.bincount(SKEWED.labels).tolist() == [13, 3], "the data of this test should be skewed"
    places = torch.cat(drawn(Balanced(), SKEWED, 5, 0, 39))
    assert places.dtype == torch.int64
    ones = SKEWED.labels[places].cumsum(0)
    gap = (2 * ones - torch.arange(1, len(places) + 1)).abs()
    assert int(gap.max()) <= 1, "at some time one class was drawn oftener than the other by more than one image"
    counts = torch.bincount(places, minlength=16)
    for label in (0, 1):
        own = counts[SKEWED.labels == label]
        assert int(own.max() - own.min()) <= 1, f"images of class {label} were drawn {own.tolist()} times"


def test_absent_classes_are_not_waited_for() -> None:
    benign = DATA.select(DATA.labels == 0)
    assert [len(batch) for batch in drawn(Balanced(), benign, 4, 0, 3)] == [4, 4, 4]


@pytest.mark.parametrize("sampler", [Shuffled(), Balanced()], ids=["shuffled", "balanced"])
def test_batches_repeat_and_follow_the_seed(sampler: BatchSampler) -> None:
    with global_rng_untouched("a sampler"):
        one, two, other = (torch.stack(drawn(sampler, SKEWED, 8, seed, 4)) for seed in (1, 1, 2))
    assert torch.equal(one, two), "equal seeds gave other batches"
    assert not torch.equal(one, other), "another seed gave equal batches"


class Seen(ClassificationTask):
    """Counts the labels that it is shown, and may choose a sampler."""

    def __init__(self, sampler: BatchSampler | None = None) -> None:
        super().__init__()
        self.labels: list[Tensor] = []
        self.own = sampler

    def sampler(self):
        return self.own

    def loss(self, model, batch, streams):
        self.labels.append(batch.labels)
        return super().loss(model, batch, streams)


def shares(task: Seen) -> list[int]:
    return torch.bincount(torch.cat(task.labels), minlength=2).tolist()


def test_the_argument_comes_before_the_task_and_the_task_before_the_configuration() -> None:
    balanced, budget = Seen(), BUDGET.model_copy(update={"sampling": "balanced"})
    train(network(), balanced, SKEWED, budget, seed=0)
    assert shares(balanced) == [48, 48], "sampling = balanced of the configuration"
    inner = Seen(Balanced())
    train(network(), WrappedTask(inner), SKEWED, BUDGET, seed=0)
    assert shares(inner) == [48, 48], "the sampler of the task, through a wrapper"
    given = Seen(Balanced())
    train(network(), given, SKEWED, budget, seed=0, sampler=Shuffled())
    assert shares(given) == [78, 18], "96 draws of 16 images are six epochs"


def test_batches_of_any_size_and_none() -> None:
    task, model, before = Seen(), network(), network().state_dict()
    log = train(model, task, DATA, BUDGET, seed=0, sampler=Uneven())
    assert [len(labels) for labels in task.labels] == [1, 2, 3] * 3, "the default step asks for no loss of nothing"
    assert (log.steps, log.images) == (12, 18)
    assert not torch.equal(model[1].weight, before["1.weight"])

    class Nothing(BatchSampler):
        def batches(self, data, batch_size, seed):
            while True:
                yield torch.empty(0, dtype=torch.int64)

    model = network()
    with pytest.raises(TrainingError, match="no batch held an image"):
        train(model, task, DATA, BUDGET, seed=0, sampler=Nothing())
    assert_equal(model.state_dict(), before, "after a training without images")


def test_a_step_sees_empty_batches() -> None:
    class Counting(GradientStep):
        sizes: list[int] = []

        def __call__(self, model, task, batch, streams, **rest):
            self.sizes.append(len(batch.ids))
            return super().__call__(model, task, batch, streams, **rest)

    step = Counting()
    train(network(), ClassificationTask(), DATA, BUDGET, seed=0, sampler=Uneven(), step=step)
    assert step.sizes == [0, 1, 2, 3] * 3


def test_a_step_of_per_image_gradients_equals_the_default_on_their_mean() -> None:
    plain, by_image = (network()[:3].append(nn.Linear(16, 2)) for _ in range(2))
    by_image.load_state_dict(plain.state_dict())
    one = train(plain, ClassificationTask(), DATA, BUDGET, seed=0)
    other = train(by_image, ClassificationTask(), DATA, BUDGET, seed=0, step=PerImage())
    for key, value in plain.state_dict().items():
        assert torch.allclose(value, by_image.state_dict()[key], atol=1e-4), f"{key} differs"
    assert other.loss == pytest.approx(one.loss, abs=1e-4)
    assert other.images == one.images


class Lost(GradientStep):
    """A gradient step until the connection is lost."""

    def __init__(self, after: int) -> None:
        self.left = after

    def recipe(self):
        return GradientStep().recipe()

    def __call__(self, *given, **rest):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError
        return super().__call__(*given, **rest)


@pytest.mark.parametrize("sampler", [Shuffled(), Balanced(), Uneven()], ids=["shuffled", "balanced", "uneven"])
def test_a_training_that_was_cut_off_ends_the_same(tmp_path: Path, sampler: BatchSampler) -> None:
    whole, model, fresh = network(), network(), network()
    given = {"seed": 3, "sampler": sampler}
    log = train(whole, ClassificationTask(), SKEWED, BUDGET, **given)
    with pytest.raises(ConnectionError):
        train(model, ClassificationTask(), SKEWED, BUDGET, **given, step=Lost(7), checkpoint=tmp_path / "kept")
    rest = Lost(6)
    again = train(fresh, ClassificationTask(), SKEWED, BUDGET, **given, step=rest, checkpoint=tmp_path / "kept")
    assert_equal(fresh.state_dict(), whole.state_dict(), "continued after step 6 against never cut off")
    assert again == log, "the log of the continued training differs"
    assert rest.left == 0, "six steps were already done, and six are left"


def test_a_checkpoint_of_another_sampler_or_step_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    train(network(), ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder)
    with pytest.raises(ArtifactError, match="differs in sampler"):
        train(network(), ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder, sampler=Balanced())
    with pytest.raises(ArtifactError, match="differs in step"):
        train(network(), ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder, step=PerImage())


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([torch.tensor([True, False])], r"Planted must yield positions \(M,\) int64.*got \(2,\) torch.bool"),
        ([torch.tensor([[1]])], r"got \(1, 1\) torch.int64"),
        ([torch.tensor([1]), torch.tensor([2])], "the batches of Planted ended"),
    ],
    ids=["a mask", "a matrix", "an end"],
)
def test_a_sampler_that_breaks_its_promise_is_named(batches: list[Tensor], words: str) -> None:
    class Planted(BatchSampler):
        def batches(self, data, batch_size, seed):
            yield from batches

    with pytest.raises(TrainingError, match=words):
        train(network(), ClassificationTask(), DATA, BUDGET, seed=0, sampler=Planted())


@pytest.mark.parametrize("given", [[0, 1], torch.tensor([0, 99]), torch.tensor([-1]), torch.tensor([0.0])], ids=str)
def test_positions_that_are_none_are_refused(given) -> None:
    class Odd:
        def batches(self, data, batch_size, seed):
            yield given

    with pytest.raises(TrainingError, match="must yield positions"):
        next(checked_batches(Odd(), tiny_dataset(30), 4, 0))


class Returns:
    """A step that returns what it is given."""

    def __init__(self, value) -> None:
        self.value = value

    def recipe(self):
        return {"step": "returns"}

    def __call__(self, *given, **options):
        return self.value


@pytest.mark.parametrize("value", [None, 3.0, torch.zeros(2)], ids=str)
def test_a_step_returns_its_loss(value) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    with pytest.raises(TrainingError, match="must return the loss"):
        train(model, ClassificationTask(), tiny_dataset(30), TrainingConfig(steps=1), seed=0, step=Returns(value))


def test_a_step_may_return_an_attached_loss() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    loss = torch.ones((), requires_grad=True) * 2
    log = train(model, ClassificationTask(), tiny_dataset(30), TrainingConfig(steps=1), seed=0, step=Returns(loss))
    assert log.loss == 2


def test_hooks_that_are_none_are_refused_at_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    for options, kind in (({"step": lambda *_, **__: None}, "Step"), ({"sampler": object()}, "BatchSampler")):
        with pytest.raises(TrainingError, match=rf"derive it from medfedpure\.{kind}"):
            train(model, ClassificationTask(), tiny_dataset(30), TrainingConfig(steps=1), seed=0, **options)
