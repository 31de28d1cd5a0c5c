"""Classifiers, purifiers and detectors of all clients: federated where there is a network, else fitted locally."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, FitContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import FinishesLocally, Trainable
from medfedpure.data.synthetic import ClassSampler, augment_with_samples, check_classes
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.federation import FederatedResult, FederationConfig, Site, federate, federate_component
from medfedpure.job.config import FederatedChoice, PluginChoice, RunConfig
from medfedpure.job.division import Parts
from medfedpure.job.federate import round_document
from medfedpure.job.journal import Journal, Say
from medfedpure.training.classification import ClassificationTask

History = dict[str, list[dict[str, Any]]]
"""One document per round, by what was trained."""


def train_classifiers(
    config: RunConfig, sites: list[Site], strategy: PluginChoice
) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    """Personal classifiers by client, and the rounds; equal data, seed and steps for every strategy."""
    choice, data = config.classifier, sites[0].train
    architecture = create("classifier", choice.plugin, choice.config)
    channels, size, _ = data.image_shape

    def make_model() -> ClassifierModel:
        model: ClassifierModel = architecture.create_model(
            in_channels=channels,
            num_classes=data.num_classes,
            image_size=size,
            class_names=data.class_names,
            seed=derive_seed(config.seed, "classifier"),
            weights=None if choice.weights == "none" else choice.weights,
        )
        return model

    result = federate(
        sites,
        make_model=make_model,
        task=ClassificationTask(choice.augmentation, label_smoothing=choice.label_smoothing),
        strategy=create("personalization", strategy.plugin, strategy.config),
        training=choice.training,
        rounds=choice.rounds,
        seed=derive_seed(config.seed, "federate classifier"),
        runtime=config.runtime,
        name="classifier",
        config=_federation(config).model_copy(update={"keep": choice.keep}),
    )
    return _complete(result, "classifier"), _history(result)


def train_component(
    kind: str,
    choice: FederatedChoice,
    config: RunConfig,
    sites: list[Site],
    classifiers: Mapping[str, nn.Module],
    history: History,
    journal: Journal,
    purifiers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One fitted detector or purifier for each client; `history` receives the rounds of a federated one."""
    made: dict[str, Any] = {site.client_id: create(kind, choice.plugin, choice.config) for site in sites}
    component: Any = next(iter(made.values()))
    seed = derive_seed(config.seed, kind)
    if isinstance(component, Trainable):
        training = component.config.training  # type: ignore[attr-defined]
        with journal.phase(kind, budget(kind, choice, training)):
            result = federate_component(
                component,
                sites,
                strategy=create("personalization", choice.strategy.plugin, choice.strategy.config),
                training=training,
                rounds=choice.rounds,
                seed=seed,
                runtime=config.runtime,
                name=kind,
                config=_federation(config),
            )
        history[kind] = _history(result)
        for client, network in _complete(result, kind).items():
            made[client].adopt(network, sites[0].train.image_shape)
        for site in sites:
            _fit_locally(made[site.client_id], site, classifiers, purifiers, seed)
        return made
    with journal.phase(kind, f"{kind}: {choice.plugin}, fitted on each client's own images"):
        for site in sites:
            _fit_locally(made[site.client_id], site, classifiers, purifiers, seed)
    return made


def with_samples(
    config: RunConfig, parts: Parts, sites: list[Site], purifiers: Mapping[str, Any], say: Say
) -> list[Site]:
    """The sites with what each one's purifier drew beside its training images, checked against its other parts."""
    made = []
    for site in sites:
        data, report = augment_with_samples(
            site.train,
            purifiers[site.client_id].to(config.device),
            share=config.classifier.samples,
            against={name: part for name, part in parts[site.client_id].items() if name != "train"},
            seed=derive_seed(config.seed, "samples", site.client_id),
        )
        say(f"samples: {site.client_id}: {report.describe()}")
        made.append(replace(site, train=data))
    return made


def check_samples(config: RunConfig, data: ImageDataset) -> None:
    """Refuse a purifier that cannot draw images of these classes, where such are wanted.

    Raises:
        ConfigError: it draws none.
        DataError: it draws other classes.
    """
    if not config.classifier.samples:
        return
    purifier = create("purifier", config.purifier.plugin, config.purifier.config)
    if not isinstance(purifier, ClassSampler):
        raise ConfigError(
            f"classifier.samples wants a purifier that draws images of a class, and {config.purifier.plugin!r} does "
            "not: choose class_ddpm, or set classifier.samples to 0"
        )
    check_classes(data, purifier)


def detectors_around(
    classifiers: Mapping[str, nn.Module],
    detectors: Mapping[str, Detector],
    purifiers: Mapping[str, Any],
    config: RunConfig,
    sites: list[Site],
) -> dict[str, Detector]:
    """Copies of the detectors whose local part is fitted around other classifiers; networks stay as trained."""
    copies = {client: copy.deepcopy(detector) for client, detector in detectors.items()}
    for site in sites:
        _fit_locally(copies[site.client_id], site, classifiers, purifiers, derive_seed(config.seed, "detector"))
    return copies


def budget(what: str, choice: FederatedChoice, training: TrainingConfig) -> str:
    """What a federated training will do, in steps."""
    return (
        f"{what}: {choice.plugin} by {choice.strategy.plugin}, {choice.rounds} rounds, {training.steps} steps of "
        f"{training.batch_size} images in all at each client"
    )


def _fit_locally(
    component: Any, site: Site, classifiers: Mapping[str, nn.Module], purifiers: Mapping[str, Any] | None, seed: int
) -> None:
    """All that a component learns at one client; a network trained across clients is not trained again."""
    if isinstance(component, Trainable) and not isinstance(component, FinishesLocally):
        return  # it may have been trained before the classifier
    denoiser = None if purifiers is None else purifiers[site.client_id]
    context: FitContext = DefendedClassifier(classifiers[site.client_id], purifier=denoiser, policy="none").context()
    if not isinstance(component, Trainable):
        component.fit(site.train, context=context, seed=seed)
    elif isinstance(component, FinishesLocally):
        component.finish_fit(site.train, context=context, seed=seed)


def _federation(config: RunConfig) -> FederationConfig:
    on_gpu = torch.device(config.device).type == "cuda"
    return FederationConfig(
        threads=config.threads, device=config.device, gpus_per_client=1 / config.data.clients if on_gpu else 0.0
    )


def _complete(result: FederatedResult, what: str) -> dict[str, nn.Module]:
    if result.missing:
        reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(result.missing.items()))
        raise ConfigError(f"no {what} for every client: {reasons}")
    return result.models


def _history(result: FederatedResult) -> list[dict[str, Any]]:
    return [round_document(record) for record in result.history]
