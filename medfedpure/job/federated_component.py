"""A part that a federation trains: network, task and strategy from a configuration, equal at server and sites."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.personalization import PersonalizationStrategy
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import FinishesLocally, Task, Trainable
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.federation import FederationConfig
from medfedpure.job.config import ClassifierChoice, FederatedChoice
from medfedpure.job.enough import check_class_names
from medfedpure.job.federate_config import ComponentConfig, ImagesChoice, PartKind
from medfedpure.training.classification import ClassificationTask


@dataclass(frozen=True)
class FederatedComponent:
    """A component as every participant builds it for itself.

    Args:
        config: the parts, their strategies and budgets.
        images: what the images are like.
        part: which of them this is; None = the only one.

    Raises:
        ConfigError: the plugin has no network that could be trained across clients, or needs a classifier that is not
            there; or the file has no such part, or several.
    """

    config: ComponentConfig
    images: ImagesChoice
    part: PartKind | None = None

    def __post_init__(self) -> None:
        kinds = self.config.kinds
        if self.part not in kinds and (self.part is not None or len(kinds) > 1):
            raise ConfigError(f"the file trains {', '.join(kinds)}, one after the other; got the part {self.part!r}")
        if self.kind == "classifier":
            return
        component, name = self._create(), f"{self.kind} {self.choice.plugin!r}"
        if not isinstance(component, Trainable):
            elsewhere = (
                "name it as `detector` under [defence]" if self.kind == "detector" else "choose another, as ddpm"
            )
            raise ConfigError(f"the {name} has no network to train across clients: {elsewhere}")
        component.adopt(component.make_network(self.shape, 0), self.shape)
        alone = self.config.defence is None
        if alone and not cast(Any, component).fitted and "classifier" in getattr(component, "requires", ()):
            raise ConfigError(
                f"the {name}, configured like this, must be finished beside a classifier, and is trained alone: add "
                "[classifier] and [defence], train it within `medfedpure run`, or choose another score"
            )

    @property
    def kind(self) -> PartKind:
        """What is trained."""
        return self.part or self.config.kinds[0]

    @property
    def choice(self) -> FederatedChoice:
        """Its plugin, strategy and rounds."""
        chosen: FederatedChoice = getattr(self.config, self.kind)
        return chosen

    @property
    def settings(self) -> FederationConfig:
        """Quorum, timeouts and device; the best model is kept where the part or the federation says so."""
        own, best = self.config.federation, isinstance(self.choice, ClassifierChoice) and self.choice.keep == "best"
        return own.model_copy(update={"keep": "best"}) if best else own

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.channels, self.images.size, self.images.size

    @property
    def strategy(self) -> PersonalizationStrategy:
        """A new instance of the strategy."""
        chosen = self.choice.strategy
        made: PersonalizationStrategy = create("personalization", chosen.plugin, chosen.config)
        return made

    @property
    def training(self) -> TrainingConfig:
        """The budget of each client over all rounds."""
        choice = self.choice
        if isinstance(choice, ClassifierChoice):
            return choice.training
        settings: TrainingConfig = self._create().config.training
        return settings

    @property
    def seed(self) -> int:
        """Of the rounds."""
        return derive_seed(self.config.seed, "federate", self.kind)

    def task(self) -> Task:
        """Loss, figures and optimizer."""
        choice = self.choice
        if isinstance(choice, ClassifierChoice):
            return ClassificationTask(choice.augmentation, label_smoothing=choice.label_smoothing)
        task: Task = self._create().task()
        return task

    def make_model(self) -> nn.Module:
        """A new network, equal at every participant."""
        choice, seed = self.choice, derive_seed(self.config.seed, self.kind)
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

    def untrained(self) -> Any:
        """What a client would be left with, as far as its strategy decides it: a classifier, or a part without a fit.

        Raises:
            ConfigError: the strategy leaves a network that the part cannot take.
        """
        network = self.strategy.network(self.make_model)
        if self.kind == "classifier":
            return network
        component, plain = self._create(), self.make_model()
        if type(network) is not type(plain):
            raise ConfigError(
                f"the strategy {self.choice.strategy.plugin!r} leaves a client with a {type(network).__name__}, and "
                f"the {self.kind} {self.choice.plugin!r} is a {type(plain).__name__}: take another, such as fedavg"
            )
        component.adopt(network, self.shape)
        return component

    def export(self, network: nn.Module, train: ImageDataset, folder: Path, others: Path | None = None) -> None:
        """Save a client's personal model as a classifier or a fitted plugin that a defence can load.

        Args:
            network: as its strategy left it.
            train: the client's training images, where the part learns something from them alone.
            folder: where it goes.
            others: folder of the parts that were trained before, beside which it is finished; None = there is none.
        """
        if isinstance(self.choice, ClassifierChoice):
            cast(ClassifierModel, network.cpu()).save(folder)
            return
        component = self._create()
        component.adopt(network.cpu(), self.shape)
        if isinstance(component, FinishesLocally):
            component.finish_fit(train, context=self._context(others), seed=derive_seed(self.config.seed, self.kind))
        component.save(folder)

    def _context(self, others: Path | None) -> FitContext:
        earlier = self.config.kinds[: self.config.kinds.index(self.kind)]
        if others is None or not earlier:
            return FitContext()
        parts = read_parts(others, earlier)
        chain = DefendedClassifier(parts["classifier"], purifier=parts.get("purifier"), policy="none")
        found: FitContext = chain.context()
        return found

    def _create(self) -> Any:
        return create(self.kind, self.choice.plugin, self.choice.config)


def read_parts(folder: Path, kinds: Iterable[PartKind]) -> dict[PartKind, Any]:
    """A client's personal parts, each in a folder of its kind's name.

    Raises:
        ArtifactError: one of them is missing or damaged.
    """
    readers = {"classifier": ClassifierModel.load, "purifier": Component.load, "detector": Component.load}
    return {kind: readers[kind](folder / kind) for kind in kinds}


def images_of(data: ImageDataset) -> ImagesChoice:
    """What a data set's images are like.

    Raises:
        ConfigError: images that are not square.
        DataError: there is one class alone.
    """
    check_class_names(data.class_names, data.name)
    channels, height, width = data.image_shape
    if height != width:
        raise ConfigError(f"square images are wanted; got {height} x {width}: set image_size of the data set")
    return ImagesChoice(channels=channels, size=height, class_names=data.class_names)
