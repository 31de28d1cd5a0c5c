"""The main job: partition, federate, calibrate, attack, defend, count, save."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfedpure.core.attack import Attack
from medfedpure.core.calibration import Calibration
from medfedpure.core.classifier import ClassificationTask, ClassifierModel
from medfedpure.core.component import Component
from medfedpure.core.dataset import check_disjoint
from medfedpure.core.defense import DefendedClassifier
from medfedpure.core.detector import Detector, FitContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.purifier import Purifier
from medfedpure.core.registry import create
from medfedpure.core.storage import write_bytes, write_json
from medfedpure.core.streams import derive_seed
from medfedpure.core.threats import bpda_view, static_view
from medfedpure.core.training import FinishesLocally, Trainable, TrainingConfig
from medfedpure.federation import FederatedResult, FederationConfig, Site, federate, federate_part
from medfedpure.workflow.config import FederatedChoice, RunConfig
from medfedpure.workflow.measure import Measured, anchor_chain, measure_client
from medfedpure.workflow.parts import Parts, check_clients_disjoint, divide
from medfedpure.workflow.results import RunResult, mean_over_clients

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
_PACKAGES = ("medfedpure", "torch", "flwr", "diffusers", "timm", "adversarial-robustness-toolbox", "numpy")


@dataclass(frozen=True)
class Job:
    """A finished run: figures, chains by client, the data parts, and the images behind the figures."""

    result: RunResult
    chains: dict[str, DefendedClassifier]
    parts: Parts
    measured: dict[str, Measured]


@dataclass
class _Journal:
    """Says what happens and how long it took."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        self.say(text)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_job(config: RunConfig, out: Path, *, say: Say | None = None) -> Job:
    """Run the main job and write config.toml, results.json and one defence per client into `out`.

    Args:
        config: the whole job.
        out: folder for the results; made where it is missing.
        say: receives one line of text per phase, with its budget; by default the log.

    Raises:
        ConfigError, DataError, CalibrationError, FederationError: with what to change.
    """
    journal = _Journal(say or logger.info)
    _check_device(config.device)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "config.toml", config.to_toml().encode())
    with journal.phase("data", f"data: {config.data.plugin}, {config.data.clients} clients by {config.data.partition}"):
        parts = divide(config)
        hashes = {client: check_disjoint(own) for client, own in parts.items()}
        check_clients_disjoint(parts)
    sites = [Site(client, own["train"], own["validation"]) for client, own in parts.items()]
    history: dict[str, list[dict[str, Any]]] = {}

    with journal.phase("classifier", _budget("classifier", config.classifier, config.classifier.training)):
        classifiers, history["classifier"] = _train_classifiers(config, sites)
    purifiers = _train_part("purifier", config.purifier, config, sites, classifiers, history, journal)
    detectors = _train_part("detector", config.detector, config, sites, classifiers, history, journal, purifiers)

    with journal.phase(
        "calibrate",
        f"calibrate: {config.defense.target_fpr:.0%} target false-positive rate, {config.defense.scope} scope",
    ):
        chains = {
            client: DefendedClassifier(
                classifiers[client],
                detector=detectors[client],
                purifier=purifiers[client],
                policy=config.defense.policy,
            ).to(config.device)
            for client in parts
        }
        _calibrate(chains, parts, config)

    attack: Attack = create("attack", config.attack.plugin, config.attack.config)
    anchor = create("purifier", config.evaluation.anchor.plugin, config.evaluation.anchor.config)
    with journal.phase("measure", f"attack and measure: {attack.describe()}"):
        measured = {
            client: measure_client(
                client,
                chain,
                anchor_chain(chain.classifier, anchor),
                attack,
                parts[client],
                seed=config.seed,
                bpda=config.evaluation.bpda,
                batch_size=config.evaluation.batch_size,
                device=config.device,
            )
            for client, chain in chains.items()
        }
    with journal.phase("save", f"save: {len(chains)} defences"):
        for client, chain in chains.items():
            chain.cpu().save(out / "defences" / client)
    some = next(iter(chains.values()))
    clients = [measured[client].result for client in parts]
    result = RunResult(
        config=config.model_dump(mode="json"),
        class_names=list(sites[0].train.class_names),
        attack=attack.describe(),
        attacker=static_view(some).name,
        bpda=bpda_view(some).name if config.evaluation.bpda else None,
        anchor=f"{config.evaluation.anchor.plugin}, purify all",
        clients=clients,
        mean=mean_over_clients(clients),
        splits=hashes,
        sizes={client: {name: len(part) for name, part in own.items()} for client, own in parts.items()},
        federated=history,
        seconds=journal.seconds,
        versions=_versions(),
    )
    write_json(out / "results.json", result.model_dump(mode="json"))
    return Job(result, chains, parts, measured)


def _train_classifiers(config: RunConfig, sites: list[Site]) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
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
        )
        return model

    result = federate(
        sites,
        make_model=make_model,
        task=ClassificationTask(choice.augmentation),
        strategy=create("personalization", choice.strategy.plugin, choice.strategy.config),
        training=choice.training,
        rounds=choice.rounds,
        seed=derive_seed(config.seed, "federate classifier"),
        runtime=config.runtime,
        name="classifier",
        config=_federation(config),
    )
    return _complete(result, "classifier"), _history(result)


def _train_part(
    kind: str,
    choice: FederatedChoice,
    config: RunConfig,
    sites: list[Site],
    classifiers: dict[str, nn.Module],
    history: dict[str, list[dict[str, Any]]],
    journal: _Journal,
    purifiers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One fitted part for each client: federated where its network can be, else fitted on each client's own."""
    made: dict[str, Any] = {site.client_id: create(kind, choice.plugin, choice.config) for site in sites}
    part: Component = next(iter(made.values()))

    def context(client: str) -> FitContext:
        denoiser = purifiers[client] if purifiers is not None else None
        return DefendedClassifier(classifiers[client], purifier=denoiser, policy="none").context()

    seed = derive_seed(config.seed, kind)
    if isinstance(part, Trainable):
        training = part.config.training
        with journal.phase(kind, _budget(kind, choice, training)):
            result = federate_part(
                part,
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
            own = made[site.client_id]
            if isinstance(own, FinishesLocally):
                own.finish_fit(site.train, context=context(site.client_id), seed=seed)
        return made
    with journal.phase(kind, f"{kind}: {choice.plugin}, fitted on each client's own images"):
        for site in sites:
            fitted: Detector | Purifier = made[site.client_id]
            fitted.fit(site.train, context=context(site.client_id), seed=seed)
    return made


def _calibrate(chains: dict[str, DefendedClassifier], parts: Parts, config: RunConfig) -> None:
    choice, seed = config.defense, derive_seed(config.seed, "calibrate")
    scores = {client: chain.score_benign(parts[client]["calibrate"], seed=seed) for client, chain in chains.items()}
    pooled = torch.cat(list(scores.values()))
    for client, chain in chains.items():
        own = pooled if choice.scope == "federation" else scores[client]
        chain.calibration = Calibration.fit(own, choice.target_fpr, scope=choice.scope)


def _federation(config: RunConfig) -> FederationConfig:
    on_gpu = torch.device(config.device).type == "cuda"
    return FederationConfig(
        threads=config.threads, device=config.device, gpus_per_client=1 / config.data.clients if on_gpu else 0.0
    )


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {device!r} cannot be used here: {error}") from error


def _complete(result: FederatedResult, what: str) -> dict[str, nn.Module]:
    if result.missing:
        reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(result.missing.items()))
        raise ConfigError(f"no {what} for every client: {reasons}")
    return result.models


def _history(result: FederatedResult) -> list[dict[str, Any]]:
    return [
        {
            "round": record.round,
            "seconds": record.seconds,
            "clients": {client: dict(metrics) for client, metrics in record.clients.items()},
            "failed": dict(record.failed),
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
        }
        for record in result.history
    ]


def _budget(what: str, choice: FederatedChoice, training: TrainingConfig) -> str:
    return (
        f"{what}: {choice.plugin} by {choice.strategy.plugin}, {choice.rounds} rounds, {training.steps} steps of "
        f"{training.batch_size} images in all at each client"
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
