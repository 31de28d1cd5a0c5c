"""A client's defence of its own parts: put together, calibrated, tried and saved on its own images alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector
from medfedpure.core.disk.whole import make_folder
from medfedpure.core.errors import ArtifactError, WeakDefenceWarning
from medfedpure.core.registry import create
from medfedpure.core.storage import DOCUMENT, read_document_only, read_json, write_json
from medfedpure.core.streams import derive_seed
from medfedpure.defence.arms import Subject, choose_policy
from medfedpure.defence.budget import with_budget
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.defend import MOST
from medfedpure.defence.own_attack import check_itself
from medfedpure.defence.own_check import OwnCheck
from medfedpure.defence.policy import Policy
from medfedpure.defence.recipe import Plan, plan_of
from medfedpure.job.federate_config import ComponentConfig, FederatedDefence
from medfedpure.job.federated.images import ClientImages
from medfedpure.job.federated_component import read_parts

Say = Callable[[str], object]
_REMEDY = (
    "Train with more steps, bring more images, or choose another detector or purifier: `medfedpure plugins` lists them"
)


def planned(choice: FederatedDefence) -> Plan:
    """What is fitted at a client, with the configuration of its detector."""
    given = choice.detector
    plan = plan_of(choice.recipe, detector=None if given is None else given.plugin)
    own = plan.detector_config if given is None else given.config
    config = cast(Mapping[str, Any], with_budget("detector", plan.detector, own, choice.budget))
    return replace(plan, detector_config=config)


def keep_defence(
    config: ComponentConfig, parts: Path, data: ClientImages, out: Path, note: Path, *, device: str, say: Say
) -> OwnCheck | None:
    """A client's defence in its folder; one that was made of the same parts, images and settings stays as it is.

    Args:
        config: of the federation, with [defence].
        parts: folder of the client's parts.
        data: its images, enough of them (`check_enough`).
        out: folder of the defence.
        note: file that says what a defence was made of.
        device: where it is fitted.
        say: takes a line on what begins, and on what came out.

    Returns:
        What the trial saw; None where there was none.

    Raises:
        ArtifactError: a part is missing or damaged.

    Warns:
        WeakDefenceWarning: the trial, or the choice of the policy, found little.
    """
    made_of = _made_of(config, parts, data, device)
    if not ((out / DOCUMENT).is_file() and note.is_file() and _read(note) == made_of):
        chain = _fit(config, parts, data, device, say)
        make_folder(note.parent)
        note.unlink(missing_ok=True)
        chain.cpu().save(out)
        write_json(note, made_of)
    found = read_document_only(out).get("own_check")
    return None if found is None else OwnCheck.read(found, str(out))


def counts(check: OwnCheck | None) -> dict[str, float]:
    """A trial as numbers that may travel; where no attack could be made, those of unattacked images alone."""
    if check is None:
        return {}
    attacked = () if check.missing else ("fooled", "flagged", "restored")
    return {name: float(getattr(check, name)) for name in ("images", *attacked, "benign_flagged", "benign_kept")}


def _fit(config: ComponentConfig, parts: Path, data: ClientImages, device: str, say: Say) -> DefendedClassifier:
    assert config.defence is not None
    assert data.calibrate is not None
    seed, plan = derive_seed(config.seed, "defence", data.client_id), planned(config.defence)
    own = read_parts(parts, config.kinds)
    classifier, purifier = own["classifier"].to(device), own.get("purifier")
    cleaner = None if purifier is None else purifier.to(device)
    watcher: Detector = own.get("detector") or create("detector", plan.detector, plan.detector_config)
    if not watcher.fitted:
        say(f"{data.client_id}: the detector {watcher.name!r} is fitted on {len(data.train)} images")
        context = DefendedClassifier(classifier, purifier=cleaner, policy="none").context()
        watcher.to(device).fit(data.train, context=context, seed=derive_seed(seed, "detector"))
    policy: Policy = plan.policy or "purify_flagged"
    chain = DefendedClassifier(classifier, detector=watcher.to(device), purifier=cleaner, policy=policy)
    chain.calibrate(data.calibrate, config.defence.target_fpr, seed=seed)
    assert chain.calibration is not None
    say(f"{data.client_id}: {chain.calibration.describe()}")
    if plan.policy is None:
        assert data.choose is not None
        images = _some(data.choose.one_per_group(derive_seed(seed, "choice")))
        choice = choose_policy([Subject(chain, images)], seed=derive_seed(seed, "choice"))
        chain.policy, chain.choice = choice.policy, choice
        say(f"{data.client_id}: {choice.describe()}")
        if choice.weakness():
            warnings.warn(f"{data.client_id}: {choice.weakness()}", WeakDefenceWarning, stacklevel=3)
    if data.check is not None:
        images = _some(data.check.one_per_group(derive_seed(seed, "own check")))
        chain.own_check = check_itself(chain, images, seed=derive_seed(seed, "own check"))
        say(f"{data.client_id}: {chain.own_check.describe()}")
        chain.own_check.warn(_REMEDY, chain.calibration.true_fpr_quantile(), f"the defence of {data.client_id}")
    return chain


def _some(data: ImageDataset) -> ImageDataset:
    """No more images than `defend` looks at, of all classes."""
    return data if len(data) <= MOST else data[torch.linspace(0, len(data) - 1, MOST).long()]


def _made_of(config: ComponentConfig, parts: Path, data: ClientImages, device: str) -> Mapping[str, Any]:
    assert config.defence is not None
    images = {name: getattr(data, name) for name in ("train", "calibrate", "choose", "check")}
    return {
        "parts": {kind: read_document_only(parts / kind)["digest"] for kind in config.kinds},
        "images": {name: part.fingerprint() for name, part in images.items() if part is not None},
        "defence": json.loads(config.defence.model_dump_json()),
        "seed": config.seed,
        "client": data.client_id,
        "device": device,
    }


def _read(note: Path) -> Any:
    """A note; None where it is damaged, so that the defence is made anew."""
    try:
        return read_json(note)
    except ArtifactError:
        return None
