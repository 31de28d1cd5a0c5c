"""DICOM folder: one sub-folder per class, and below it DICOM files at any depth, as archives export them.

Patients and studies are known by their identifiers, which are kept as keyed hashes only. The format: NEMA 2024, DICOM
PS3.3 and PS3.10; the hash: Krawczyk et al. 1997, RFC 2104.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from medfedpure.core.dataset import ImageDataset
from medfedpure.data.readers.dicom import claims
from medfedpure.data.readers.folders import some
from medfedpure.data.readers.grey import PERCENTILES
from medfedpure.data.readers.pseudonyms import Pseudonyms, number_of
from medfedpure.data.readers.scans import Scan, ScanReader
from medfedpure.plugins.datasets.class_folders import (
    FolderConfig,
    FolderDataset,
    Listing,
    assembled,
    increasing,
    joined,
    read_each,
    say_skipped,
)

_logger = logging.getLogger(__name__)


class DicomFolderConfig(FolderConfig):
    """Where the DICOM files are, how they are shown, and what counts as one patient."""

    window: Literal["auto", "percentiles", "full"] | tuple[float, float] = Field(
        "auto",
        description="values that become black and white: auto = the file's own table or first window, else "
        "percentiles; full = all that its bits can say; or two values after the rescale, such as Hounsfield units",
    )
    percentiles: tuple[float, float] = Field(
        PERCENTILES, description="of the values of a file, padding left out, where they make the window"
    )
    colour_to_grey: bool = Field(False, description="with channels=1: take the luminance of colour, else it is refused")
    force: bool = Field(False, description="read data sets without a preamble too, as old archives wrote them")
    groups: Literal["patient", "study", "none"] = Field(
        "patient",
        description="images that a split must not separate: those of one PatientID, of one StudyInstanceUID, or none. "
        "A file without PatientID goes by its study, without either it is alone",
    )
    key_file: Path | None = Field(
        None,
        description="a secret of 16 bytes or more, made if it is missing: under it a patient has the same group in "
        "every reading. Default: groups are numbered in the order of the files",
    )

    @model_validator(mode="after")
    def _increasing(self) -> DicomFolderConfig:
        increasing("percentiles", self.percentiles, 0, 100)
        if not isinstance(self.window, str):
            increasing("window", self.window)
        return self


class DicomFolder(FolderDataset):
    """DICOM files of any transfer syntax that is no film, known by their content, one picture a frame.

    Modality table or rescale, window, MONOCHROME1, signed values and padding are taken as the file says; see
    `data.readers.dicom`. Passed over: other files, and DICOM files without pictures (reports, plans, DICOMDIR), which
    are counted. Refused: masks of 1 bit, values of 32 bits, colour where grey is wanted.

    Attributes:
        paths: after `read`, the file of each image, in the order of the data; one of several frames stands there often.
        skipped: after `read`, the files that could not be read (`on_error="skip"`).
    """

    Config = DicomFolderConfig

    def read(self) -> ImageDataset:
        """Read every frame.

        Returns:
            pixels `(N, C, S, S)` uint8 or uint16 (`pixel_bits`) in the sorted order of the paths, labels, groups, the
            levels "patient" and "study" within them, and class names.

        Raises:
            DataError: a folder that is missing or empty, two classes of which none can be told to be the positive one,
                a key that cannot be read, or files that cannot; the text names them and no value of their headers.
            MissingExtraError: pydicom or a decoder is not installed, whatever `on_error` says.
        """
        config: DicomFolderConfig = self.config
        key = config.key_file
        reader = ScanReader(
            config.image_size,
            config.channels,
            window=config.window,
            percentiles=config.percentiles,
            colour_to_grey=config.colour_to_grey,
            force=config.force,
            pseudonyms=Pseudonyms() if key is None else Pseudonyms.from_file(key),
        )
        listing = Listing.read(config, lambda path: claims(path, config.force), "DICOM file", by_folder=False)
        found = read_each(listing, lambda place: reader.read(listing.paths[place], "dicom"), config.on_error)
        self.skipped = tuple(path for path, scan in zip(listing.paths, found, strict=True) if scan is None)
        say_skipped(listing, self.skipped)
        _say_empty(listing, found)
        pixels, files = joined(found, config.pixel_bits)
        patients, studies = _who(found, listing)
        levels = {"patient": _numbers(patients, key), "study": _numbers(studies, key)}
        groups = {**levels, "none": torch.arange(len(found))}[config.groups][files]
        if config.groups == "none":
            groups = torch.arange(len(files))
        # A level lies within a group, so that what is coarser than the group is none.
        inner = {"patient": ("patient", "study"), "study": ("study",), "none": ()}[config.groups]
        dataset = assembled(
            config,
            listing,
            pixels=pixels,
            labels=torch.tensor(listing.labels)[files],
            groups=groups,
            levels={name: levels[name][files] for name in inner},
        )
        self.paths = tuple(listing.paths[int(files[place])] for place in dataset.ids.tolist())
        return dataset


def _say_empty(listing: Listing, found: list[Scan | None]) -> None:
    empty = [path for path, scan in zip(listing.paths, found, strict=True) if scan is not None and not len(scan.pixels)]
    if empty:
        names = some((listing.relative(path) for path in empty), 3)
        _logger.warning("passed over %d DICOM files without pictures, such as reports: %s", len(empty), names)


def _who(found: list[Scan | None], listing: Listing) -> tuple[list[str], list[str]]:
    """A patient and a study for each file; those that name none are told."""
    patients, studies, alone = [], [], []
    for place, scan in enumerate(found):
        patient, study = (scan.patient, scan.study) if scan is not None else (None, None)
        lonely = f"file {place}"
        if scan is not None and len(scan.pixels) and patient is None and study is None:
            alone.append(listing.paths[place])
        patients.append(patient or study or lonely)
        studies.append(study or (f"{patient} {lonely}" if patient else lonely))
    if alone:
        names = some((listing.relative(path) for path in alone), 3)
        _logger.warning("%d files have neither PatientID nor StudyInstanceUID, each is alone: %s", len(alone), names)
    return patients, studies


def _numbers(names: list[str], key: Path | None) -> torch.Tensor:
    """A whole number for each name: under a key always the same one, else in the order in which they come."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if key is None:
        return torch.tensor([order[name] for name in names])
    # Files that name nobody have no pseudonym; negative numbers are free for them.
    return torch.tensor([-1 - order[name] if " " in name else number_of(name) for name in names])
