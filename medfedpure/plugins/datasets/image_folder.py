"""Image folder: one sub-folder per class, with whatever image files people have in it.

The layout of ImageNet's training part (Russakovsky et al. 2015, arXiv 1409.0575), which most medical sets follow.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.dataset import ImageDataset, bits_of
from medfedpure.core.errors import DataError
from medfedpure.data.image_cache import cache_folder, cache_key, cache_path, through_cache
from medfedpure.data.near_duplicates import near_duplicate_groups
from medfedpure.data.readers.folders import entries_of, some, what_else
from medfedpure.data.readers.images import Decoder, is_image
from medfedpure.plugins.datasets.class_folders import (
    FolderConfig,
    FolderDataset,
    Listing,
    assembled,
    read_each,
    say_skipped,
)

_logger = logging.getLogger(__name__)
_GROUPS_FILE = "groups.csv"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


class ImageFolderConfig(FolderConfig):
    """Where the images are and how they are read."""

    bit_depth: int | None = Field(
        None,
        ge=8,
        le=16,
        description="bits that files of 16 bits really use, e.g. 12; default: what each file declares",
    )
    groups: Literal["auto", "csv", "folder", "hash", "none"] = Field(
        "auto",
        description="images that a split must not separate: csv = groups.csv (path,label,group) beside the class "
        "folders, folder = a sub-folder of a class is a patient, and among images beside it near-duplicates are "
        "searched, hash = they are searched among all, none = each image alone, auto = csv if it is there, else folder "
        "if there are any, else hash",
    )
    cache: bool | Path = Field(
        False,
        description="keep the decoded images for the next time: a folder, or true for the user's cache folder "
        "(XDG_CACHE_HOME, else ~/.cache). Off by default: it leaves a copy of the images there",
    )


class ImageFolder(FolderDataset):
    """JPEG, PNG, TIFF, BMP, GIF and WebP files, known by their content, one sub-folder per class.

    Read: grey, RGB, RGBA (over black), palette, CMYK, 1-bit and 16-bit files of any size and
    aspect, upright by their EXIF orientation; see `data.readers.images.Decoder`. Passed over: what systems leave
    behind (dotfiles, __MACOSX, Thumbs.db, desktop.ini, @eaDir, lost+found), and files that are images neither
    by their ending nor by their first bytes. Refused: files with several pictures, 32-bit values, and pipes and
    devices with the ending of an image. A sub-folder inside a class folder is a patient, and a patient is a group.

    Attributes:
        paths: after `read`, the file of each image, in the order of the data.
        skipped: after `read`, the files that could not be read (`on_error="skip"`).
    """

    Config = ImageFolderConfig

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """A run of format 1 read 8 bits of every file."""
        return {"pixel_bits": 8, **config} if format == 1 else config

    def read(self) -> ImageDataset:
        """Read every image.

        Returns:
            pixels `(N, C, S, S)` uint8 or uint16 (`pixel_bits`) in the sorted order of the paths, labels, groups,
            class names, and ids 0 ... N - 1 before `max_per_group` is applied.

        Raises:
            DataError: a folder that is missing, empty or nested, two classes of which none can be told to be the
                positive one, files that cannot be read, or a groups.csv that does not fit; the text names them.
        """
        config: ImageFolderConfig = self.config
        listing = Listing.read(config, is_image, "image")
        patients = listing.patients()
        table = _groups_file(listing.root) if config.groups in ("auto", "csv") else None
        usual = "csv" if table is not None else "folder" if any(patients) else "hash"
        source = usual if config.groups == "auto" else config.groups
        known = _read_groups(listing, table) if source == "csv" else None
        tensors = _tensors(config, listing, source)
        kept = tensors["kept"]
        chosen = kept.tolist()
        taken = set(chosen)
        self.skipped = tuple(path for place, path in enumerate(listing.paths) if place not in taken)
        say_skipped(listing, self.skipped)
        if known is not None:
            groups = torch.tensor(known)[kept]
        elif source == "folder":
            groups = _by_patient([patients[place] for place in chosen], tensors["pixels"])
        else:
            groups = tensors.get("groups", torch.arange(len(chosen)))
        labels = torch.tensor(listing.labels)[kept]
        dataset = assembled(config, listing, pixels=tensors["pixels"], labels=labels, groups=groups)
        self.paths = tuple(listing.paths[chosen[place]] for place in dataset.ids.tolist())
        return dataset


def _by_patient(patients: list[str | None], pixels: Tensor) -> Tensor:
    """A group for each patient's folder; images beside those are grouped by near-duplicates among themselves."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(filter(None, patients)))}
    groups = torch.tensor([numbers[name] if name is not None else -1 for name in patients])
    beside = groups < 0
    if bool(beside.any()):
        groups[beside] = len(numbers) + near_duplicate_groups(bits_of(pixels)[beside].view(pixels.dtype))
    return groups


def _tensors(config: ImageFolderConfig, listing: Listing, source: str) -> dict[str, Tensor]:
    """What `_decode` returns, through the cache if there is one."""
    if config.cache is False:
        return _decode(config, listing, source)
    how = config.model_dump(mode="json", include={"image_size", "channels", "bit_depth", "pixel_bits", "on_error"})
    key = cache_key(listing.paths, {**how, "hash": source == "hash"})
    names = {"pixels", "kept", "groups"} if source == "hash" else {"pixels", "kept"}
    path = cache_path(cache_folder(config.cache), key)
    return through_cache(path, names, lambda: _decode(config, listing, source))


def _decode(config: ImageFolderConfig, listing: Listing, source: str) -> dict[str, Tensor]:
    """Decode all files: pixels of those that could be read, their places, and groups if they are searched."""
    decoder = Decoder(config.image_size, config.channels, config.bit_depth, _pixel_bits(config, listing))
    size = (config.channels, config.image_size, config.image_size)
    pixels = torch.empty(len(listing.paths), *size, dtype=torch.uint8 if decoder.pixel_bits == 8 else torch.uint16)

    def read(place: int) -> bool:
        pixels[place] = decoder.read(listing.paths[place])
        return True

    found = read_each(listing, read, config.on_error)
    if decoder.dim:
        _logger.warning(
            "%d 16-bit files use less than a sixteenth of their range and come out almost black (%s): "
            "if they hold 12-bit values, pass bit_depth=12",
            len(decoder.dim),
            some((listing.relative(path) for path in sorted(decoder.dim)), 3),
        )
    kept = torch.tensor([place for place, done in enumerate(found) if done], dtype=torch.int64)
    whole = len(kept) == len(found)
    tensors = {"pixels": pixels if whole else bits_of(pixels)[kept].view(pixels.dtype), "kept": kept}
    if source == "hash":
        tensors["groups"] = near_duplicate_groups(tensors["pixels"])
    return tensors


def _pixel_bits(config: ImageFolderConfig, listing: Listing) -> Literal[8, 16]:
    """Those asked for; for auto the headers of the files tell."""
    if config.pixel_bits != "auto":
        return config.pixel_bits
    decoder = Decoder(config.image_size, config.channels, config.bit_depth)
    return 16 if any(map(decoder.is_deep, listing.paths)) else 8


def _groups_file(root: Path) -> Path | None:
    """groups.csv, in whatever case; None where there is none."""
    found = [entry for entry in entries_of(root) if entry.name.casefold() == _GROUPS_FILE]
    if len(found) > 1:
        raise DataError(f"{root} holds {some(entry.name for entry in found)}: keep one of them")
    if found and (other := what_else(found[0])):
        raise DataError(f"{found[0]} is {other}; a CSV file is wanted: move it away")
    return found[0] if found else None


def _read_groups(listing: Listing, path: Path | None) -> list[int]:
    """The group of every listed file from groups.csv; names that are not whole numbers are numbered as they come."""
    if path is None:
        raise DataError(f'{listing.root / _GROUPS_FILE} does not exist: write it, or choose groups="hash" or "none"')
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}") from error
    if not {"path", "group"} <= set(columns):
        raise DataError(
            f"{path} has the columns {some(columns) or 'none'}; path and group are wanted (label may be there)"
        )
    groups: dict[str, str] = {}
    wrong = []
    for row in rows:
        name, group = (row["path"] or "").replace("\\", "/").removeprefix("./"), (row["group"] or "").strip()
        folder, label = name.split("/")[0], row.get("label")
        if not group or groups.get(name, group) != group or (label in listing.class_names and label != folder):
            wrong.append(name)
        groups[name] = group
    if wrong:
        raise DataError(f"{path} gives no group, two groups or another class than the folder to {some(wrong)}")
    absent = [name for name in groups if not (listing.root / name).is_file()]
    if absent:
        raise DataError(
            f"{path} names {len(absent)} files that do not exist: {some(absent)}. Paths start at {listing.root}"
        )
    names = [listing.relative(image) for image in listing.paths]
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise DataError(f'{path} lacks {len(unknown)} images: {some(unknown)}. Add them, or choose groups="hash"')
    numbers = _numbered(groups.values())
    return [numbers[groups[name]] for name in names]


def _numbered(groups: Iterable[str]) -> dict[str, int]:
    """A number for each text. Those that write their number as it is, all of them, keep it; 007 is a name."""
    texts = list(dict.fromkeys(groups))
    if all(_WHOLE.fullmatch(text) for text in texts):
        return {text: int(text) for text in texts}
    return {text: number for number, text in enumerate(texts)}
