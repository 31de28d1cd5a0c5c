"""MedMNIST files (Yang et al. 2023, "MedMNIST v2", arXiv 2110.14795): one `.npz` of 2-D images on disk.

Nothing is downloaded: bring the file. Its split is not kept by default, because copies of a picture
may lie on both sides; the parts are joined, and `ImageDataset.split` divides them by group again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import Dataset, ImageDataset
from medfedpure.core.errors import DataError
from medfedpure.data.class_names import findings_among
from medfedpure.data.near_duplicates import near_duplicate_groups
from medfedpure.data.readers.arrays import Member, open_npz

_MOST_CLASSES = 1000


class MedMNISTConfig(Config):
    """Which file, and what of it."""

    path: Path = Field(description="the .npz file, for example pneumoniamnist.npz or pneumoniamnist_64.npz")
    parts: tuple[Literal["train", "val", "test"], ...] = Field(
        ("train", "val", "test"), min_length=1, description="parts of the file that are joined, in this order"
    )
    class_names: tuple[str, ...] | None = Field(
        None, description="names of labels 0, 1, ..., as the collection's page gives them; the file holds none"
    )
    positive: str | tuple[str, ...] | None = Field(
        None,
        description='the class that is a finding, or several, by a name of class_names, without those "class 0", '
        '"class 1", ...: sensitivity is theirs. Default: all but the one whose name says nothing was found (no, '
        "normal, benign, ...); of two named ones that do not tell the last",
    )
    groups: Literal["hash", "none"] = Field(
        "hash", description="images that a split must not separate: near-duplicates, or each image alone"
    )


class MedMNIST(Dataset):
    """Grey or RGB images with one label each; multi-label and 3-D files are refused."""

    Config = MedMNISTConfig
    deterministic = True

    def read(self) -> ImageDataset:
        """All images of the chosen parts.

        Returns:
            pixels `(N, C, S, S)` uint8 in the order of the file, labels, groups, class names, ids 0 ... N - 1.

        Raises:
            DataError: no such file, no MedMNIST file, parts or sizes that do not fit, several labels for each image,
                volumes, class names that do not fit the labels, or two classes without a name and nothing said of
                which is positive.
        """
        config: MedMNISTConfig = self.config
        path = config.path.expanduser()
        keys = [(f"{part}_images", f"{part}_labels") for part in config.parts]
        with open_npz(path, [key for pair in keys for key in pair]) as members:
            pairs = [(members[images], members[labels]) for images, labels in keys]
            _check(pairs, path)
            pixels = torch.cat([_channels_first(images.read()) for images, _ in pairs])
            targets = torch.cat([_whole(labels.read(), path) for _, labels in pairs])
        found = int(targets.max()) + 1
        if config.class_names is None and found > _MOST_CLASSES:
            raise DataError(
                f"{path} holds the label {found - 1}; without class_names up to {_MOST_CLASSES - 1} are read"
            )
        names = config.class_names or tuple(f"class {label}" for label in range(max(found, 2)))
        if found > len(names):
            raise DataError(f"{path} holds labels up to {found - 1}; got {len(names)} class_names {names}")
        positive = findings_among(names, config.positive, path)
        if positive is None and config.class_names is None and len(names) == 2:
            raise DataError(
                f"{path} does not say which of its two classes is the finding, and not every collection numbers it 1: "
                'pass class_names, as the collection\'s page gives them, or positive="class 1"'
            )
        groups = near_duplicate_groups(pixels) if config.groups == "hash" else torch.arange(len(pixels))
        return ImageDataset(
            pixels=pixels,
            labels=targets,
            groups=groups,
            class_names=names,
            ids=torch.arange(len(pixels)),
            name=path.stem,
            positive=positive or (),
        )


def _check(pairs: list[tuple[Member, Member]], path: Path) -> None:
    """Refuse what does not fit, from what the file declares, before any of it is read."""
    first = pairs[0][0].shape
    for images, labels in pairs:
        shape, count = images.shape, images.shape[0] if images.shape else 0
        flat = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
        if not flat or images.dtype != "uint8" or 0 in shape or shape[1] != shape[2]:
            raise DataError(
                f"{path} holds {images.name} of shape {shape}, {images.dtype}; wanted uint8 of (N, S, S) or "
                "(N, S, S, 3): read a volume slice by slice"
            )
        if shape[1:] != first[1:]:
            raise DataError(f"{path} holds images of shape {first[1:]} and {images.name} of {shape[1:]}: choose parts")
        if labels.shape not in ((count,), (count, 1)) or not labels.is_whole:
            raise DataError(
                f"{path} holds {labels.name} of shape {labels.shape}, {labels.dtype}, for {count} images; wanted one "
                "whole number >= 0 for each: several labels at once are not supported"
            )


def _channels_first(pixels: Tensor) -> Tensor:
    """`(N, C, S, S)` from `(N, S, S)` or `(N, S, S, 3)`."""
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _whole(labels: Tensor, path: Path) -> Tensor:
    """`(N,)` int64 from `(N, 1)` or `(N,)`."""
    if int(labels.min()) < 0:
        raise DataError(f"{path} holds the label {int(labels.min())}; wanted one whole number >= 0 for each image")
    return labels.reshape(-1).long()
