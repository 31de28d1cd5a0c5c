"""`predict_files`: scans in, a row for each of their images out, in constant memory, to be continued at any time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from medfedpure.core.disk.whole import make_folder
from medfedpure.core.errors import ConfigError, DataError, MissingExtraError
from medfedpure.core.progress import track
from medfedpure.core.storage import locked
from medfedpure.core.streams import derive_seed
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.verdicts.ahead import decoded
from medfedpure.verdicts.decoding import FileDecoder, Frames, is_scan
from medfedpure.verdicts.files import files_of, name_of
from medfedpure.verdicts.sheet import FRAME, FRAMES, KEY, MADE_BY, Format, Sheet

WHO = ("patient", "study")
"""The columns of pseudonyms."""


@dataclass
class Tally:
    """What became of the files.

    Attributes:
        files: that were named.
        before: whose rows were there already.
        read: that were read now, some of whose images may have had a row.
        failed: of these, that could not be read.
        images: that were judged now; a picture is one, a file of frames or slices several.
        flagged, abstained: of these, as the defence says.
    """

    files: int = 0
    before: int = 0
    read: int = 0
    failed: int = 0
    images: int = 0
    flagged: int = 0
    abstained: int = 0

    def describe(self) -> str:
        """One line for people."""
        before = f", {self.before} of them done before" if self.before else ""
        told = f"{self.images} images, {self.flagged} flagged, {self.abstained} without a verdict"
        failed = f"{self.failed} could not be read" + ("; counts are of this time" if self.before else "")
        return f"{self.files} files{before}, {failed}: {told}"


@dataclass(frozen=True)
class Judged:
    """What becomes a row.

    Attributes:
        path: of the file.
        place: which of its images, from 0; None where there is none.
        frames: all images of the file; None where it could not be read.
        error: why it could not be read.
    """

    path: Path
    place: int | None = None
    frames: Frames | None = None
    error: str | None = None


def predict_files(
    chain: DefendedClassifier,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    format: Format = "csv",
    made_by: str = "",
    seed: int | None = None,
    target_fpr: float | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    key_file: str | Path | None = None,
) -> Tally:
    """Write what a defence says of every image of every file, a row each.

    Rows come as they are finished, in the order of the files, and are on the disk batch by batch. Ended before the
    last, the same call goes on: images that have a row get no second one. Files are decoded beside the computing.

    Args:
        chain: it knows what images it is for, as every defence that was calibrated on a data set does.
        inputs: files, folders or patterns; see `medfedpure.verdicts.files.files_of`.
        out: the file of rows; one that is there is continued.
        format: "csv", or "jsonl", an object a line.
        made_by: which defence it is, written into every row.
        seed: of the noise, which is each image's own; by default drawn from the operating system.
        target_fpr: another false-positive rate than the calibrated one.
        batch_size: images at a time.
        workers: threads that decode; by default as many as there are processors, at most 8.
        key_file: a secret, made if it is missing, under which rows say the patient and the study of a DICOM file;
            without it neither is told.

    Raises:
        ConfigError: inputs that lead to no file, a defence that does not say what images it is for.
        DataError: a folder that cannot be listed, or a key that cannot be read.
        ArtifactError: `out` holds something else, somebody else writes to it, or the disk takes no more.
        MissingExtraError: at the end, when all others have their rows: files that need a package.
    """
    if chain.image_facts is None:
        raise ConfigError(
            "this defence does not say what images it is for: calibrate it on a data set, as in "
            "chain.calibrate(medfedpure.create('dataset', 'image_folder', ...).read())"
        )
    own = [os.path.realpath(one) for one in (out, key_file) if one is not None]
    files = [path for path in files_of(inputs, is_scan) if os.path.realpath(path) not in own]
    tally = Tally(len(files))
    decoder = FileDecoder(chain.image_facts, None if key_file is None else Pseudonyms.from_file(Path(key_file)))
    lacking: list[tuple[Path, MissingExtraError]] = []
    heads = [KEY, FRAME, FRAMES, *WHO, *heads_for(chain)[1:]]
    make_folder(Path(out).parent)
    with locked(out, "the writing of verdicts"), Sheet(out, heads, format, made_by) as sheet:
        wanted = [path for path in files if name_of(path) not in sheet.done]
        tally.before = len(files) - len(wanted)
        with closing(decoded(wanted, decoder.read, workers, 2 * batch_size)) as found:
            left = _left(track(found, "verdicts", len(wanted)), sheet, tally, lacking)
            while batch := list(islice(left, batch_size)):
                rows = verdicts(chain, batch, seed, target_fpr)
                sheet.write(rows)
                tally.images += sum(row["error"] is None for row in rows)
                tally.flagged += sum(bool(row.get("flagged")) for row in rows)
                tally.abstained += sum(bool(row.get("abstained")) for row in rows)
    if lacking:
        path, error = lacking[0]
        raise MissingExtraError(
            f"{len(lacking)} files have no row for want of a package, the first of them {path}: {error}. "
            f"{tally.describe()}; once it is installed, the same call goes on"
        )
    return tally


def heads_for(chain: DefendedClassifier) -> list[str]:
    """The columns of the verdicts of this defence, those of the file and of an error around them."""
    assert chain.image_facts is not None
    found = chain.predict(torch.zeros(1, *chain.image_facts.image_shape), seed=0).columns()
    return [KEY, *(name for name in found if name != "image"), "error", MADE_BY]


def _left(
    found: Iterable[tuple[Path, Frames | DataError | MissingExtraError]],
    sheet: Sheet,
    tally: Tally,
    lacking: list[tuple[Path, MissingExtraError]],
) -> Iterator[Judged]:
    """The images that have no row yet, and the files that cannot be read; counts them."""
    for path, frames in found:
        if isinstance(frames, MissingExtraError):
            lacking.append((path, frames))
            continue
        tally.read += 1
        if isinstance(frames, DataError):
            tally.failed += 1
            yield Judged(path, error=str(frames))
        else:
            yield from (Judged(path, place, frames) for place in sheet.left(name_of(path), len(frames)))


def verdicts(
    chain: DefendedClassifier, batch: Sequence[Judged], seed: int | None, target_fpr: float | None
) -> list[dict[str, Any]]:
    """A row for each, in order."""
    images = [(one, one.frames.image(one.place)) for one in batch if one.frames is not None and one.place is not None]
    said: Iterator[dict[str, Any]] = iter(())
    if images:
        found = chain.predict(
            torch.stack([image for _, image in images]),
            ids=torch.tensor([derive_seed("file", name_of(one.path), one.place or 0) for one, _ in images]),
            seed=seed,
            target_fpr=target_fpr,
            batch_size=len(images),
        )
        said = iter(found.rows())
    rows = []
    for one in batch:
        row: dict[str, Any] = {KEY: name_of(one.path), "error": one.error}
        if one.frames is not None:
            row |= {FRAME: one.place, FRAMES: len(one.frames)}
            row |= dict(zip(WHO, (one.frames.patient, one.frames.study), strict=True)) | next(said)
        rows.append({key: value for key, value in row.items() if key != "image"})
    return rows
