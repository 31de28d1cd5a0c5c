"""What the tests of adversarial training share: a small network, its data, and one setting for each method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.testing import tiny_dataset
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

DATA = tiny_dataset(32, size=16)
PLAIN = ClassificationTask(Augmentation(flip=False, shift=0))
VARIED = ClassificationTask(Augmentation(intensity=0.2, noise=0.05, rotation=10))
BUDGET = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-2, warmup=0.0, checks=6)
HALF = AdversarialTraining(share=0.5, eps=0.05, step="auto", steps=2)
METHODS: dict[str, dict[str, Any]] = {
    "pgd": {},
    "fast": {"method": "fast"},
    "trades": {"method": "trades"},
    "awp": {"awp": 0.01, "awp_start": 0.5},
    "trades, awp": {"method": "trades", "awp": 0.01},
    "fast, awp": {"method": "fast", "awp": 0.01},
    "dual": {"normalization": "dual"},
    "dual_clean": {"normalization": "dual_clean"},
    "fast, dual": {"method": "fast", "normalization": "dual"},
    "trades, dual, awp": {"method": "trades", "normalization": "dual", "awp": 0.01},
    "schedule": {"eps_zero": 0.2, "eps_full": 0.8},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    return nn.Sequential(*layers)


def against(settings: AdversarialTraining, inner: Task = PLAIN, **changed: Any) -> AdversarialTask:
    return AdversarialTask(inner, AdversarialTraining.parse(settings, **changed), inner)


def trained(task: Task, budget: TrainingConfig = BUDGET, **options: Any) -> dict[str, Tensor]:
    model = network()
    train(model, task, DATA, budget, seed=3, **options)
    return model.state_dict()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in two)


@contextmanager
def in_training(task: Task, model: nn.Module) -> Iterator[None]:
    with task.around(model, list(model.parameters())):
        model.train()
        yield


def batch() -> tuple[Batch, Streams]:
    given = DATA.batch(torch.arange(16))
    return given, Streams(5, given.ids)
