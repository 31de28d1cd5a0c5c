"""Do the classes of a data set and the logits of a classifier mean the same? Asked before anything is trained."""

from __future__ import annotations

import warnings

import torch

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ClassesWarning
from medfedpure.core.results import Prediction
from medfedpure.figures.balanced import balanced, balanced_interval, chance_level

ASKED = 256


def some_of_each_group(data: ImageDataset, seed: int) -> ImageDataset:
    """At most `ASKED` images, each of another near-duplicate group, in an order of no meaning."""
    single = data.one_per_group(seed)
    order = torch.randperm(len(single), generator=torch.Generator().manual_seed(seed))
    return single.select(order[:ASKED].sort().values)


def warn_of_classes(bare: Prediction, data: ImageDataset) -> None:
    """Warn where a classifier reads the labelled images that it is to be defended on worse than by guessing.

    Args:
        bare: what it says of them.
        data: these images, with the labels of whoever read them.

    Warns:
        ClassesWarning: fewer right than guessing gives, beyond its 95 % interval; or other classes than logits.
    """
    told, count = ", ".join(f"{place} = {name}" for place, name in enumerate(data.class_names)), bare.logits.shape[1]
    remedy = "read the images with the classes in the order of the logits (image_folder: classes=[...])"
    if data.num_classes > 1 and data.num_classes != count:
        warnings.warn(
            f"the classifier has {count} logits and {data.name} {data.num_classes} classes ({told}): which is which is "
            f"unknown, and the defence keeps no class names; {remedy}, or pass class_names=...",
            ClassesWarning,
            stacklevel=3,
        )
        return
    present = len(data.labels.unique())
    if data.num_classes != count or present < 2:
        return
    right = bare.labels.cpu() == data.labels
    value, interval = balanced(right, data.labels), balanced_interval(right, data.labels, data.groups)
    if interval is not None and chance_level(value, interval, 1 / present).startswith("below"):
        warnings.warn(
            f"the bare classifier reads {int(right.sum())} of {len(data)} labelled images of {data.name} correctly, "
            f"fewer than guessing would: are its logits in another order than {told}? If so, {remedy}",
            ClassesWarning,
            stacklevel=3,
        )
