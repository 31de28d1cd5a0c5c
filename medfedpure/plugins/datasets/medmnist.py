"""MedMNIST files (Yang et al. 2023, "MedMNIST v2", arXiv 2110.14795): one `.npz` of 2-D images on disk.

Nothing is downloaded: bring the file. Its split is not kept by default, because copies of a picture
may lie on both sides; the parts are joined, and `ImageDataset.split` divides them by group again.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import Dataset, ImageDataset
from medfedpure.core.errors import DataError
from medfedpure.data.near_duplicates import near_duplicate_groups


class MedMNISTConfig(Config):
    """Which file, and what of it."""

    path: Path = Field(description="the .npz file, for example pneumoniamnist.npz or pneumoniamnist_64.npz")
    parts: tuple[Literal["train", "val", "test"], ...] = Field(
        ("train", "val", "test"), min_length=1, description="parts of the file that are joined, in this order"
    )
    class_names: tuple[str, ...] | None = Field(
        None, description="names of labels 0, 1, ..., the last the positive class of two; the file holds none"
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
            DataError: no such file, no MedMNIST file, several labels for each image, volumes, or class
                names that do not fit the labels.
        """
        config: MedMNISTConfig = self.config
        images, labels = zip(*(self._part(part) for part in config.parts), strict=True)
        pixels, targets = torch.cat(images), torch.cat(labels)
        found = int(targets.max()) + 1
        names = config.class_names or tuple(f"class {label}" for label in range(max(found, 2)))
        if found > len(names):
            raise DataError(f"{config.path} holds labels up to {found - 1}; got {len(names)} class_names {names}")
        groups = near_duplicate_groups(pixels) if config.groups == "hash" else torch.arange(len(pixels))
        return ImageDataset(
            pixels=pixels,
            labels=targets,
            groups=groups,
            class_names=names,
            ids=torch.arange(len(pixels)),
            name=config.path.stem,
        )

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        path = self.config.path.expanduser()
        keys = (f"{part}_images", f"{part}_labels")
        try:
            with numpy.load(path, allow_pickle=False) as archive:
                images, labels = (archive[key] for key in keys)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read as a MedMNIST file with {' and '.join(keys)}: {error}") from error
        return _pixels(images, path), _labels(labels, len(images), path)


def _pixels(images: Any, path: Path) -> Tensor:
    """`(N, C, S, S)` uint8 from `(N, S, S)` or `(N, S, S, 3)`."""
    shape = images.shape
    flat = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not flat or images.dtype != numpy.uint8 or not len(images) or shape[1] != shape[2]:
        raise DataError(
            f"{path} holds images of shape {shape}, {images.dtype}; wanted uint8 of (N, S, S) or (N, S, S, 3): "
            "read a volume slice by slice"
        )
    pixels = torch.from_numpy(images)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _labels(labels: Any, count: int, path: Path) -> Tensor:
    """`(N,)` int64 from `(N, 1)` or `(N,)`."""
    whole = numpy.issubdtype(labels.dtype, numpy.integer)
    if labels.size != count or not whole or (count and labels.min() < 0):
        raise DataError(
            f"{path} holds labels of shape {labels.shape}, {labels.dtype}, for {count} images; wanted one whole "
            "number >= 0 for each: several labels at once are not supported"
        )
    return torch.from_numpy(labels.astype(numpy.int64)).reshape(count)
