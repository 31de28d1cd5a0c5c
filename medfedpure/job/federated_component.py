"""What a federation trains: network, task and strategy from a configuration, equal at server and sites."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.personalization import PersonalizationStrategy
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import FinishesLocally, Task, Trainable
from medfedpure.job.config import ClassifierChoice
from medfedpure.job.federate_config import ComponentConfig, ImagesChoice
from medfedpure.training.classification import ClassificationTask


@dataclass(frozen=True)
class FederatedComponent:
    """A component as every participant builds it for itself.

    Args:
        config: the component, its strategy and its budget.
        images: what the images are like.

    Raises:
        ConfigError: the plugin has no network that could be trained across clients, or needs another component.
    """

    config: ComponentConfig
    images: ImagesChoice

    def __post_init__(self) -> None:
        if self.config.kind == "classifier":
            return
        component, name = self._create(), f"{self.config.kind} {self.config.choice.plugin!r}"
        if not isinstance(component, Trainable):
            raise ConfigError(f"the {name} has no network to train across clients: fit it at each client instead")
        component.adopt(component.make_network(self.shape, 0), self.shape)
        if not cast(Any, component).fitted and "classifier" in getattr(component, "requires", ()):
            raise ConfigError(
                f"the {name}, configured like this, must be finished beside a classifier, and `federate` trains one "
                "component alone: train it within `medfedpure run`, or choose another score"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.channels, self.images.size, self.images.size

    @property
    def strategy(self) -> PersonalizationStrategy:
        """A new instance of the strategy."""
        chosen = self.config.choice.strategy
        made: PersonalizationStrategy = create("personalization", chosen.plugin, chosen.config)
        return made

    @property
    def training(self) -> TrainingConfig:
        """The budget of each client over all rounds."""
        choice = self.config.choice
        if isinstance(choice, ClassifierChoice):
            return choice.training
        settings: TrainingConfig = self._create().config.training
        return settings

    @property
    def seed(self) -> int:
        """Of the rounds."""
        return derive_seed(self.config.seed, "federate", self.config.kind)

    def task(self) -> Task:
        """Loss, figures and optimizer."""
        choice = self.config.choice
        if isinstance(choice, ClassifierChoice):
            return ClassificationTask(choice.augmentation)
        task: Task = self._create().task()
        return task

    def make_model(self) -> nn.Module:
        """A new network, equal at every participant."""
        choice, seed = self.config.choice, derive_seed(self.config.seed, self.config.kind)
        if not isinstance(choice, ClassifierChoice):
            network: nn.Module = self._create().make_network(self.shape, seed)
            return network
        model: ClassifierModel = create("classifier", choice.plugin, choice.config).create_model(
            in_channels=self.images.channels,
            num_classes=len(self.images.class_names),
            image_size=self.images.size,
            class_names=self.images.class_names,
            seed=seed,
            weights=None if choice.weights == "none" else choice.weights,
        )
        return model

    def export(self, network: nn.Module, train: ImageDataset, folder: Path) -> None:
        """Save a client's personal model as a classifier or a fitted plugin that a defence can load."""
        if isinstance(self.config.choice, ClassifierChoice):
            cast(ClassifierModel, network.cpu()).save(folder)
            return
        component = self._create()
        component.adopt(network.cpu(), self.shape)
        if isinstance(component, FinishesLocally):
            component.finish_fit(train, context=FitContext(), seed=derive_seed(self.config.seed, self.config.kind))
        component.save(folder)

    def _create(self) -> Any:
        return create(self.config.kind, self.config.choice.plugin, self.config.choice.config)


def images_of(data: ImageDataset) -> ImagesChoice:
    """What a data set's images are like.

    Raises:
        ConfigError: images that are not square.
    """
    channels, height, width = data.image_shape
    if height != width:
        raise ConfigError(f"square images are wanted; got {height} x {width}: set image_size of the data set")
    return ImagesChoice(channels=channels, size=height, class_names=data.class_names)
