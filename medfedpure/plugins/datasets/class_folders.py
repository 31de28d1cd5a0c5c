"""What data sets of class folders have in common: options, which file is of which class and patient, and its reading.

    root/CLASS/FILE                   no patient is known
    root/CLASS/PATIENT/.../FILE       one sub-folder of a class for each patient, with any folders below it

A sub-folder of the same name in two classes is one patient: joining two patients costs a little, parting one leaks.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import Dataset, ImageDataset, bits_of
from medfedpure.core.errors import DataError
from medfedpure.core.progress import track
from medfedpure.data.class_names import findings_among, none_among
from medfedpure.data.readers.folders import class_folders, entries_of, is_folder, some
from medfedpure.data.readers.squares import to_eight_bits

if TYPE_CHECKING:  # it stands on NumPy, which pictures do not need
    from medfedpure.data.readers.scans import Scan

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "holdout"})
_NO_PATIENTS = frozenset(
    {"image", "images", "img", "imgs", "mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"}
)


class FolderConfig(Config):
    """Where the files of each class are, and what becomes of them."""

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
    pixel_bits: Literal["auto", 8, 16] = Field(
        "auto",
        description="bits that a pixel is kept with; auto = 16 if any file uses more than 8, else 8",
    )
    on_error: Literal["raise", "skip"] = Field("raise", description="what to do about files that cannot be read")
    max_per_group: int | None = Field(None, ge=1, description="keep at most so many images of each group")
    seed: int = Field(0, description="chooses the images kept under max_per_group")

    @field_validator("classes")
    @classmethod
    def _plain_names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None:
            if not value or len(set(value)) != len(value):
                raise ValueError("one or more different folder names are wanted")
            if any(name in ("", ".", "..") or "/" in name or "\\" in name for name in value):
                raise ValueError("names of sub-folders are wanted, not paths")
        return value


class FolderDataset(Dataset):
    """Says after `read` which file each image came from.

    Attributes:
        paths: of the images, in the order of the data.
        skipped: files that could not be read (`on_error="skip"`).
    """

    deterministic = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.paths: tuple[Path, ...] = ()
        self.skipped: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The files under a root that claim to be images, sorted by path, and their labels."""

    root: Path
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def read(cls, config: FolderConfig, wanted: Callable[[Path], bool], what: str, by_folder: bool = True) -> Listing:
        """All files of the classes.

        Args:
            config: root, classes, positive.
            wanted: whether a file counts; others are passed over.
            what: is wanted, in a word, for errors.
            by_folder: whether sub-folders of a class are taken for patients, so that their names must not deny it.

        Raises:
            DataError: a folder that is missing, empty or nested otherwise than by patients, or two classes of which
                none can be told to be the positive one.
        """
        root = config.root.expanduser()
        found = class_folders(root)
        missing = [name for name in config.classes or () if name not in found]
        if missing:
            raise DataError(
                f"{root} holds no folder {some(missing)}; it holds {some(found)}: rename those, or give as root a "
                "folder in which links by the names of the classes lead to them"
            )
        names = config.classes or _ordered(root, found, config.positive)
        pairs = [
            (path, label) for label, name in enumerate(names) for path in _files(root / name, wanted, what, by_folder)
        ]
        pairs.sort(key=lambda pair: pair[0].relative_to(root).as_posix())
        return cls(root, names, tuple(path for path, _ in pairs), tuple(label for _, label in pairs))

    def relative(self, path: Path) -> str:
        """A file's path below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def patients(self) -> list[str | None]:
        """Of each file the sub-folder of its class that it lies in; None right in the class folder."""
        parts = [path.relative_to(self.root).parts for path in self.paths]
        return [part[1] if len(part) > 2 else None for part in parts]


def _files(folder: Path, wanted: Callable[[Path], bool], what: str, by_folder: bool) -> list[Path]:
    """The files of one class folder, and of the patients' folders in it."""
    entries = entries_of(folder)
    nested = [entry.name for entry in entries if is_folder(entry)]
    if by_folder and (others := [name for name in nested if name.casefold() in _NO_PATIENTS]):
        raise DataError(
            f"{folder} holds folders ({some(others, 3)}) that are no patients by their names, and sub-folders of a "
            "class are taken for patients: move the images up, and what is no image away"
        )
    if nested and (folder.name.casefold() in _PARTS or (len(nested) > 1 and none_among(nested) is not None)):
        # Reading deeper would take train/ and test/ for classes, and their classes for patients.
        raise DataError(
            f"{folder} holds folders ({some(nested, 3)}) that are classes by their names, or stands for a part of a "
            f"data set: give {folder} as the root then; sub-folders of a class are taken for patients"
        )
    images = _below(folder, wanted, frozenset())
    if not images:
        inside = "only empty folders" if entries else "it is empty"
        if files := _below(folder, lambda _: True, frozenset()):
            inside = f"only other files such as {files[0].relative_to(folder)}{_hint(files[0])}"
        raise DataError(f"{folder} holds no {what}, {inside}: put some there, remove it, or leave it out of `classes`")
    return images


def _hint(path: Path) -> str:
    """Which data set reads a file that another one does not know; nothing where none does."""
    try:
        from medfedpure.data.readers.scans import kind_of  # not above: it stands on NumPy
    except ImportError:
        return ""
    readers = {"dicom": "dicom_folder", "nifti": "nifti_folder", "image": "image_folder"}
    kind = kind_of(path)
    return "" if kind is None else f" (the data set {readers[kind]} reads it)"


def _below(folder: Path, wanted: Callable[[Path], bool], above: frozenset[Path]) -> list[Path]:
    """Files at any depth; a link back to a folder above is passed over."""
    here = folder.resolve()
    if here in above:
        return []
    found: list[Path] = []
    for entry in entries_of(folder):
        if is_folder(entry):
            found += _below(entry, wanted, above | {here})
        elif wanted(entry):
            found.append(entry)
    return found


def _ordered(root: Path, names: list[str], positive: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Sorted; but of two names the one that is no finding first."""
    if len(names) != 2:
        return tuple(names)
    findings = findings_among(names, positive, root)
    if findings is None:
        one, other = (json.dumps(name, ensure_ascii=False) for name in names)
        raise DataError(
            f"{root} holds the classes {one} and {other}, and their names do not tell which is the finding: pass "
            f"positive={one} or positive={other}, or classes with the finding last, or rename the other, as in "
            "no_lesion or normal"
        )
    return tuple(sorted(names, key=lambda name: names.index(name) in findings))


def read_each(listing: Listing, read: Callable[[int], _T], on_error: Literal["raise", "skip"]) -> list[_T | None]:
    """What reading each file gives, by its place in the listing; None where it cannot be read and may be skipped.

    Raises:
        DataError: some cannot be read; the text names them, and for each the reason that its own DataError told.
    """
    reasons: dict[int, str] = {}

    def tried(place: int) -> _T | None:
        try:
            return read(place)
        except DataError as error:
            reasons[place] = str(error)
            return None

    # Decoders work outside the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        count = len(listing.paths)
        found = list(track(pool.map(tried, range(count)), "reading images", count))
    if reasons and on_error == "raise":
        alike: dict[str, list[str]] = {}
        for place in sorted(reasons):
            alike.setdefault(reasons[place], []).append(listing.relative(listing.paths[place]))
        bad = [f"{some(files)} ({why})" for why, files in alike.items()]
        raise DataError(
            f"{len(reasons)} of {count} files in {listing.root} cannot be read: {some(bad)}. "
            'Repair or remove them, or pass on_error="skip"'
        )
    return found


def say_skipped(listing: Listing, skipped: Sequence[Path]) -> None:
    """A line in the log for the files that could not be read, if there are any."""
    if skipped:
        names = some(listing.relative(path) for path in skipped)
        _logger.warning("skipped %d files of %s that cannot be read: %s", len(skipped), listing.root, names)


def increasing(name: str, ends: tuple[float, float], low: float = -math.inf, high: float = math.inf) -> None:
    """Raises ValueError, for a validator, unless both ends lie in a range and the second is larger."""
    if not low <= ends[0] < ends[1] <= high:
        within = f" within {low:g} ... {high:g}" if math.isfinite(low) else ""
        raise ValueError(f"{name} must be two numbers{within}, the larger one last; got {ends[0]:g}, {ends[1]:g}")


def joined(scans: Sequence[Scan | None], pixel_bits: Literal["auto", 8, 16]) -> tuple[Tensor, Tensor]:
    """The pictures of all files, `(N, C, S, S)` uint8 or uint16, and `(N,)` which file each is of.

    Args:
        scans: of each file; None where it was skipped.
        pixel_bits: of the result; auto = 16 if any file uses more than 8.

    Raises:
        DataError: there is not one picture.
    """
    there = [scan for scan in scans if scan is not None and len(scan.pixels)]
    if not there:
        raise DataError("not one file holds a picture that can be read")
    counts = torch.tensor([0 if scan is None else len(scan.pixels) for scan in scans])
    files = torch.arange(len(scans)).repeat_interleave(counts)
    bits = pixel_bits if pixel_bits != "auto" else 16 if any(scan.deep for scan in there) else 8
    pixels = torch.cat([bits_of(scan.pixels if bits == 16 else to_eight_bits(scan.pixels)) for scan in there])
    return (pixels.view(torch.uint16) if bits == 16 else pixels), files


def assembled(config: FolderConfig, listing: Listing, **fields: Tensor | dict[str, Tensor]) -> ImageDataset:
    """The data set of pixels, labels, groups and levels, by these names; at most so many images of each group.

    Raises:
        DataError: a class of which nothing is left.
    """
    labels = fields["labels"]
    assert isinstance(labels, Tensor)
    for label, name in enumerate(listing.class_names):
        if not bool((labels == label).any()):
            raise DataError(f"no file in {listing.root / name} can be read")
    rest: dict[str, object] = dict(fields)
    dataset = ImageDataset(
        **rest,  # type: ignore[arg-type]
        class_names=listing.class_names,
        ids=torch.arange(len(labels)),
        positive=findings_among(listing.class_names, config.positive, listing.root) or (),
        name=listing.root.resolve().name or "images",
    )
    return dataset if config.max_per_group is None else dataset.cap_groups(config.max_per_group, config.seed)
