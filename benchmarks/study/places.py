"""Where the study measures: a data set and how it is divided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.study.how import How
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.streams import derive_seed

Parts = dict[str, ImageDataset]
SHARES: Mapping[str, float] = {"train": 0.75, "validation": 0.08, "calibrate": 0.17}
"""Of the images outside the test part."""
PHANTOMS: Mapping[str, Any] = {"images": 480, "image_size": 32, "lesion_contrast": 2.0}


@dataclass(frozen=True)
class Place:
    """A data set and its division.

    Attributes:
        title: for people.
        source: below the folder of data sets.
        divide: the whole data set and a seed, into train, validation, calibrate and test.
        turns: whether the images have no upright.
    """

    title: str
    source: str
    divide: Callable[[ImageDataset, int], Parts]
    turns: bool = False

    def parts(self, folder: Path, how: How, seed: int) -> Parts:
        """Read and divide; of phantoms there is no folder."""
        if how.phantoms:
            return self.divide(medfedpure.create("dataset", "phantom", **PHANTOMS).read(), seed)
        path = folder / self.source
        return official(path, seed) if path.suffix == ".npz" else self.divide(opened(path, how.size), seed)


def opened(folder: Path, size: int) -> ImageDataset:
    """The images of a folder."""
    data: ImageDataset = medfedpure.create("dataset", "image_folder", root=folder, image_size=size, channels=1).read()
    return data


def fold(number: int) -> Callable[[ImageDataset, int], Parts]:
    """One fold of five by near-duplicate group as the test part, and the parts of the rest."""

    def divide(data: ImageDataset, seed: int) -> Parts:
        folds = data.split({f"fold{place}": 0.2 for place in range(5)}, seed=seed)
        test = folds.pop(f"fold{number}")
        rest = ImageDataset.concatenate(list(folds.values()))
        return {**rest.split(SHARES, seed=derive_seed(seed, "parts", number)), "test": test}

    return divide


def leaking(data: ImageDataset, seed: int) -> Parts:
    """The paper's random split: test images have near-duplicates in the training part."""
    alone = replace(data, groups=torch.arange(len(data)))
    return alone.split({"train": 0.72, "validation": 0.03, "calibrate": 0.05, "test": 0.2}, seed=seed)


def official(path: Path, seed: int) -> Parts:
    """The split of a MedMNIST file; class 1 is the finding in the one that is measured. Nothing is calibrated."""
    del seed
    names = {"train": "train", "validation": "val", "test": "test"}

    def read(part: str) -> ImageDataset:
        data: ImageDataset = medfedpure.create(
            "dataset", "medmnist", path=path, parts=(part,), positive="class 1"
        ).read()
        return data

    return {name: read(part) for name, part in names.items()}


PLACES: Mapping[str, Place] = {
    **{
        f"br35h_fold_{number}": Place(f"Br35H, fold {number} of 0 to 4 by group", "br35h", fold(number), turns=True)
        for number in range(5)
    },
    "br35h_leaking": Place("Br35H, random split (leaks)", "br35h", leaking, turns=True),
    "brain4_fold_0": Place("brain4, four classes, fold 0 of 0 to 4 by group", "brain4", fold(0)),
    "pneumoniamnist": Place("PneumoniaMNIST, official split", "pneumoniamnist/pneumoniamnist.npz", fold(0)),
}
