"""A data set as a folder of JSON and safetensors, for another process."""

from __future__ import annotations

from pathlib import Path

import torch

from medfedpure.core import storage
from medfedpure.core.dataset import Attribute, ImageDataset, bits_of

_ALWAYS = ("labels", "groups", "ids", "sites")


def write_images(folder: Path, data: ImageDataset) -> None:
    """Write a data set into an existing folder, whole: `read_images` gives an equal one."""
    tensors = {"pixels": bits_of(data.pixels), **{what: getattr(data, what) for what in _ALWAYS}}
    if data.masks is not None:
        tensors["masks"] = data.masks
    tensors |= {f"level {name}": level for name, level in data.levels.items()}
    tensors |= {f"attribute {name}": attribute.values for name, attribute in data.attributes.items()}
    document = {
        "kind": "images",
        "name": data.name,
        "class_names": list(data.class_names),
        "positive": list(data.positive),
        "bits": 16 if data.pixels.dtype == torch.uint16 else 8,
        "top": data.top,
        "levels": list(data.levels),
        "attributes": {name: list(attribute.names) for name, attribute in data.attributes.items()},
    }
    storage.write_document(folder, document, tensors)


def read_images(folder: Path) -> ImageDataset:
    """Read what `write_images` wrote.

    Raises:
        ArtifactError: missing, truncated, edited, or something else.
    """
    keys = ("name", "class_names", "positive", "bits", "top", "levels", "attributes")
    document, tensors = storage.read_document(folder, kind="images", keys=keys)
    return ImageDataset(
        pixels=tensors["pixels"].view(torch.uint16 if document["bits"] == 16 else torch.uint8),
        **{what: tensors[what] for what in _ALWAYS},
        class_names=tuple(document["class_names"]),
        positive=tuple(document["positive"]),
        top=document["top"],
        masks=tensors.get("masks"),
        levels={name: tensors[f"level {name}"] for name in document["levels"]},
        attributes={
            name: Attribute(tuple(names), tensors[f"attribute {name}"])
            for name, names in document["attributes"].items()
        },
        name=document["name"],
    )
