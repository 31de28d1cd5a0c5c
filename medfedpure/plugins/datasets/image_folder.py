"""Image folder: one sub-folder per class, with whatever image files people have in it.

The layout of ImageNet's training part (Russakovsky et al. 2015, arXiv 1409.0575), which most medical sets follow.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import Dataset, ImageDataset, bits_of
from medfedpure.core.errors import DataError
from medfedpure.core.progress import track
from medfedpure.data.class_names import findings_among
from medfedpure.data.image_cache import cache_folder, cache_key, through_cache
from medfedpure.data.near_duplicates import near_duplicate_groups
from medfedpure.data.readers.folders import class_folders, entries_of, some, what_else
from medfedpure.data.readers.images import Decoder, is_image

_logger = logging.getLogger(__name__)
_GROUPS_FILE = "groups.csv"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


class ImageFolderConfig(Config):
    """Where the images are and how they are read."""

    root: Path = Field(description="folder with one sub-folder per class")
    image_size: int = Field(ge=8, le=2048, description="height and width in pixels; images are padded to squares")
    channels: Literal[1, 3] = Field(1, description="1 = grey, 3 = RGB")
    classes: tuple[str, ...] | None = Field(
        None,
        description="sub-folders to read, in the order of their labels. Default: all, sorted, but of two the one that "
        "says nothing was found (no, non, not, without, absent, negative, normal, healthy, benign) first; where the "
        "names do not tell, classes or positive is wanted",
    )
    positive: str | tuple[str, ...] | None = Field(
        None,
        description="the class that is a finding, or several: sensitivity is theirs. Default: all but the one whose "
        "name says nothing was found; of two classes whose names do not tell the last",
    )
    bit_depth: int | None = Field(
        None,
        ge=8,
        le=16,
        description="bits that files of 16 bits really use, e.g. 12; default: what each file declares",
    )
    pixel_bits: Literal["auto", 8, 16] = Field(
        "auto",
        description="bits that a pixel is kept with; auto = 16 if any file uses more than 8, else 8",
    )
    on_error: Literal["raise", "skip"] = Field("raise", description="what to do about files that cannot be read")
    groups: Literal["auto", "csv", "hash", "none"] = Field(
        "auto",
        description="images that a split must not separate: csv = groups.csv (path,label,group) beside the class "
        "folders, hash = near-duplicates are searched, none = each image alone, auto = csv if it is there, else hash",
    )
    max_per_group: int | None = Field(None, ge=1, description="keep at most so many images of each group")
    seed: int = Field(0, description="chooses the images kept under max_per_group")
    cache: bool | Path = Field(
        False,
        description="keep the decoded images for the next time: a folder, or true for the user's cache folder "
        "(XDG_CACHE_HOME, else ~/.cache). Off by default: it leaves a copy of the images there",
    )

    @field_validator("classes")
    @classmethod
    def _plain_names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if not value or len(set(value)) != len(value):
                raise ValueError("one or more different folder names are wanted")
            if any(name in ("", ".", "..") or "/" in name or "\\" in name for name in value):
                raise ValueError("names of sub-folders are wanted, not paths")
        return value


class ImageFolder(Dataset):
    """JPEG, PNG, TIFF, BMP, GIF and WebP files, known by their content, one sub-folder per class.

    Read: grey, RGB, RGBA (over black), palette, CMYK, 1-bit and 16-bit files of any size and
    aspect, upright by their EXIF orientation; see `data.readers.images.Decoder`. Passed over: what systems leave
    behind (dotfiles, __MACOSX, Thumbs.db, desktop.ini, @eaDir, lost+found), and files that are images neither
    by their ending nor by their first bytes. Refused: files with several pictures, 32-bit values, pipes and
    devices with the ending of an image, and sub-folders inside a class folder.

    Attributes:
        paths: after `read`, the file of each image, in the order of the data.
        skipped: after `read`, the files that could not be read (`on_error="skip"`).
    """

    Config = ImageFolderConfig
    deterministic = True

    def __init__(self, config: ImageFolderConfig | Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.paths: tuple[Path, ...] = ()
        self.skipped: tuple[Path, ...] = ()

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
        listing = _Listing.read(config.root.expanduser(), config.classes, config.positive)
        table = _groups_file(listing.root) if config.groups in ("auto", "csv") else None
        source = config.groups if config.groups != "auto" else ("csv" if table is not None else "hash")
        known = _read_groups(listing, table) if source == "csv" else None
        tensors = _tensors(config, listing, source)
        pixels, kept = tensors["pixels"], tensors["kept"]
        labels = torch.tensor(listing.labels)[kept]
        chosen = kept.tolist()
        taken = set(chosen)
        self.skipped = tuple(path for place, path in enumerate(listing.paths) if place not in taken)
        if self.skipped:
            names = some(listing.relative(path) for path in self.skipped)
            _logger.warning("skipped %d files of %s that cannot be read: %s", len(self.skipped), listing.root, names)
        for label, name in enumerate(listing.class_names):
            if not bool((labels == label).any()):
                raise DataError(f"no file in {listing.root / name} can be read")
        if known is not None:
            groups = torch.tensor(known)[kept]
        else:
            groups = tensors.get("groups", torch.arange(len(chosen)))
        dataset = ImageDataset(
            pixels=pixels,
            labels=labels,
            groups=groups,
            class_names=listing.class_names,
            ids=torch.arange(len(chosen)),
            positive=findings_among(listing.class_names, config.positive, listing.root) or (),
            name=listing.root.resolve().name or "images",
        )
        if config.max_per_group is not None:
            dataset = dataset.cap_groups(config.max_per_group, config.seed)
        self.paths = tuple(listing.paths[chosen[place]] for place in dataset.ids.tolist())
        return dataset


@dataclass(frozen=True)
class _Listing:
    """The image files under a root, sorted by path, and their labels."""

    root: Path
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def read(cls, root: Path, classes: tuple[str, ...] | None, positive: str | tuple[str, ...] | None) -> _Listing:
        found = class_folders(root)
        missing = [name for name in classes or () if name not in found]
        if missing:
            raise DataError(f"{root} holds no folder {some(missing)}; it holds {some(found)}")
        names = classes or _ordered(root, found, positive)
        pairs = [(path, label) for label, name in enumerate(names) for path in _images(root / name)]
        pairs.sort(key=lambda pair: pair[0].relative_to(root).as_posix())
        return cls(root, names, tuple(path for path, _ in pairs), tuple(label for _, label in pairs))

    def relative(self, path: Path) -> str:
        """A file's path below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()


def _images(folder: Path) -> list[Path]:
    """The image files of one class folder."""
    entries = entries_of(folder)
    nested = [entry.name for entry in entries if entry.is_dir()]
    if nested:
        # Reading deeper would take train/ and test/ for classes; passing over would lose images.
        raise DataError(
            f"{folder} holds folders ({some(nested, 3)}), a class folder holds images only: "
            f"move the images up, or give {folder} as the root if those are the classes"
        )
    images = [entry for entry in entries if is_image(entry)]
    if not images:
        others = f"only other files such as {entries[0].name}" if entries else "it is empty"
        raise DataError(f"{folder} holds no image, {others}: put images there, remove it, or leave it out of `classes`")
    return images


def _ordered(root: Path, names: list[str], positive: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Sorted; but of two names the one that is no finding first."""
    if len(names) != 2:
        return tuple(names)
    findings = findings_among(names, positive, root)
    if findings is None:
        one, other = names
        raise DataError(
            f"{root} holds the classes {one} and {other}, and their names do not tell which is the finding: pass "
            f'positive="{other}" or classes=("{one}", "{other}"), the last of which is the positive one, or rename the '
            "other, as in no_lesion or normal"
        )
    return tuple(sorted(names, key=lambda name: names.index(name) in findings))


def _tensors(config: ImageFolderConfig, listing: _Listing, source: str) -> dict[str, Tensor]:
    """What `_decode` returns, through the cache if there is one."""
    if config.cache is False:
        return _decode(config, listing, source)
    how = config.model_dump(mode="json", include={"image_size", "channels", "bit_depth", "pixel_bits", "on_error"})
    key = cache_key(listing.paths, {**how, "hash": source == "hash"})
    names = {"pixels", "kept", "groups"} if source == "hash" else {"pixels", "kept"}
    path = cache_folder(config.cache) / f"{key}.safetensors"
    return through_cache(path, names, lambda: _decode(config, listing, source))


def _decode(config: ImageFolderConfig, listing: _Listing, source: str) -> dict[str, Tensor]:
    """Decode all files: pixels of those that could be read, their places, and groups if they are searched."""
    decoder = Decoder(config.image_size, config.channels, config.bit_depth, _pixel_bits(config, listing))
    size = (config.channels, config.image_size, config.image_size)
    pixels = torch.empty(len(listing.paths), *size, dtype=torch.uint8 if decoder.pixel_bits == 8 else torch.uint16)

    def read(place: int) -> str | None:
        try:
            pixels[place] = decoder.read(listing.paths[place])
        except DataError as error:
            return str(error)
        return None

    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        count = len(listing.paths)
        reasons = list(track(pool.map(read, range(count)), "reading images", count))
    bad = [
        f"{listing.relative(path)} ({reason})" for path, reason in zip(listing.paths, reasons, strict=True) if reason
    ]
    if bad and config.on_error == "raise":
        raise DataError(
            f"{len(bad)} of {len(reasons)} files in {listing.root} cannot be read: {some(bad)}. "
            'Repair or remove them, or pass on_error="skip"'
        )
    if decoder.dim:
        _logger.warning(
            "%d 16-bit files use less than a sixteenth of their range and come out almost black (%s): "
            "if they hold 12-bit values, pass bit_depth=12",
            len(decoder.dim),
            some((listing.relative(path) for path in sorted(decoder.dim)), 3),
        )
    kept = torch.tensor([place for place, reason in enumerate(reasons) if reason is None], dtype=torch.int64)
    tensors = {"pixels": bits_of(pixels)[kept].view(pixels.dtype) if bad else pixels, "kept": kept}
    if source == "hash":
        tensors["groups"] = near_duplicate_groups(tensors["pixels"])
    return tensors


def _pixel_bits(config: ImageFolderConfig, listing: _Listing) -> Literal[8, 16]:
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


def _read_groups(listing: _Listing, path: Path | None) -> list[int]:
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
