"""Every parser that reads what others wrote, as a function of bytes, and valid files to begin with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import of_files as files
import of_wires as wires
from of_files import Target

from medfedpure.core.errors import MedFedPureError

Seeds = Callable[[Path], Iterable[bytes]]


@dataclass(frozen=True)
class Parser:
    """One parser under test.

    Attributes:
        seeds: valid contents, from an empty folder to work in.
        target: from an empty folder to what reads bytes, and raises where they are wrong.
        instrumented: packages whose branches guide a search.
    """

    seeds: Seeds
    target: Callable[[Path], Target]
    instrumented: tuple[str, ...]


def read(target: Target, content: bytes) -> None:
    """Let a parser read; the project's own errors are right answers, everything else is raised."""
    with warnings.catch_warnings(), suppress(MedFedPureError):
        warnings.simplefilter("ignore")
        target(content)


_READERS = "medfedpure.data.readers"
PARSERS = {
    "dicom": Parser(files.dicom_seeds, files.scan("dicom"), ("pydicom", _READERS)),
    "nifti": Parser(files.nifti_seeds, files.scan("nifti"), ("nibabel", _READERS)),
    "picture": Parser(files.picture_seeds, files.scan("image"), ("PIL", _READERS)),
    "bundle": Parser(files.bundle_seeds, files.bundle, ("medfedpure.core", "medfedpure.defence")),
    "rows": Parser(files.rows_seeds, files.rows, ("medfedpure.verdicts", "csv")),
    "config": Parser(files.config_seeds, files.config, ("medfedpure.job.config", "tomllib")),
    "uploads": Parser(wires.upload_seeds, wires.uploads, ("medfedpure.service", "python_multipart")),
    "array": Parser(wires.array_seeds, wires.array, ("medfedpure.federation", "numpy.lib.format")),
    "message": Parser(wires.message_seeds, wires.message, ("medfedpure.federation", "flwr.common")),
    "checkpoint": Parser(wires.checkpoint_seeds, wires.checkpoint, ("medfedpure.federation", "medfedpure.core")),
    "private_state": Parser(wires.private_seeds, wires.private_state, ("medfedpure.federation",)),
    "audit": Parser(wires.audit_seeds, wires.audit, ("medfedpure.service.audit",)),
    "medmnist": Parser(wires.medmnist_seeds, wires.medmnist, (_READERS, "zipfile", "numpy.lib")),
}
"""By name, as `tests/fuzz/run.py --only NAME` takes it."""
