"""The one training loop: it learns, repeats, touches no global state, and says when it cannot succeed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import Batch
from medfedpure.core.errors import ConfigError, DataError, TrainingError
from medfedpure.core.progress import listening
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.data.augmentation import augment
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.testing.checking import assert_equal, global_rng_untouched, seed_everything
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import _schedule, train

DATA = tiny_dataset(32, size=16)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))


class NoTask(Task):
    """A loss that is not finite from a given step on."""

    def __init__(self, value: float) -> None:
        self.value = value

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        return model(batch.images).sum() * self.value


class Recorder:
    """What happened, step by step."""

    def __init__(self) -> None:
        self.total, self.steps, self.done = 0, 0, 0

    def started(self, description: str, total: int) -> int:
        self.total = total
        return 0

    def advanced(self, handle: int, note: str = "") -> None:
        self.steps += 1

    def finished(self, handle: int) -> None:
        self.done += 1


def test_the_loss_falls() -> None:
    model = network()
    task = ClassificationTask(Augmentation(flip=False, shift=0))
    easy = replace(DATA, pixels=DATA.pixels // 4 + (150 * DATA.labels[:, None, None, None]).to(torch.uint8))
    before = task.metrics(model, easy)["loss"]
    log = train(model, task, easy, TrainingConfig(steps=90, batch_size=16, learning_rate=1e-2), seed=0)
    after = task.metrics(model, easy)["loss"]
    assert after < 0.5 * before, f"the loss went from {before:.3f} to {after:.3f}"
    assert log.loss == pytest.approx(after, abs=0.3), "the log tells another loss"
    assert (log.steps, log.images) == (90, 1440), f"steps and images are miscounted: {log}"
    assert not model.training, "the model must end in eval mode"


def test_training_repeats_for_a_seed() -> None:
    states = []
    start = network(dropout=0.3)
    for global_seed, seed in ((1, 5), (2, 5), (3, 6)):
        seed_everything(global_seed)
        model = copy.deepcopy(start)
        train(model, ClassificationTask(), DATA, TrainingConfig(steps=8, batch_size=8), seed=seed)
        states.append(model.state_dict())
    assert_equal(states[1], states[0], "equal seeds, other global random state")
    assert not torch.equal(states[0]["1.weight"], states[2]["1.weight"]), "the seed does nothing"


@pytest.mark.parametrize("decay_all", [True, False])
def test_a_model_of_which_nothing_can_be_trained_is_refused(decay_all: bool) -> None:
    model = tiny_classifier().requires_grad_(False)
    config = TrainingConfig(steps=2, batch_size=4, decay_all=decay_all)
    with pytest.raises(TrainingError, match="requires_grad_"):
        train(model, ClassificationTask(), tiny_dataset(), config, seed=0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0, float("nan")])
def test_a_smoothing_that_is_no_share_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        ClassificationTask(label_smoothing=smoothing)


def test_the_global_random_state_is_untouched() -> None:
    model = network(dropout=0.5)
    with global_rng_untouched("train"):
        train(model, ClassificationTask(), DATA, TrainingConfig(steps=3, batch_size=8), seed=0)


def test_an_average_follows_slowly() -> None:
    plain, averaged = network(), network()
    budget = TrainingConfig(steps=30, batch_size=16, learning_rate=1e-2)
    train(plain, ClassificationTask(), DATA, budget, seed=0)
    train(averaged, ClassificationTask(), DATA, budget.model_copy(update={"ema": 0.99}), seed=0)
    start = network().state_dict()
    moved = [(model.state_dict()["1.weight"] - start["1.weight"]).norm() for model in (plain, averaged)]
    assert 0 < float(moved[1]) < float(moved[0]), f"the average moved by {moved[1]:.3f}, the weights by {moved[0]:.3f}"


def test_an_average_of_unmoving_weights_is_these_weights() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    train(model, NoTask(0.0), DATA, TrainingConfig(steps=5, batch_size=4, ema=0.9, weight_decay=0.0), seed=0)
    for key, value in model.state_dict().items():
        assert torch.allclose(value, before[key], atol=1e-7), f"{key} moved without a gradient"


def test_running_statistics_are_averaged_and_counters_kept() -> None:
    model = tiny_classifier(16, steps=0).requires_grad_(True)
    data = tiny_dataset(16, size=16)
    train(model, ClassificationTask(), data, TrainingConfig(steps=5, batch_size=8, ema=0.9), seed=0)
    counters = [v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters, "this network counts batches"
    assert all(int(value) == 5 for value in counters), f"batches were miscounted: {counters}"


def test_windows_compose_the_schedule() -> None:
    config = TrainingConfig(steps=10, batch_size=4)
    seen: list[float] = []

    class Watching(ClassificationTask):
        def optimizer(self, parameters, config):
            built = super().optimizer(parameters, config)
            step = built.step
            built.step = lambda *a, **k: (seen.append(built.param_groups[0]["lr"]), step(*a, **k))[1]
            return built

    model = network()
    for window in ((0, 4), (4, 7), (7, 10)):
        log = train(model, Watching(), DATA, config, seed=0, window=window)
        assert log.steps == window[1] - window[0], "a window has another number of steps"
    wanted = [config.learning_rate * _schedule(step, config) for step in range(10)]
    assert seen == pytest.approx(wanted), "windows laid end to end are not the schedule"


def test_the_schedule_rises_then_falls() -> None:
    config = TrainingConfig(steps=100, warmup=0.1)
    rates = [_schedule(step, config) for step in range(100)]
    peak = rates.index(max(rates))
    assert peak == 10, f"the peak is at step {peak}, not after the warm-up"
    assert max(rates) == pytest.approx(1.0), "the peak is the learning rate"
    assert rates[:11] == sorted(rates[:11]), "the warm-up must rise"
    assert rates[10:] == sorted(rates[10:], reverse=True), "then it must fall"
    assert 0 < rates[0] < 0.2, "it starts near zero"
    assert rates[-1] == pytest.approx(0.02, abs=0.01), "it ends at 2 %"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises(value: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        train(network(), NoTask(value), DATA, TrainingConfig(steps=3, batch_size=4), seed=0)


def test_a_loss_that_was_not_finite_for_a_while_raises() -> None:
    class NanOnce(ClassificationTask):
        calls = 0

        def loss(self, model, batch, streams):
            NanOnce.calls += 1
            return super().loss(model, batch, streams) * (math.nan if NanOnce.calls == 2 else 1.0)

    with pytest.raises(TrainingError, match="not finite"):
        train(network(), NanOnce(), DATA, TrainingConfig(steps=40, batch_size=4), seed=0)


def test_no_data_raises() -> None:
    empty = DATA.select(torch.zeros(len(DATA), dtype=torch.bool))
    with pytest.raises(DataError, match="no image"):
        train(network(), ClassificationTask(), empty, TrainingConfig(steps=1), seed=0)


def test_fewer_images_than_a_batch() -> None:
    three = DATA.select(torch.tensor([0, 2, 4]))
    log = train(network(), ClassificationTask(), three, TrainingConfig(steps=2, batch_size=16), seed=0)
    assert log.images == 32, "batches are always full"


def test_a_window_without_a_step_says_so() -> None:
    with pytest.raises(TrainingError, match="at least the number of rounds"):
        train(network(), ClassificationTask(), DATA, TrainingConfig(steps=1, batch_size=4), seed=0, window=(0, 0))


def test_only_chosen_parameters_move() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    chosen = list(model[4].parameters())
    train(model, ClassificationTask(), DATA, TrainingConfig(steps=3, batch_size=8), seed=0, parameters=chosen)
    assert torch.equal(model.state_dict()["1.weight"], before["1.weight"]), "a weight that was not chosen moved"
    assert not torch.equal(model.state_dict()["4.weight"], before["4.weight"]), "a chosen weight did not move"


def test_every_image_is_seen_equally_often() -> None:
    seen: list[Tensor] = []

    class Watching(ClassificationTask):
        def loss(self, model, batch, streams):
            assert torch.equal(streams.ids, batch.ids), "streams must carry the ids of the batch"
            seen.append(batch.ids)
            return super().loss(model, batch, streams)

    train(network(), Watching(), DATA, TrainingConfig(steps=12, batch_size=8), seed=0)
    counts = torch.bincount(torch.cat(seen))[DATA.ids]
    assert counts.tolist() == [3] * 32, "96 draws of 32 images are three epochs"


def test_progress_is_reported() -> None:
    recorder = Recorder()
    with listening(recorder):
        train(network(), ClassificationTask(), DATA, TrainingConfig(steps=4, batch_size=4), seed=0)
    assert (recorder.total, recorder.steps, recorder.done) == (4, 4, 1), "steps were misreported"
    train(network(), ClassificationTask(), DATA, TrainingConfig(steps=1, batch_size=4), seed=0)
    assert recorder.done == 1, "a listener hears what happens outside its block"


def test_images_are_augmented_in_training_only() -> None:
    task = ClassificationTask(Augmentation(shift=3))
    images, streams = DATA.images[:6], Streams(0, DATA.ids[:6])
    assert not torch.equal(augment(images, task.augmentation, streams), images), "augmentation does nothing"
    model = network().eval()
    batch = DATA.batch(torch.arange(6))
    plain = nn.functional.cross_entropy(model(batch.images), batch.labels)
    assert torch.equal(task.loss(model, batch, streams), plain), "in eval mode nothing is augmented"


@pytest.mark.parametrize("settings", [{"normalization": "dual"}, {"method": "fast"}])
def test_what_a_check_saves_can_be_loaded(settings: dict[str, Any], tmp_path: Path) -> None:
    """Also where the training adds to the model for the while, which goes on undisturbed."""
    data, weights = tiny_dataset(16, size=16), []
    hard = AdversarialTraining(share=0.5, steps=1, **settings)
    task = AdversarialTask(ClassificationTask(), hard, ClassificationTask())
    for on_check in (None, lambda model: model.save(tmp_path / "kept")):
        model = tiny_classifier(16, steps=0).requires_grad_(True)
        budget = TrainingConfig(steps=4, batch_size=8, checks=2)
        train(model, task, data, budget, seed=0, on_check=on_check)
        weights.append(model.state_dict())
    assert_equal(weights[1], weights[0], "a check changed the training")
    loaded = ClassifierModel.load(tmp_path / "kept")
    assert_equal(loaded.state_dict(), weights[0], "the last check did not save what is kept")
