"""A defence for a model one already has, in three lines and without a federation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_images
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector
from medfedpure.core.errors import CalibrationError, ConfigError
from medfedpure.core.purifier import Purifier
from medfedpure.core.registry import create
from medfedpure.core.results import device_of
from medfedpure.core.streams import derive_seed
from medfedpure.defence.chain import DefendedClassifier, Policy


def defend(
    model: nn.Module,
    benign: ImageDataset | Tensor,
    *,
    target_fpr: float = 0.05,
    detector: str = "compose",
    purifier: str = "ddpm",
    detector_config: Mapping[str, Any] | None = None,
    purifier_config: Mapping[str, Any] | None = None,
    policy: Policy = "purify_flagged",
    calibrate_share: float = 0.3,
    seed: int = 0,
) -> DefendedClassifier:
    """Fit a detector and a purifier on benign images, and calibrate on others of them.

    Args:
        model: any module from images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; it is put in eval
            mode and otherwise left as it is.
        benign: an ImageDataset, whose groups are never separated, or `(n, C, H, W)` in [0, 1], each
            image a group of its own; kept as `from_tensor` says.
        target_fpr: the share of benign images that may be flagged.
        detector: plugin name.
        purifier: plugin name.
        detector_config: the detector's configuration.
        purifier_config: the purifier's configuration.
        policy: what happens to flagged images.
        calibrate_share: share of the images that is held out for the threshold.
        seed: of the split, the training and the calibration.

    Raises:
        CalibrationError: too few images to calibrate at this rate.
        UnknownPluginError, MissingExtraError, MissingRequirementError: parts that do not fit.

    Example:
        ``defended = medfedpure.defend(model, benign)``, then ``defended.predict(images).labels``.
    """
    data = benign if isinstance(benign, ImageDataset) else from_tensor(benign)
    bare = DefendedClassifier(model, policy="none")
    device = device_of(model)
    cleaner: Purifier = create("purifier", purifier, purifier_config).to(device)
    watcher: Detector = create("detector", detector, detector_config).to(device)
    DefendedClassifier(model, detector=watcher, purifier=cleaner, policy=policy)
    bare.predict(data.select(torch.arange(min(2, len(data)))))
    parts = _divided(data, calibrate_share, target_fpr, seed)
    context = DefendedClassifier(model, purifier=cleaner, policy="none").context()
    if not cleaner.fitted:
        cleaner.fit(parts["fit"], context=context, seed=derive_seed(seed, "purifier"))
    if not watcher.fitted:
        watcher.fit(parts["fit"], context=context, seed=derive_seed(seed, "detector"))
    chain = DefendedClassifier(model, detector=watcher.to(device), purifier=cleaner.to(device), policy=policy)
    return chain.calibrate(parts["calibrate"], target_fpr, seed=seed)


def _divided(data: ImageDataset, share: float, target_fpr: float, seed: int) -> dict[str, ImageDataset]:
    """Images to fit on and images for the threshold; refused before any training where the latter are too few."""
    if not 0 < share < 1:
        raise ConfigError(f"calibrate_share must lie in (0, 1); got {share}")
    if not 0 < target_fpr < 1:
        raise CalibrationError(f"target_fpr must lie in (0, 1); got {target_fpr}")
    wanted = math.ceil(1 / Fraction(repr(float(target_fpr))) - 1)
    if data.num_groups < 2 or round(data.num_groups * share) < 1:
        raise CalibrationError(
            f"{data.num_groups} independent benign images came; at least {math.ceil(wanted / share)} are wanted for a "
            f"false-positive rate of {float(target_fpr):g}, {wanted} of them for the threshold"
        )
    parts = data.split({"fit": 1 - share, "calibrate": share}, seed=derive_seed(seed, "defend"))
    if parts["calibrate"].num_groups < wanted:
        raise CalibrationError(
            f"of {data.num_groups} independent benign images {parts['calibrate'].num_groups} are kept for the "
            f"threshold, and {wanted} are wanted at a false-positive rate of {float(target_fpr):g}: bring about "
            f"{math.ceil(wanted / share)} in all, raise target_fpr, or raise calibrate_share"
        )
    return parts


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
