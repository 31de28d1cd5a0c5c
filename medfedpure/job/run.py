"""The main job: partition, federate, calibrate, attack, defend, count, compare, save."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medfedpure.core.attack import Attack
from medfedpure.core.dataset import check_disjoint
from medfedpure.core.detector import ScoreContext, check_requirements
from medfedpure.core.errors import ConfigError, MissingRequirementError, WeakDefenceWarning
from medfedpure.core.registry import create
from medfedpure.core.storage import write_bytes, write_json
from medfedpure.core.task import Trainable
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.policy import PURIFYING
from medfedpure.evaluation.versions import versions
from medfedpure.evaluation.views import bpda_view, static_view
from medfedpure.federation import Site
from medfedpure.federation.records import check_rounds
from medfedpure.job.chains import build_chains, choose_for_all, measure_chains
from medfedpure.job.components import (
    History,
    budget,
    check_samples,
    detectors_around,
    train_classifiers,
    train_component,
    with_samples,
)
from medfedpure.job.config import PluginChoice, RunConfig
from medfedpure.job.device import check_device
from medfedpure.job.division import Parts, check_clients_disjoint, divide
from medfedpure.job.enough import check_sizes
from medfedpure.job.folder import CACHE, CONFIG, DEFENCES, RESULTS, run_folder
from medfedpure.job.forecast import forecast
from medfedpure.job.journal import Journal, Say
from medfedpure.job.measure import Measured
from medfedpure.job.records import RunResult, StrategyResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A finished run: figures, chains by client, the data parts, and the images behind the figures."""

    result: RunResult
    chains: dict[str, DefendedClassifier]
    parts: Parts
    measured: dict[str, Measured]


def run_job(config: RunConfig, out: Path, *, say: Say | None = None, overwrite: bool = False) -> Job:
    """Run the main job and write config.toml, results.json and one defence per client into `out`, all at its end.

    Args:
        config: the whole job.
        out: folder for the results; made where it is missing.
        say: receives one line of text per phase, with its budget; by default the log.
        overwrite: replace a run that `out` holds, which stays whole until this one is.

    Raises:
        ConfigError, DataError, CalibrationError, FederationError: with what to change.
        ArtifactError: another run is at work in `out`, or it cannot be written.
    """
    _check(config)
    _check_apart(config, Path(out))
    with run_folder(Path(out), config.to_toml(), overwrite=overwrite) as folder:
        return _run(config, folder, Journal(say or logger.info))


def _run(config: RunConfig, out: Path, journal: Journal) -> Job:
    write_bytes(out / CONFIG, config.to_toml().encode())
    with journal.phase("data", f"data: {config.data.plugin}, {config.data.clients} clients by {config.data.partition}"):
        parts = divide(config, out / CACHE if config.cache else None)
        hashes = {client: check_disjoint(own) for client, own in parts.items()}
        check_clients_disjoint(parts)
        check_sizes(parts, config)
        check_samples(config, next(iter(parts.values()))["train"])
    sites = [Site(client, own["train"], own["validation"]) for client, own in parts.items()]
    history: History = {}
    with journal.phase("forecast", "forecast: some steps of every training are timed"):
        journal.forecast = forecast(config, sites)
        if config.defence.recipe == "fast" and not config.classifier.samples:
            journal.forecast.seconds.pop("purifier", None)

    own_strategy, learned, settled = config.classifier.strategy, sites, config.defence.settled()
    purifiers: dict[str, Any] = {}
    if config.classifier.samples:
        purifiers = train_component("purifier", config.purifier, config, sites, {}, history, journal)
        with journal.phase("samples", f"samples: {config.classifier.samples:.0%} of each client's training images"):
            learned = with_samples(config, parts, sites, purifiers, journal.say)
    with journal.phase("classifier", budget("classifier", config.classifier, config.classifier.training)):
        classifiers, history["classifier"] = train_classifiers(config, learned, own_strategy)
    if config.defence.recipe == "fast":
        purifiers = dict.fromkeys(parts)
    elif not purifiers:
        purifiers = train_component("purifier", config.purifier, config, sites, classifiers, history, journal)
    detectors = train_component("detector", config.detector, config, sites, classifiers, history, journal, purifiers)

    with journal.phase(
        "calibrate",
        f"calibrate: {config.defence.target_fpr:.0%} target false-positive rate, {config.defence.scope} scope",
    ):
        chains = build_chains(classifiers, detectors, purifiers, parts, config, settled or "purify_flagged")

    attack: Attack = create("attack", config.attack.plugin, config.attack.config)
    choice = None
    if settled is None:
        with journal.phase("choose", "choose the policy: three are attacked on the tune parts of all clients"):
            choice = choose_for_all(chains, attack, parts, config)
        journal.say(choice.describe())
        if choice.weakness():
            warnings.warn(choice.weakness(), WeakDefenceWarning, stacklevel=2)
    policy = next(iter(chains.values())).policy
    bpda = config.evaluation.bpda and policy in PURIFYING  # elsewhere it is the attack on the bare classifier
    with journal.phase("measure", f"attack and measure: {attack.describe()}"):
        measured = measure_chains(chains, attack, parts, config, bpda=bpda)
    own = StrategyResult.of(own_strategy.plugin, [measured[client].result for client in parts])
    strategies = [own]
    for name in config.evaluation.compare:
        with journal.phase(f"compare {name}", f"compare: the same by {name}, with equal images, steps and purifier"):
            others, history[f"classifier by {name}"] = train_classifiers(config, learned, PluginChoice(plugin=name))
            fitted = detectors_around(others, detectors, purifiers, config, sites)
            rivals = build_chains(others, fitted, purifiers, parts, config, policy)
            found = measure_chains(rivals, attack, parts, config, bpda=False)
            strategies.append(StrategyResult.of(name, [found[client].result for client in parts]))

    with journal.phase("save", f"save: {len(chains)} defences"):
        for client, chain in chains.items():
            chain.cpu().save(out / DEFENCES / client)
    some, names = next(iter(chains.values())), sites[0].train.class_names
    result = RunResult(
        config=config.model_dump(mode="json"),
        class_names=list(names),
        positive=[names[place] for place in sites[0].train.positive],
        policy=policy,
        choice=None if choice is None else choice.document(),
        attack=attack.describe(),
        attacker=static_view(some).name,
        bpda=bpda_view(some).name if bpda else None,
        anchor=f"{config.evaluation.anchor.plugin}, purify all",
        clients=own.clients,
        mean=own.mean,
        strategies=strategies,
        splits=hashes,
        sizes={client: {name: len(part) for name, part in of_client.items()} for client, of_client in parts.items()},
        federated=history,
        seconds=journal.seconds,
        versions=versions(),
    )
    write_json(out / RESULTS, result.model_dump(mode="json"))
    return Job(result, chains, parts, measured)


def _check_apart(config: RunConfig, out: Path) -> None:
    """Refuse to write into the images: what a run leaves there would be read as classes the next time."""
    root = config.data.config.get("root")
    if isinstance(root, str | Path) and out.resolve().is_relative_to(Path(root).expanduser().resolve()):
        raise ConfigError(f"{out} lies in the folder of the images, {root}: choose another folder for the results")


def _check(config: RunConfig) -> None:
    """Refuse what would fail only after the training."""
    names = [config.classifier.strategy.plugin, *config.evaluation.compare]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"evaluation.compare names strategies beside the job's own, each once; got {', '.join(names)}"
        )
    for name in config.evaluation.compare:
        create("personalization", name)
    attack = create("attack", config.attack.plugin, config.attack.config)
    if hidden := attack.requires & {"score", "threshold"}:
        raise ConfigError(
            f"the attack {config.attack.plugin!r} must see {' and '.join(sorted(hidden))} of a detector, and a run "
            "attacks the bare classifiers: choose another, and give this one to medfedpure evaluate --attack"
        )
    anchor = config.evaluation.anchor
    if not create("purifier", anchor.plugin, anchor.config).fitted:
        raise ConfigError(f"evaluation.anchor is fitted on nothing; {anchor.plugin!r} has to be: choose median, say")
    _check_recipe(config)
    check_rounds(config.classifier.rounds, config.classifier.training)
    for kind, choice in (("purifier", config.purifier), ("detector", config.detector)):
        component: Any = create(kind, choice.plugin, choice.config)
        if isinstance(component, Trainable):
            check_rounds(choice.rounds, component.config.training)  # type: ignore[attr-defined]
    check_device(config.device)


def _check_recipe(config: RunConfig) -> None:
    """Refuse a detector that needs the purifier which a recipe leaves out; warn of a classifier that nothing hardens.

    Warns:
        WeakDefenceWarning: the recipe "robust" with a classifier that is trained on no adversarial examples.
    """
    recipe, strategy = config.defence.recipe, config.classifier.strategy
    budget = create("attack", config.attack.plugin, config.attack.config).budget()
    if recipe == "robust" and budget is not None and not budget.eps > 0:
        raise ConfigError(
            "the recipe 'robust' chooses under attacks as far as the run's own, and that has eps 0: raise eps under "
            "[attack.config]"
        )
    if recipe == "fast":
        detector: Any = create("detector", config.detector.plugin, config.detector.config)
        try:
            check_requirements(detector, ScoreContext(nn.Identity(), nn.Identity(), None))
        except MissingRequirementError as error:
            raise ConfigError(
                f"the recipe 'fast' fits no purifier, and the detector {config.detector.plugin!r} needs one ({error}): "
                'name another, such as plugin = "feature_squeezing" under [detector]'
            ) from error
    settings = getattr(create("personalization", strategy.plugin, strategy.config).config, "adversarial", None)
    if recipe == "robust" and (settings is None or not settings.share):
        warnings.warn(
            "the recipe 'robust' chooses among policies around a classifier that is trained on no adversarial "
            "examples, and no policy makes up for that: set share = 0.5 under [classifier.strategy.config.adversarial]",
            WeakDefenceWarning,
            stacklevel=2,
        )
