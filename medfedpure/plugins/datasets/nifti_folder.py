"""NIfTI folder: one sub-folder per class with volumes, which are cut into slices.

The format: Cox et al. 2004, NIfTI-1; reading is nibabel's (Brett et al. 2024).
"""

from __future__ import annotations

import logging

import torch
from pydantic import Field, model_validator

from medfedpure.core.dataset import ImageDataset
from medfedpure.data.readers.folders import some
from medfedpure.data.readers.grey import PERCENTILES
from medfedpure.data.readers.nifti import Axis, claims
from medfedpure.data.readers.scans import ScanReader
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


class NiftiFolderConfig(FolderConfig):
    """Where the volumes are, and how they are cut and shown."""

    axis: Axis = Field("axial", description="that volumes are cut across, after they were turned by their affine")
    volume: int = Field(0, ge=0, description="which one of a file that holds several, from 0")
    every: int = Field(1, ge=1, description="take every n-th slice of the part")
    part: tuple[float, float] = Field(
        (0.0, 1.0), description="shares of the slices, from and to: (0.25, 0.75) is the middle half"
    )
    window: tuple[float, float] | None = Field(
        None, description="values that become black and white. Default: percentiles of each volume"
    )
    percentiles: tuple[float, float] = Field(
        PERCENTILES, description="of the finite values of a volume, where they make the window"
    )

    @model_validator(mode="after")
    def _increasing(self) -> NiftiFolderConfig:
        increasing("part", self.part, 0, 1)
        increasing("percentiles", self.percentiles, 0, 100)
        if self.window is not None:
            increasing("window", self.window)
        return self


class NiftiFolder(FolderDataset):
    """NIfTI files, .nii and .nii.gz, known by their content; a volume is a group, and so is a patient's sub-folder.

    Slices lie as radiologists look at them, and pixels are square; see `data.readers.nifti`. Passed over: other files.
    Refused: pairs of .hdr and .img, complex values and colour.

    Attributes:
        paths: after `read`, the file of each slice, in the order of the data.
        skipped: after `read`, the files that could not be read (`on_error="skip"`).
    """

    Config = NiftiFolderConfig

    def read(self) -> ImageDataset:
        """Read every slice that is asked for.

        Returns:
            pixels `(N, C, S, S)` uint8 or uint16 (`pixel_bits`), volumes in the sorted order of their paths, labels,
            groups, the level "volume" within them, and class names.

        Raises:
            DataError: a folder that is missing or empty, two classes of which none can be told to be the positive one,
                or files that cannot be read; the text names them.
            MissingExtraError: nibabel is not installed, whatever `on_error` says.
        """
        config: NiftiFolderConfig = self.config
        reader = ScanReader(
            config.image_size,
            config.channels,
            window=config.window or "percentiles",
            percentiles=config.percentiles,
            axis=config.axis,
            volume=config.volume,
            every=config.every,
            part=config.part,
        )
        listing = Listing.read(config, claims, "NIfTI file")
        found = read_each(listing, lambda place: reader.read(listing.paths[place], "nifti"), config.on_error)
        self.skipped = tuple(path for path, scan in zip(listing.paths, found, strict=True) if scan is None)
        say_skipped(listing, self.skipped)
        lost = [path for path, scan in zip(listing.paths, found, strict=True) if scan is not None and not scan.oriented]
        if lost:
            told = some((listing.relative(path) for path in lost), 3)
            text = "%d volumes do not say how the patient lies, so that slices may be across another axis: %s"
            _logger.warning(text, len(lost), told)
        pixels, files = joined(found, config.pixel_bits)
        names = [patient or f"/{place}" for place, patient in enumerate(listing.patients())]
        order = {name: number for number, name in enumerate(dict.fromkeys(names))}
        dataset = assembled(
            config,
            listing,
            pixels=pixels,
            labels=torch.tensor(listing.labels)[files],
            groups=torch.tensor([order[name] for name in names])[files],
            levels={"volume": files},
        )
        self.paths = tuple(listing.paths[int(files[place])] for place in dataset.ids.tolist())
        return dataset
