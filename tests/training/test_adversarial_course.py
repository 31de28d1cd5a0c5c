"""The course of an adversarial training: two sets of BatchNorm, the watch of one step, checkpoints, the best state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adversarial_training import (
    BUDGET,
    DATA,
    HALF,
    METHODS,
    PLAIN,
    VARIED,
    against,
    batch,
    in_training,
    network,
    trained,
)
from torch import Tensor, nn

from medfedpure.core.dataset import Batch
from medfedpure.core.errors import OneStepWarning, TrainingError
from medfedpure.core.settings import AdversarialTraining, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task, beside
from medfedpure.testing.checking import assert_equal
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.crafting import lent
from medfedpure.training.loop import train
from medfedpure.training.second_set import installed

# -- two sets of BatchNorm ----------------------------------------------------------------------------------------


def moved_by(name: str, kind: str) -> tuple[bool, bool]:
    """Whether a pass of only such images moves the running mean of the model's own layer, and that of the second."""
    model, (given, streams) = network(), batch()
    task = against(HALF, **METHODS[name])
    with in_training(task, model):
        before = {key: value.clone() for key, value in model.state_dict().items() if "running_mean" in key}
        with task._routed(attacked=kind == "attacked"):
            PLAIN.loss(model, given, streams)
        after = model.state_dict()
        own, second = (not torch.equal(before[k], after[k]) for k in ("2.running_mean", "2.second.running_mean"))
    return own, second


def test_each_kind_of_images_moves_its_own_statistics_alone() -> None:
    assert moved_by("dual", "attacked") == (True, False)
    assert moved_by("dual", "clean") == (False, True)
    assert moved_by("dual_clean", "attacked") == (False, True)
    assert moved_by("dual_clean", "clean") == (True, False)


@pytest.mark.parametrize("name", ["dual", "dual_clean", "fast, dual", "trades, dual, awp"])
def test_the_loss_sends_clean_and_attacked_images_where_they_belong(name: str) -> None:
    given, streams = batch()
    torch.manual_seed(0)
    model, task = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 2)), against(HALF, **METHODS[name])
    seen: dict[str, list[Tensor]] = {"all": [], "second": []}

    def look(place: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor], answer: Tensor) -> None:
            if layer.training and layer.track_running_stats:
                seen[place].append(given[0].detach())

        return hook

    with in_training(task, model):
        model[1].register_forward_hook(look("all"))
        model[1].second.register_forward_hook(look("second"))
        task.loss(model, given, streams)
    benign = {tuple(row.tolist()) for row in given.images.flatten(1)}
    kinds = {
        place: [{"clean" if tuple(row.tolist()) in benign else "attacked" for row in rows} for rows in passes]
        for place, passes in seen.items()
    }
    assert kinds["second"] == [{"clean" if METHODS[name]["normalization"] == "dual" else "attacked"}]
    assert len(kinds["all"]) == 2
    assert sorted(kinds["all"], key=str) == [{"attacked"}, {"clean"}]
    assert sum(map(len, seen["all"])) == (24 if task.settings.method == "trades" else 16)


@pytest.mark.parametrize("name", ["dual", "trades, dual, awp"])
def test_after_the_training_the_model_is_a_plain_one(name: str) -> None:
    model = network()
    keys = list(model.state_dict())
    train(model, against(HALF, **METHODS[name]), DATA, BUDGET, seed=3)
    assert list(model.state_dict()) == keys
    assert [type(part) for part in model.modules()] == [type(part) for part in network().modules()]
    assert vars(model[2]).keys() == vars(network()[2]).keys()
    copied = network()
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied.eval()(DATA.images), model(DATA.images))


def test_the_second_set_goes_on_where_it_was() -> None:
    model, task = network(), against(HALF, normalization="dual")
    train(model, task, DATA, BUDGET, seed=3)
    kept = {key: value.clone() for key, value in beside(model).items()}
    assert not torch.equal(kept["2.running_mean"], model.state_dict()["2.running_mean"])
    with installed(model, [], doubled=True):
        assert_equal(dict(model[2].second.state_dict()), {k[2:]: v for k, v in kept.items() if k[:2] == "2."}, "second")
        assert torch.equal(model[2].weight, model.state_dict()["2.weight"])


def test_a_layer_that_is_held_still_holds_its_second_set_still() -> None:
    model = network()
    train(model, against(HALF, normalization="dual"), DATA, BUDGET, seed=3)
    kept = {key: value.clone() for key, value in beside(model).items()}
    head = list(model[5].parameters())
    train(model, against(HALF, normalization="dual"), DATA, BUDGET, seed=4, parameters=head)
    assert_equal(beside(model), kept, "the second set of a layer that is not trained")


def test_a_copy_made_while_it_trains_answers_for_itself() -> None:
    model, task = network(), against(HALF, normalization="dual_clean")
    with in_training(task, model):
        copied = copy.deepcopy(model).eval()
        wanted = copied(DATA.images)
        with torch.no_grad():
            model[2].weight.zero_()
            model[2].second.weight.zero_()
        assert torch.equal(copied(DATA.images), wanted)


def test_a_training_that_fails_leaves_a_plain_model() -> None:
    class Failing(ClassificationTask):
        def metrics(self, *given: Any, **options: Any) -> dict[str, float]:
            raise ConnectionError

    model = network()
    with pytest.raises(ConnectionError):
        train(model, against(HALF, Failing(), normalization="dual"), DATA, BUDGET, seed=3, validation=DATA)
    assert list(model.state_dict()) == list(network().state_dict())
    with torch.no_grad(), lent(model):
        model(DATA.images)


@pytest.mark.parametrize("name", ["dual", "fast"])
def test_outside_of_a_training_it_says_so(name: str) -> None:
    given, streams = batch()
    with pytest.raises(TrainingError, match=r"task\.around"):
        against(HALF, **METHODS[name]).loss(network(), given, streams)


def test_methods_for_classifiers_refuse_other_tasks() -> None:
    class Other(Task):
        def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
            return model(batch.images).square().mean()

    for method in ("fast", "trades"):
        with pytest.raises(TrainingError, match='take "pgd" for this part'):
            against(HALF, Other(), method=method)
    task = against(HALF, Other(), normalization="dual", awp=0.01)
    figures = task.metrics(network().eval(), DATA)
    assert figures.keys() == {"loss", "robust_loss"}
    assert task.worth(figures) == (-figures["robust_loss"],)
    train(network(), task, DATA, BUDGET, seed=0)


# -- one step that was learned by heart ---------------------------------------------------------------------------


class Planted(nn.Module):
    """Right everywhere but near the image itself, where a random start with one full step does not come to rest.

    The true class is read from the first pixel. A wall of another class lies at a small change of the second, which a
    step of 1.25 eps leaps over and a smaller one does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        truth, change = 8 * (images[:, 0, 0, 0] - 0.5), images[:, 0, 0, 1] - 0.5
        wall = (-((change - 0.03) / 0.012).square()).exp()
        margin = truth * (1 - 2 * wall) * self.scale
        return torch.stack((-margin, margin), 1)


def planted() -> tuple[Batch, Streams]:
    images = torch.full((32, 1, 1, 2), 0.5)
    labels = torch.arange(32) % 2
    images[:, 0, 0, 0] = 0.1 + 0.8 * labels
    ids = torch.arange(32)
    return Batch(images, labels, ids), Streams(1, ids)


def test_the_watch_of_fast_fires_on_a_planted_collapse_and_goes_on_with_several_steps() -> None:
    (given, streams), model = planted(), Planted()
    settings = AdversarialTraining(share=1, method="fast", eps=0.1, step=0.01, steps=20)
    task = AdversarialTask(PLAIN, settings, PLAIN)
    with in_training(task, model):
        task.at(20, 1000)
        one = task.loss(model, given, streams)  # so early a network may not be robust yet, and nobody judges it
        task.at(220, 1000)
        with pytest.warns(OneStepWarning, match=r"step 220 .* of 32 images .* PGD of 20 steps"):
            several = task.loss(model, given, streams)
        task.at(221, 1000)
        torch.testing.assert_close(task.loss(model, given, streams), several)
    assert float(several.detach()) > 2 * float(one.detach())
    with in_training(task, model):
        task.at(222, 1000)
        torch.testing.assert_close(task.loss(model, given, streams), several)
    assert int(beside(model)["several_steps_wanted"]) == 1


def test_the_watch_is_silent_where_both_attacks_say_the_same() -> None:
    trained(against(HALF, method="fast"), TrainingConfig.parse(BUDGET, steps=45))


# -- checkpoints and the best state -------------------------------------------------------------------------------


class CutOff(AdversarialTask):
    """Stops like a lost connection."""

    left = 4

    def recipe(self) -> dict[str, Any]:
        return AdversarialTask(self.inner, self.settings, self.objective).recipe()

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError
        return super().loss(model, batch, streams)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_was_cut_off_ends_the_same(name: str, tmp_path: Path) -> None:
    settings = AdversarialTraining.parse(HALF, **METHODS[name])
    budget = TrainingConfig.parse(BUDGET, ema=0.9, decay_all=False)
    options = {"validation": DATA, "checkpoint": tmp_path / "checkpoint"}
    whole = trained(AdversarialTask(VARIED, settings, VARIED), budget, validation=DATA)
    with pytest.raises(ConnectionError):
        trained(CutOff(VARIED, settings, VARIED), budget, **options)
    assert_equal(trained(AdversarialTask(VARIED, settings, VARIED), budget, **options), whole, name)


def test_what_the_watch_found_survives_a_checkpoint(tmp_path: Path) -> None:
    task = against(HALF, method="fast")

    class Found(AdversarialTask):
        def recipe(self) -> dict[str, Any]:
            return task.recipe()

        def at(self, step: int, steps: int) -> None:
            assert self._added is not None
            self._added.several_steps = True
            if step == 2:
                raise ConnectionError

    with pytest.raises(ConnectionError):
        trained(Found(PLAIN, task.settings, PLAIN), checkpoint=tmp_path / "checkpoint")
    model = network()
    train(model, task, DATA, BUDGET, seed=3, checkpoint=tmp_path / "checkpoint")
    assert int(beside(model)["several_steps_wanted"]) == 1


class Scripted(AdversarialTask):
    """Figures as written down: balanced accuracy under attack, loss under attack, loss."""

    def __init__(self, rows: Sequence[tuple[float, float, float]]) -> None:
        super().__init__(PLAIN, HALF, PLAIN)
        self.rows, self.seen = rows, []

    def metrics(self, model: nn.Module, *given: Any, **options: Any) -> dict[str, float]:
        accuracy, under_attack, loss = self.rows[len(self.seen)]
        self.seen.append(copy.deepcopy(model.state_dict()))
        return {"loss": loss, "robust_balanced_accuracy": accuracy, "robust_loss": under_attack}


def test_the_best_weights_are_those_of_the_highest_robust_accuracy() -> None:
    rows = [
        (0.5, 0.9, 0.1),
        (0.7, 0.9, 0.5),
        (0.7, 0.8, 0.6),
        (0.7, 0.8, 0.2),
        (float("nan"), 0.1, 0.1),
        (0.6, 0.1, 0.1),
    ]
    task, model = Scripted(rows), network()
    log = train(model, task, DATA, BUDGET, seed=0, validation=DATA)
    best = {key: value for key, value in task.seen[2].items() if value.is_floating_point()}
    assert_equal({key: model.state_dict()[key] for key in best}, best, "weights of the third check")
    assert log.validation == 0.6
    impatient = train(
        network(), Scripted(rows), DATA, TrainingConfig.parse(BUDGET, patience=1), seed=0, validation=DATA
    )
    assert impatient.steps == 4, "the fourth check is no better than the third"


@pytest.mark.parametrize("method", ["pgd", "fast", "trades"])
def test_robust_figures_are_of_several_whole_steps_and_repeat(method: str) -> None:
    model = network().eval()
    found = [
        against(HALF, method=changed, eps_zero=0.4, eps_full=0.9).metrics(model, DATA, seed=4, batch_size=size)
        for changed, size in ((method, 32), (method, 32), ("pgd", 8))
    ]
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], abs=1e-5)
    assert found[0]["robust_loss"] > found[0]["loss"] + 0.05


def test_only_matrices_decay_where_it_is_asked() -> None:
    class Nothing(ClassificationTask):
        def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
            return super().loss(model, batch, streams) * 0.0

    start = network().state_dict()
    for decay_all in (True, False):
        budget = TrainingConfig.parse(BUDGET, weight_decay=0.5, decay_all=decay_all)
        found = trained(Nothing(), budget)
        assert float(found["1.weight"].norm()) < 0.99 * float(start["1.weight"].norm())
        assert torch.equal(found["2.weight"], start["2.weight"]) is not decay_all
        assert torch.equal(found["1.bias"], start["1.bias"]) is not decay_all
