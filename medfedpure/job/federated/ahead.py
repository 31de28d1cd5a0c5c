"""What can be known of a federation before its first training is said then, and not after the last."""

from __future__ import annotations

from typing import Any

import torch

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create
from medfedpure.core.settings import AdversarialTraining
from medfedpure.defence.arms import check_attackable
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.defend import from_tensor
from medfedpure.federation.privacy import check_allowed
from medfedpure.federation.records import check_rounds
from medfedpure.job.federate_config import ComponentConfig, ImagesChoice, PartKind
from medfedpure.job.federated.defence import planned
from medfedpure.job.federated_component import FederatedComponent
from medfedpure.training.trainer import LoopTrainer


def check_ahead(config: ComponentConfig, images: ImagesChoice) -> None:
    """Refuse what would fail only after a training.

    Args:
        config: of the federation.
        images: what the images are like.

    Raises:
        ConfigError: a part that cannot be trained across clients, or a strategy whose personal model is none that can
            be saved.
        FederationError: rounds without a step, or a strategy that privacy forbids.
        MissingRequirementError: parts that do not fit together, or a classifier that the recipe cannot attack.
        UnknownPluginError, MissingExtraError: a plugin that is not installed.
    """
    made: dict[PartKind, Any] = {}
    for kind in config.kinds:
        part = FederatedComponent(config, images, kind)
        strategy = part.strategy
        check_rounds(part.choice.rounds, part.training)
        if config.federation.privacy is not None:
            check_allowed(strategy)
        against = getattr(strategy.config, "adversarial", AdversarialTraining())
        LoopTrainer.against(part.task(), against, part.task())
        made[kind] = part.untrained()
        if kind == "classifier" and not isinstance(made[kind], ClassifierModel):
            raise ConfigError(
                f"the strategy {strategy.name!r} leaves a client with a {type(made[kind]).__name__}, which is no "
                "classifier that can be saved: take another, such as fedrep"
            )
    if config.defence is None:
        return
    plan = planned(config.defence)
    detector = made.get("detector") or create("detector", plan.detector, plan.detector_config)
    policy = plan.policy or "purify_flagged"
    chain = DefendedClassifier(made["classifier"], detector=detector, purifier=made.get("purifier"), policy=policy)
    if plan.policy is None:
        check_attackable(chain.classifier, from_tensor(torch.full((1, *_shape(images)), 0.5)))


def _shape(images: ImagesChoice) -> tuple[int, int, int]:
    return images.channels, images.size, images.size
