"""How long a run will take: a few steps of each training are timed before the first one begins.

What follows the trainings cannot be tried beforehand, for its parts do not exist yet; it is taken as a share of them,
`REST`, as measured on the demo.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.progress import listening
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.task import Task, Trainable
from medfedpure.federation import Site
from medfedpure.job.config import FederatedChoice, RunConfig
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

REST = 0.45
"""Seconds of calibration, attack and measurement for each second of training."""
_TRIED = 3


class Forecast:
    """Seconds of the phases to come, corrected by those that are over.

    Args:
        seconds: expected, by phase, in order.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)
        self._expected = self._took = 0.0

    def over(self, phase: str, seconds: float) -> None:
        """A phase is over, and took so long."""
        if phase in self.seconds:
            self._expected += self.seconds.pop(phase)
            self._took += seconds

    def of(self, phase: str) -> float | None:
        """Expected seconds of a phase; None where nothing is known of it."""
        return self.seconds[phase] * self._correction() if phase in self.seconds else None

    def left(self) -> float:
        """Expected seconds of all phases that are not over."""
        return sum(self.seconds.values()) * self._correction()

    def _correction(self) -> float:
        return self._took / self._expected if self._expected > 0 else 1.0


def forecast(config: RunConfig, sites: list[Site]) -> Forecast:
    """Time some steps of what will be trained, on the first client's images; it changes nothing."""
    data = sites[0].train
    trainings = {
        kind: len(sites) * _seconds(kind, getattr(config, kind), config, data)
        for kind in ("classifier", "purifier", "detector")
    }
    found = {kind: seconds for kind, seconds in trainings.items() if seconds}
    found["measure"] = REST * sum(found.values())
    others = found["classifier"] + found["measure"]
    found |= {f"compare {name}": others for name in config.evaluation.compare}
    return Forecast(found)


def _seconds(kind: str, choice: FederatedChoice, config: RunConfig, data: ImageDataset) -> float:
    """Of one client's whole training; 0 where nothing is trained across clients."""
    task: Task
    if kind == "classifier":
        channels, size, _ = data.image_shape
        model: nn.Module = create("classifier", choice.plugin, choice.config).create_model(
            in_channels=channels, num_classes=data.num_classes, image_size=size, class_names=data.class_names, seed=0
        )
        task, training = ClassificationTask(config.classifier.augmentation), config.classifier.training
    else:
        component: Any = create(kind, choice.plugin, choice.config)
        if not isinstance(component, Trainable):
            return 0.0
        model, task = component.make_network(data.image_shape, 0), component.task()
        training = component.config.training  # type: ignore[attr-defined]
    model.to(config.device)
    few = min(_TRIED, training.steps)
    hardened = getattr(
        create("personalization", choice.strategy.plugin, choice.strategy.config).config, "adversarial", None
    )
    passes = 1.0
    if hardened is not None and hardened.share:
        passes += hardened.share * (1 if hardened.method == "fast" else hardened.steps)
        passes += hardened.share * (hardened.method == "trades") + (hardened.awp > 0)
    return passes * training.steps / few * _timed(model, task, data, training, few)


def _timed(model: nn.Module, task: Task, data: ImageDataset, training: TrainingConfig, steps: int) -> float:
    """Seconds of so many steps after a first one, which pays for warming up."""
    tried = training.model_copy(update={"patience": 0})
    with listening(None):
        train(model, task, data, tried, seed=0, window=(0, 1))
        start = time.perf_counter()
        train(model, task, data, tried, seed=0, window=(0, steps))
        return time.perf_counter() - start


def duration(seconds: float) -> str:
    """For people: "40 s", "4 min", "1 h 20 min".

    >>> duration(39.6), duration(235), duration(4800)
    ('40 s', '4 min', '1 h 20 min')
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
