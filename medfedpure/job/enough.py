"""Whether images are enough for a run: told in images and in options of the command, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medfedpure.core.errors import CalibrationError, DataError
from medfedpure.data.readers.folders import class_folders

if TYPE_CHECKING:
    from medfedpure.core.dataset import ImageDataset
    from medfedpure.job.config import RunConfig


def check_folder(root: Path) -> None:
    """Raise DataError where a folder is missing, or holds fewer than two class folders; no file is read."""
    root = root.expanduser()
    check_class_names(class_folders(root), root)


def check_class_names(names: Sequence[str], where: object) -> None:
    """Raise DataError where there is nothing to tell apart."""
    if len(names) < 2:
        raise DataError(
            f"{where} holds one class, {', '.join(names)}, and a classifier tells two or more apart: in a folder of "
            "images each class has a sub-folder of its own, such as tumour and normal"
        )


def check_sizes(parts: Mapping[str, Mapping[str, ImageDataset]], config: RunConfig) -> None:
    """Raise CalibrationError where groups are too few for the rate."""
    wanted, pooled = wanted_groups(config), config.defence.scope == "federation"
    sizes = {client: own["calibrate"].num_groups for client, own in parts.items()}
    if pooled:
        sizes = {f"all {len(parts)} clients together": sum(sizes.values())}
    if short := {client: size for client, size in sizes.items() if size < wanted}:
        every = [part for own in parts.values() for part in own.values()]
        images, groups = sum(map(len, every)), sum(part.num_groups for part in every)
        left = ", ".join(f"{size} at {client}" for client, size in short.items())
        raise CalibrationError(
            f"{left}: so few independent images are left for the threshold, and a false-positive rate of "
            f"{config.defence.target_fpr:g} wants at least {wanted}. {advice(images, groups, config)}"
        )


def wanted_groups(config: RunConfig) -> int:
    """Independent images from which a threshold at the rate can be set."""
    from medfedpure.defence.calibration import least_scores

    return least_scores(config.defence.target_fpr)


def wanted_in_all(config: RunConfig) -> int:
    """About how many independent images a run wants, in tens."""
    data, pooled = config.data, config.defence.scope == "federation"
    share = data.calibrate / sum(data.fractions().values())
    return (1 if pooled else data.clients) * 10 * math.ceil(round(wanted_groups(config) / share, 9) / 10)


def advice(images: int, groups: int, config: RunConfig) -> str:
    """How many there are, how many are wanted, and what else can be done."""
    merged = " (near-duplicates are merged, and count once)" if groups < images else ""
    more = max(wanted_in_all(config), 10 * (groups // 10 + 1))
    pool = "" if config.defence.scope == "federation" else ", or share the threshold: --set defence.scope=federation"
    return (
        f"The {images} images hold {groups} independent ones{merged}; about {more} are wanted for "
        f"{config.data.clients} clients, as many of each class: bring more{pool}, or allow more false alarms: --set "
        "defence.target_fpr=0.1 (docs/how-to/how-many-images.md)"
    )
