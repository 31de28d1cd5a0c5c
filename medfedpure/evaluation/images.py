"""Images that a user names in one word: a folder with sub-folders, a MedMNIST file, or a data set plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError
from medfedpure.core.registry import create, registry

HINT = "pass --data with a folder of one sub-folder per class, a MedMNIST .npz, or the name of a data set plugin"


def reader_of(data: str) -> tuple[str, dict[str, Any]]:
    """The data set plugin that reads what a user named, and the options that say where it is.

    Raises:
        DataError: it is none of the three.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return "image_folder", {"root": data}
    if path.suffix == ".npz":
        return "medmnist", {"path": data}
    if data not in [record.name for record in registry().plugins("dataset")]:
        raise DataError(f"{data!r} is no folder, no .npz file and no data set plugin: {HINT}")
    return data, {}


def read_images(data: str, options: Mapping[str, Any], asked: Mapping[str, Any]) -> ImageDataset:
    """The images that a user named.

    Args:
        data: folder of images, .npz file, or data set plugin.
        options: configuration of the data set plugin.
        asked: the same of whoever needs the images: what `options` leaves open, where the plugin has such a field.

    Raises:
        DataError: it is none of the three, or cannot be read.
        ConfigError: options that the plugin does not have.
    """
    plugin, place = reader_of(data)
    fields = registry().load("dataset", plugin).Config.model_fields
    known = {name: value for name, value in asked.items() if name in fields}
    found: ImageDataset = create("dataset", plugin, {**known, **place, **options}).read()
    return found
