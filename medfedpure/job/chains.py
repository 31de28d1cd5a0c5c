"""The chains of all clients: put together, calibrated on held-out benign images, attacked and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medfedpure.core.attack import Attack, Budget
from medfedpure.core.progress import track
from medfedpure.core.registry import create
from medfedpure.core.streams import derive_seed
from medfedpure.defence.arms import EPS, Subject, choose_policy
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.policy import Policy
from medfedpure.defence.recipe import Choice
from medfedpure.job.config import RunConfig
from medfedpure.job.division import Parts
from medfedpure.job.measure import Measured, anchor_chain, measure_client


def build_chains(
    classifiers: Mapping[str, nn.Module],
    detectors: Mapping[str, Any],
    purifiers: Mapping[str, Any],
    parts: Parts,
    config: RunConfig,
    policy: Policy,
) -> dict[str, DefendedClassifier]:
    """One calibrated chain for each client.

    Raises:
        CalibrationError: too few groups to calibrate on.
    """
    choice, seed = config.defence, derive_seed(config.seed, "calibrate")
    chains = {
        client: DefendedClassifier(
            classifiers[client], detector=detectors[client], purifier=purifiers[client], policy=policy
        ).to(config.device)
        for client in parts
    }
    scores = {client: chain.score_benign(parts[client]["calibrate"], seed=seed) for client, chain in chains.items()}
    pooled = torch.cat(list(scores.values()))
    for client, chain in chains.items():
        own = pooled if choice.scope == "federation" else scores[client]
        chain.calibration = Calibration.fit(own, choice.target_fpr, scope=choice.scope)
        chain.image_facts = chain.facts_of(parts[client]["calibrate"])
    return chains


def choose_for_all(chains: Mapping[str, DefendedClassifier], attack: Attack, parts: Parts, config: RunConfig) -> Choice:
    """One policy for the chains of all clients, which get it: the best worst case over their tune parts together.

    Images are attacked as far as by the run's own attack; in linf by 8/255 where that has no eps.
    """
    budget = attack.budget() or Budget("linf", EPS)
    subjects = [Subject(chain, parts[client]["tune"]) for client, chain in chains.items()]
    choice = choose_policy(subjects, eps=budget.eps, norm=budget.norm, seed=derive_seed(config.seed, "choice"))
    for chain in chains.values():
        chain.policy, chain.choice = choice.policy, choice
    return choice


def measure_chains(
    chains: Mapping[str, DefendedClassifier], attack: Attack, parts: Parts, config: RunConfig, *, bpda: bool
) -> dict[str, Measured]:
    """Each client's chain on its own test part, beside its bare classifier and the anchor."""
    choice = config.evaluation
    anchor = create("purifier", choice.anchor.plugin, choice.anchor.config)
    return {
        client: measure_client(
            client,
            chain,
            anchor_chain(chain.classifier, anchor),
            attack,
            parts[client],
            seed=config.seed,
            bpda=bpda,
            batch_size=choice.batch_size,
            device=config.device,
        )
        for client, chain in track(chains.items(), "clients", len(chains))
    }
