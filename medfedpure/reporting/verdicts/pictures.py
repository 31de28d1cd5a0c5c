"""Of the most suspicious images what the defence saw, and what it made of them, read again from the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.data.readers.derived.kinds import look_at
from medfedpure.data.readers.nifti import Axis
from medfedpure.reporting.evaluation.gallery import Picture, png
from medfedpure.verdicts.decoding import FileDecoder
from medfedpure.verdicts.files import name_of
from medfedpure.verdicts.kept import FRAME, FRAMES, KEY
from medfedpure.verdicts.purified import purified_of

_SIDE = 224
"""Pixels that a thumbnail has at most."""


@dataclass(frozen=True)
class Suspect:
    """One image: its pictures, and what is said of it."""

    pictures: list[Picture]
    remarks: list[str]


def show(
    rows: Sequence[Mapping[str, Any]], decoder: FileDecoder, purified: Path | None = None, axis: Axis = "axial"
) -> list[Suspect]:
    """Pictures and words of a few rows; where a file is no longer what it was, words alone.

    Args:
        rows: of images.
        decoder: as the files were read.
        purified: the folder of what was purified, if it was saved.
        axis: that NIfTI volumes were cut across.
    """
    return [_shown(row, decoder, purified, axis) for row in rows]


def _shown(row: Mapping[str, Any], decoder: FileDecoder, purified: Path | None, axis: Axis) -> Suspect:
    path, place = Path(row[KEY]), row[FRAME] or 0
    pictures, remarks = [], _remarks(row)
    try:
        if name_of(path) != row[KEY]:
            raise DataError("its name cannot be written in a table")
        frames = decoder.read(path)
        if len(frames) != row[FRAMES]:
            raise DataError("it holds another number of images than it did")
        pictures.append(Picture("seen", png(_small(frames.image(place)))))
        if purified is not None and row.get("purified") and (saved := purified_of(purified, path, place)):
            pictures.append(Picture("purified", png(_small(look_at(saved, axis)))))
    except (DataError, MissingExtraError) as error:
        remarks.append(f"not shown in full: {error}")
    return Suspect(pictures, remarks)


def _remarks(row: Mapping[str, Any]) -> list[str]:
    frame = f", image {row[FRAME]} of {row[FRAMES]} (from 0)" if (row.get(FRAMES) or 1) > 1 else ""
    name = row["class"] if row.get("class") is not None else f"class {row['label']}"
    sure = row[f"probability_{row['label']}"]
    said = "no verdict" if row.get("abstained") else f"{name} ({sure:.0%})"
    told = [f"{row[KEY]}{frame}", said, f"score {row['score']:.4g}, p {row['p_value']:.3f}" if _has_p(row) else ""]
    if row.get("flagged"):
        told.append("flagged" + (f": {row['why']}" if row.get("why") else ""))
    if row.get("purified"):
        told.append(f"purified, strength {row['strength']:.2f}")
    return [text for text in told if text]


def _has_p(row: Mapping[str, Any]) -> bool:
    return row.get("score") is not None and row.get("p_value") is not None


def _small(image: Tensor) -> Tensor:
    """An image `(C, H, W)` of at most so many pixels."""
    side = max(image.shape[1:])
    if side <= _SIDE:
        return image
    shape = [max(round(one * _SIDE / side), 1) for one in image.shape[1:]]
    return torch.nn.functional.interpolate(image[None], shape, mode="area")[0]
