"""A defence for a model one already has, in three lines and without a federation."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_images
from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, FitContext
from medfedpure.core.errors import CalibrationError, ConfigError, DataError, InputError, WeakDefenceWarning
from medfedpure.core.progress import Lines, listening, track
from medfedpure.core.purifier import Purifier
from medfedpure.core.registry import create
from medfedpure.core.results import device_of
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import derive_seed
from medfedpure.data.synthetic import check_recorded
from medfedpure.defence.arms import EPS, Subject, check_attackable, choose_policy
from medfedpure.defence.budget import Budget, with_budget
from medfedpure.defence.calibration import least_scores
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.class_order import some_of_each_group, warn_of_classes
from medfedpure.defence.images import ImageFacts
from medfedpure.defence.own_attack import check_itself
from medfedpure.defence.policy import PURIFYING, Policy
from medfedpure.defence.recipe import ARMS, Recipe, plan_of
from medfedpure.defence.voting import Vote

Say = Callable[[str], object]

LEAST, MOST = 10, 64
"""Images of the own check, and of the choice of a policy."""

CHOICE = 0.1
"""Share of the images that the recipe "robust" holds out to choose the policy on."""

_LONGER: Mapping[Budget, str] = {"quick": '"standard" or "thorough"', "standard": '"thorough"'}
_logger = logging.getLogger(__name__)


def defend(
    model: nn.Module,
    benign: ImageDataset | Tensor,
    *,
    recipe: Recipe = "paper",
    target_fpr: float = 0.05,
    detector: str | None = None,
    purifier: str | None = None,
    detector_config: Mapping[str, Any] | None = None,
    purifier_config: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    votes: int = 1,
    eps: float | str = EPS,
    calibrate_share: float = 0.3,
    check_share: float = 0.1,
    budget: Budget = "standard",
    class_names: Sequence[str] = (),
    say: Callable[[str], object] | None = None,
    seed: int = 0,
) -> DefendedClassifier:
    """Fit a detector and a purifier on benign images, calibrate on others of them, and try the defence on yet others.

    Whoever listens (`medfedpure.core.progress`) is told of every step.

    Args:
        model: any module from images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; it is put in eval
            mode and otherwise left as it is.
        benign: an ImageDataset, whose groups are never separated, or `(n, C, H, W)` in [0, 1], each
            image a group of its own; kept as `from_tensor` says.
        recipe: "paper" purifies what the detector flags; "robust" attacks three policies on images that it holds out
            for it, and takes the one of the best worst case; "fast" fits no purifier, and refuses what a cheap
            detector flags. What else is said wins over a recipe where both can be.
        target_fpr: the share of benign images that may be flagged.
        detector: plugin name; by default "compose", of the recipe "fast" "feature_squeezing".
        purifier: plugin name; by default "ddpm", of the recipe "fast" none.
        detector_config: the detector's configuration.
        purifier_config: the purifier's configuration.
        policy: what happens to images; by default the recipe says.
        votes: purifications of each image that is purified, whose probabilities are averaged; each costs as much again.
        eps: how far the recipe "robust" attacks, in linf, above 0, in [0, 1] units of a pixel; "8/255" is accepted.
            Another than the usual one is refused by other recipes, for it would do nothing.
        calibrate_share: share of the images that is held out for the threshold.
        check_share: share of the images that is held out for the own check, of 10 to 64 images; 0 = no check.
        budget: "quick" trains a part for about a minute at 64 px, "standard" as the part says, "thorough" four times as
            long; a configuration wins over it, key by key.
        class_names: K names in the order of the logits; by default those of a data set of K classes. Saved with the
            defence.
        say: takes a line on what begins, on how long it will take, and on what came out; by default the logger's info.
        seed: of the split, the training and the calibration.

    Returns:
        The defence, with `own_check`: what static PGD did to the bare classifier at images of no fit and no
        calibration, and what the defence made of it; and with `choice`, where the recipe chose the policy. No
        evaluation: see `medfedpure.evaluate`.

    Raises:
        CalibrationError: too few images to calibrate at this rate, and to hold out.
        ConfigError: no such budget or recipe, a recipe that contradicts what else was said, shares that leave nothing.
        InputError: class names that are not K, or not the data set's.
        UnknownPluginError, MissingExtraError, MissingRequirementError: parts that do not fit.

    Warns:
        ClassesWarning: the classifier reads labelled images worse than by guessing, or has other classes.
        WeakDefenceWarning: many more unattacked images flagged than promised, or fewer than half of the attacked ones
            that fool the classifier flagged, or restored; or the recipe "robust" found no policy better than guessing.

    Example:
        ``defended = medfedpure.defend(model, benign)``, then ``defended.predict(images).labels``.
    """
    say = say or _logger.info
    plan = plan_of(recipe, detector=detector, purifier=purifier, policy=policy)
    if plan.purifier is None and purifier_config is not None:
        raise ConfigError(f"the recipe {recipe!r} fits no purifier, and purifier_config was given: leave it out")
    if recipe != "robust" and eps != EPS:
        raise ConfigError(
            f"eps is how far the recipe 'robust' attacks, and the recipe is {recipe!r}: leave it out; who attacks this "
            "defence later, as medfedpure.evaluate, has an eps of his own"
        )
    data = benign if isinstance(benign, ImageDataset) else from_tensor(benign)
    check_recorded(data, "calibration")
    bare = DefendedClassifier(model, policy="none")
    device = device_of(model)
    cleaner: Purifier | None = None
    if plan.purifier is not None:
        own = with_budget("purifier", plan.purifier, purifier_config, budget)
        cleaner = create("purifier", plan.purifier, own).to(device)
    if plan.detector_config and not isinstance(detector_config, Config):
        detector_config = {**plan.detector_config, **(detector_config or {})}
    watcher: Detector = create(
        "detector", plan.detector, with_budget("detector", plan.detector, detector_config, budget)
    )
    chosen: Policy = plan.policy or "purify_flagged"
    DefendedClassifier(model, detector=watcher.to(device), purifier=cleaner, policy=chosen, vote=Vote(votes))
    logits = bare.predict(data.select(torch.arange(min(2, len(data))))).logits
    if plan.policy is None:
        check_attackable(model, data, eps=eps)
    facts = _facts(data, benign, class_names, logits.shape[1])
    parts = _divided(data, calibrate_share, check_share, target_fpr, seed, choosing=plan.policy is None)
    if isinstance(benign, ImageDataset) and not class_names:
        asked = some_of_each_group(data, derive_seed(seed, "class order"))
        warn_of_classes(bare.predict(asked), asked)
    dealt = ", ".join(f"{part.num_groups} to {what}" for what, part in parts.items())
    groups = "independent benign images" if isinstance(benign, ImageDataset) else "benign images, each taken for itself"
    say(f"{data.num_groups} {groups}: {dealt}")
    context = DefendedClassifier(model, purifier=cleaner, policy="none").context()
    with listening(Lines(say)):
        fitted = [part for part in (cleaner, watcher) if part is not None]
        for part in fitted:
            _fit(part, parts["fit"], context, derive_seed(seed, part.kind), say)
            part.to(device)
        chain = DefendedClassifier(
            model, detector=watcher, purifier=cleaner, policy=chosen, vote=Vote(votes), image_facts=facts
        )
        say(f"the threshold is set on one image of each of {parts['calibrate'].num_groups} groups")
        calibration = chain.calibrate(parts["calibrate"], target_fpr, seed=seed).calibration
        assert calibration is not None
        say(calibration.describe())
        if "choose" in parts:
            say(f"choice of the policy: {', '.join(ARMS)} are attacked at {len(parts['choose'])} images each")
            choice = choose_policy([Subject(chain, parts["choose"])], eps=eps, seed=derive_seed(seed, "choice"))
            chain.policy, chain.choice = choice.policy, choice
            if chain.policy not in PURIFYING:
                chain.vote = Vote()
            say(choice.describe())
        if "check" in parts:
            say(f"own check: {len(parts['check'])} images are read, attacked and read again")
            chain.own_check = check_itself(chain, parts["check"], seed=derive_seed(seed, "own check"))
            say(chain.own_check.describe())
    if chain.choice is not None and chain.choice.weakness():
        warnings.warn(chain.choice.weakness(), WeakDefenceWarning, stacklevel=2)
    if chain.own_check is not None:
        chain.own_check.warn(_remedy(budget, fitted), calibration.true_fpr_quantile())
    return chain


def _facts(data: ImageDataset, given: ImageDataset | Tensor, names: Sequence[str], classes: int) -> ImageFacts:
    """What images the defence is for; a tensor tells no more of their depth than that 8 bits were enough."""
    facts = ImageFacts.of(data, classes)
    if not isinstance(given, ImageDataset) and facts.top != 255:
        facts = replace(facts, top=0)
    if isinstance(names, str):
        raise InputError(f"class_names are several texts, such as ('healthy', 'lesion'); got the one text {names!r}")
    names = tuple(names)
    told = ", ".join(map(str, names))
    if not names:
        return facts
    if len(names) != classes:
        raise InputError(f"class_names are {len(names)} ({told}), and the classifier has {classes} logits")
    if facts.class_names and facts.class_names != names:
        raise InputError(
            f"class_names are {told}, and the classes of {data.name} are {', '.join(facts.class_names)}: "
            "leave class_names out, or read the images in that order"
        )
    return replace(facts, class_names=names)


def _fit(part: Detector | Purifier, data: ImageDataset, context: FitContext, seed: int, say: Say) -> None:
    """Fit a part that needs it."""
    if part.fitted:
        say(f"the {part.kind} {part.name!r} needs no fit")
        return
    training = getattr(part.config, "training", None)
    effort = ""
    if isinstance(training, TrainingConfig):
        effort = f", {training.steps:,} steps of {training.batch_size}"
    say(f"the {part.kind} {part.name!r} is fitted on {_counted(data)}{effort}")
    for _ in track((part,), f"fit the {part.kind} {part.name!r}", 1):
        part.fit(data, context=context, seed=seed)


def _counted(data: ImageDataset) -> str:
    twins = len(data) > data.num_groups
    return f"{len(data)} images" + (f" of {data.num_groups} near-duplicate groups" if twins else "")


def _remedy(budget: Budget, parts: Sequence[Detector | Purifier]) -> str:
    """What to do about a defence that is worth little."""
    if not any(isinstance(part, Purifier) for part in parts):
        return (
            "This recipe restores nothing: take the recipe 'paper' or 'robust', or another detector: `medfedpure "
            "plugins detector` lists them"
        )
    if not any(part.needs_fit for part in parts):
        return "Choose another detector or purifier, for these learn nothing: `medfedpure plugins` lists them"
    trained = any(isinstance(getattr(part.config, "training", None), TrainingConfig) for part in parts)
    longer = f"Train longer, budget={_LONGER[budget]}, or bring" if trained and budget in _LONGER else "Bring"
    return f"{longer} more benign images, or choose another detector or purifier: `medfedpure plugins` lists them"


def _divided(
    data: ImageDataset, share: float, checked: float, target_fpr: float, seed: int, *, choosing: bool = False
) -> dict[str, ImageDataset]:
    """Images to fit on, for the threshold, for the own check and to choose a policy on; refused where they are too few.

    The images for the threshold do not depend on what else is held out.
    """
    if not 0 < share < 1:
        raise ConfigError(f"calibrate_share must lie in (0, 1); got {share}")
    if not 0 <= checked < 1 - share:
        raise ConfigError(f"check_share must lie in [0, 1 - calibrate_share), here below {1 - share:g}; got {checked}")
    if not 0 < target_fpr < 1:
        raise CalibrationError(f"target_fpr must lie in (0, 1); got {target_fpr}")
    wanted = least_scores(target_fpr)
    odd = max(len(data.labels.unique()) - 1, 0)  # what dealing each class by itself may round away
    held = [
        text
        for text, asked in (
            (f"{LEAST} for the own check (check_share=0 leaves it out)", checked > 0),
            (f"{LEAST} to choose the policy on", choosing),
        )
        if asked
    ]
    kept = (len(held) + 1) * LEAST if held else 0
    least = max((wanted + odd) / share, (kept + odd) / (1 - share) if held else 2)
    needed = math.ceil(round(least, 9))
    for_check = f", {', '.join(held)} and as many to fit on" if held else ""
    few = CalibrationError(
        f"{data.num_groups} independent benign images came, and they are too few: bring about {needed} in all, so that "
        f"{wanted} are kept for the threshold at a false-positive rate of {float(target_fpr):g}{for_check}; or raise "
        "target_fpr, or change calibrate_share"
    )
    try:
        parts = data.split({"fit": 1 - share, "calibrate": share}, seed=derive_seed(seed, "defend"))
    except DataError as error:
        raise few from error
    if parts["calibrate"].num_groups < wanted or parts["fit"].num_groups < kept:
        raise few
    if checked:
        spare = 2 * LEAST if choosing else 1
        count = min(MOST, max(LEAST, round(checked * data.num_groups)), parts["fit"].num_groups - spare)
        parts["fit"], parts["check"] = _held_out(parts["fit"], count, derive_seed(seed, "own check"))
    if choosing:
        count = min(MOST, max(LEAST, round(CHOICE * data.num_groups)), parts["fit"].num_groups - LEAST)
        parts["fit"], parts["choose"] = _held_out(parts["fit"], count, derive_seed(seed, "choice"))
    return parts


def _held_out(data: ImageDataset, count: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """The data without `count` groups, and one image of each of these."""
    groups = data.groups.unique()
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    chosen = torch.isin(data.groups, groups[order[:count]])
    return data.select(~chosen), data.select(chosen).one_per_group(seed)


def from_tensor(images: Tensor) -> ImageDataset:
    """Unlabelled images `(n, C, H, W)` in [0, 1] as a data set of single-image groups.

    Kept with 8 bits a value where all are n / 255, as scans are stored, else rounded to 16 bits.

    Raises:
        InputError: wrong rank, dtype or range.
    """
    check_images(images)
    values = (images.detach().cpu().float() * 65535).round().clamp_(0, 65535).to(torch.int32)
    eight = bool((values % 257 == 0).all())
    pixels = (values // 257).to(torch.uint8) if eight else values.to(torch.uint16)
    count = len(images)
    return ImageDataset(
        pixels=pixels,
        labels=torch.zeros(count, dtype=torch.int64),
        groups=torch.arange(count),
        class_names=("benign",),
        name="benign images",
    )
