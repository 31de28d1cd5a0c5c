"""A training that is cut off goes on to the same weights; validation keeps the best; bfloat16 learns too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from medfedpure.core.errors import ArtifactError, TrainingError
from medfedpure.core.settings import TrainingConfig
from medfedpure.testing import tiny_dataset
from medfedpure.testing.checking import assert_equal
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train
from medfedpure.training.state import TrainingState

DATA = tiny_dataset(32, size=16)
BUDGET = TrainingConfig(steps=12, batch_size=8, learning_rate=1e-2, ema=0.9, checks=6)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    return nn.Sequential(*layers)


class CutOff(ClassificationTask):
    """Stops like a lost connection at a chosen step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def recipe(self):
        return ClassificationTask().recipe()

    def loss(self, model, batch, streams):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError
        return super().loss(model, batch, streams)


@pytest.mark.parametrize("validation", [None, tiny_dataset(8, size=16)])
def test_a_training_that_was_cut_off_ends_the_same(tmp_path: Path, validation) -> None:
    whole, model = network(), network()
    log = train(whole, ClassificationTask(), DATA, BUDGET, seed=3, validation=validation)
    folder = tmp_path / "checkpoint"
    with pytest.raises(ConnectionError):
        train(model, CutOff(7), DATA, BUDGET, seed=3, validation=validation, checkpoint=folder)
    fresh, task = network(), CutOff(6)
    again = train(fresh, task, DATA, BUDGET, seed=3, validation=validation, checkpoint=folder)
    assert_equal(fresh.state_dict(), whole.state_dict(), "continued after step 6 against never cut off")
    assert again == log, "the log of the continued training differs"
    assert task.left == 0, "six steps were already done, and six are left"


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = network(), network()
    train(first, ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=tmp_path / "checkpoint")
    train(second, CutOff(0), DATA, BUDGET, seed=3, checkpoint=tmp_path / "checkpoint")
    assert_equal(second.state_dict(), first.state_dict(), "read from the checkpoint")


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    train(network(), ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder)
    with pytest.raises(ArtifactError, match="differs in seed"):
        train(network(), ClassificationTask(), DATA, BUDGET, seed=4, checkpoint=folder)
    with pytest.raises(ArtifactError, match="differs in images"):
        train(network(), ClassificationTask(), tiny_dataset(32, size=16, seed=9), BUDGET, seed=3, checkpoint=folder)
    with pytest.raises(ArtifactError, match="differs in task"):
        train(network(), ClassificationTask(label_smoothing=0.1), DATA, BUDGET, seed=3, checkpoint=folder)
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(ArtifactError, match="differs in trained"):
        train(other, ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder)
    (folder / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="truncated"):
        train(network(), ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder)


class Scripted(ClassificationTask):
    """Validation losses as written down."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses
        self.seen: list[dict[str, torch.Tensor]] = []

    def metrics(self, model, data, *, batch_size=64, seed=0):
        self.seen.append(copy.deepcopy(model.state_dict()))
        return {"loss": self.losses[len(self.seen) - 1]}


def test_the_best_weights_are_kept_and_patience_ends_the_training() -> None:
    task, model = Scripted([0.5, 0.2, 0.3, float("nan"), 0.1]), network()
    budget = BUDGET.model_copy(update={"patience": 2})
    log = train(model, task, DATA, budget, seed=0, validation=tiny_dataset(8, size=16))
    assert log.steps == 8, "the third and fourth check were no better, so the ninth step is not taken"
    assert log.validation == pytest.approx(0.2)
    floating = {k: v for k, v in task.seen[1].items() if v.is_floating_point()}
    assert_equal({k: model.state_dict()[k] for k in floating}, floating, "weights of the best check")


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(TrainingError, match="patience = 2 needs validation images"):
        train(network(), ClassificationTask(), DATA, BUDGET.model_copy(update={"patience": 2}), seed=0)


def test_bfloat16_learns_in_float32_weights() -> None:
    model, reference = network(), network()
    half = BUDGET.model_copy(update={"precision": "bfloat16", "steps": 60})
    log = train(model, ClassificationTask(), DATA, half, seed=0)
    full = train(reference, ClassificationTask(), DATA, half.model_copy(update={"precision": "float32"}), seed=0)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert log.loss == pytest.approx(full.loss, abs=0.1)
    assert not torch.equal(model[1].weight, reference[1].weight), "bfloat16 rounds, so the weights differ"


def test_nothing_half_written_replaces_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    train(network(), ClassificationTask(), DATA, BUDGET, seed=3, checkpoint=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = network()
    state = TrainingState(model, torch.optim.AdamW(model.parameters()), None, 12)
    monkeypatch.setattr("medfedpure.core.storage.write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ArtifactError, match="disk full"):
        state.save(folder, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
