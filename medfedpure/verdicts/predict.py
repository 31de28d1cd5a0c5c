"""`predict_files`: scans in, a row for each of their images out, in constant memory, to be continued at any time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from medfedpure.core.disk.whole import make_folder
from medfedpure.core.errors import ConfigError, DataError, MissingExtraError
from medfedpure.core.progress import track
from medfedpure.core.results import Prediction
from medfedpure.core.storage import locked
from medfedpure.core.streams import derive_seed
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.verdicts.ahead import decoded
from medfedpure.verdicts.decoding import FileDecoder, Frames, Shown, is_scan
from medfedpure.verdicts.engine import Answer, Asked, Engine, How
from medfedpure.verdicts.files import files_of, name_of
from medfedpure.verdicts.formats import kept_as
from medfedpure.verdicts.groups import Grouping
from medfedpure.verdicts.kept import ERROR, FRAME, FRAMES, KEY, MADE_BY, Format, Kept
from medfedpure.verdicts.listening import Judged, Listener
from medfedpure.verdicts.maps import Maps
from medfedpure.verdicts.places import Own, check_apart
from medfedpure.verdicts.why import predicted

WHO = ("patient", "study")
"""The columns of pseudonyms."""
WHY = "why"
"""The column that says of a flagged image which part of the detector raised it."""


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
        dim: pictures of 16 bits, read now, that use less than a sixteenth of their range: the defence saw them almost
            black.
    """

    files: int = 0
    before: int = 0
    read: int = 0
    failed: int = 0
    images: int = 0
    flagged: int = 0
    abstained: int = 0
    dim: int = 0

    def count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add what rows say."""
        self.images += sum(row[ERROR] is None for row in rows)
        self.flagged += sum(bool(row.get("flagged")) for row in rows)
        self.abstained += sum(bool(row.get("abstained")) for row in rows)

    def describe(self) -> str:
        """One line for people."""
        before = f", {self.before} of them done before" if self.before else ""
        told = f"{self.images} images, {self.flagged} flagged, {self.abstained} without a verdict"
        failed = f"{self.failed} could not be read" + ("; counts are of this time" if self.before else "")
        dim = (
            f"; {self.dim} pictures were seen almost black, as they use less than a sixteenth of their 16 bits: say "
            "how many bits they use (bit_depth)"
        )
        return f"{self.files} files{before}, {failed}: {told}{dim if self.dim else ''}"


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
    shown: Shown = Shown(),  # noqa: B008
    maps: str | Path | None = None,
    grouping: Grouping | None = None,
    retry_errors: bool = False,
    engine: Engine | None = None,
    also: Sequence[Listener] = (),
) -> Tally:
    """Write what a defence says of every image of every file, a row each.

    Rows come as they are finished, in the order of the files, and are on the disk batch by batch, as Parquet a file at
    a time. Ended before the last, the same call goes on: images that have a row get no second one. Files are decoded
    beside the computing.

    Args:
        chain: it knows what images it is for, as every defence that was calibrated on a data set does.
        inputs: files, folders or patterns; see `medfedpure.verdicts.files.files_of`.
        out: the file of rows, of Parquet the folder; one that is there is continued.
        format: "csv"; "jsonl", an object a line; "parquet", files of some thousand rows in a folder.
        made_by: which defence it is, written into every row; behind it stand `target_fpr`, `shown` and a fingerprint
            of the key, where they are given: rows under other settings are not continued.
        seed: of the noise, which is each image's own; by default drawn from the operating system.
        target_fpr: another false-positive rate than the calibrated one.
        batch_size: images at a time.
        workers: threads that decode; by default as many as there are processors, at most 8.
        key_file: a secret, made if it is missing, under which rows say the patient and the study of a DICOM file;
            without it neither is told.
        shown: window and axis of DICOM and NIfTI, depth of pictures.
        maps: a folder for the suspicion maps of flagged images; see `medfedpure.verdicts.maps.Maps`.
        grouping: of whom verdicts are made of all rows at the end, into a table beside them.
        retry_errors: of the files that are named, forget the rows that say that they could not be read, and read them
            again.
        engine: who judges, with the same defence; None is this process.
        also: are told of every batch before its rows are written.

    Raises:
        ConfigError: inputs that lead to no file, a defence that does not say what images it is for, a grouping without
            a key, maps of a detector that draws none, maps or listeners beside an engine, two outputs in one place.
        DataError: a folder that cannot be listed, or a key that cannot be read.
        ArtifactError: `out` holds something else, somebody else writes to it, or the disk takes no more.
        MissingExtraError: pyarrow is missing for Parquet; or, at the end, when all others have their rows: files that
            need a package.
    """
    if chain.image_facts is None:
        raise ConfigError(
            "this defence does not say what images it is for: calibrate it on a data set, by medfedpure calibrate or "
            "chain.calibrate(medfedpure.create('dataset', 'image_folder', ...).read())"
        )
    if grouping is not None and key_file is None:
        raise ConfigError(f"verdicts by {grouping.by} need the pseudonyms of the rows: name a key file")
    if engine is not None and (maps is not None or also):
        raise ConfigError("an engine hands over rows and no images: leave out the engine, or maps and who listens")
    columns = columns_for(chain, maps=maps is not None)
    table = None if grouping is None else grouping.place(Path(out))
    kept_alone = [maps, *(one.path for one in also)]
    rows_alone = format == "parquet"
    check_apart([*kept_alone, *([out] if rows_alone else [])], [table, key_file, *([] if rows_alone else [out])])
    own = Own([out, key_file, table])
    files = [path for path in Own(kept_alone).without(files_of(inputs, is_scan)) if path not in own]
    tally = Tally(len(files))
    names = None if key_file is None else Pseudonyms.from_file(Path(key_file))
    spoken = " ".join([made_by, *_settings(target_fpr, shown, names)]).strip()
    retried = {name_of(path) for path in files} if retry_errors else ()
    rows_of = kept_as(format, out, columns, spoken, retried)
    listeners = [*also, *([] if maps is None else [Maps(maps)])]
    decoder = FileDecoder(chain.image_facts, names, shown)
    lacking: list[tuple[Path, MissingExtraError]] = []
    make_folder(Path(out).parent)
    with ExitStack() as closed, locked(out, "the writing of verdicts"):
        with rows_of as kept:
            for one in listeners:
                closed.enter_context(locked(one.path, "what is kept of images"))
            wanted = [path for path in files if name_of(path) not in kept.done]
            tally.before = len(files) - len(wanted)
            if engine is None:
                found = closed.enter_context(closing(decoded(wanted, decoder.read, workers, 2 * batch_size)))
                left = _left(track(found, "verdicts", len(wanted)), kept, tally, lacking)
                while batch := list(islice(left, batch_size)):
                    said, rows = verdicts(chain, batch, seed, target_fpr, maps is not None)
                    for one in listeners:
                        one.judged(batch, said, rows)
                    kept.write(rows)
                    tally.count(rows)
            else:
                how = How(seed, target_fpr, batch_size, workers, None if key_file is None else Path(key_file), shown)
                asked = [Asked(path, frozenset(kept.begun.get(name_of(path), ()))) for path in wanted]
                answers = closed.enter_context(closing(engine.answers(asked, how)))
                for rows in _answered(answers, wanted, tally, lacking):
                    kept.write(rows)
                    tally.count(rows)
        if grouping is not None and table is not None:
            classes = sum(head.startswith("probability_") for head in columns)
            grouping.write(table, rows_of.rows(), classes, chain.image_facts.class_names)
    if lacking:
        path, error = lacking[0]
        raise MissingExtraError(
            f"{len(lacking)} files have no row for want of a package, the first of them {path}: {error}. "
            f"{tally.describe()}; once it is installed, the same call goes on"
        )
    return tally


def _settings(target_fpr: float | None, shown: Shown, names: Pseudonyms | None) -> list[str]:
    """What rows depend on besides the defence, where it is not the usual; of a key what tells it from others."""
    told = [] if target_fpr is None else [f"target_fpr={target_fpr:g}"]
    return [*told, *shown.told(), *([] if names is None else [f"key={names.of('')[:8]}"])]


def columns_for(chain: DefendedClassifier, *, maps: bool = False) -> dict[str, type]:
    """The columns of a row of `predict_files`, with the types of their values.

    Args:
        chain: that speaks.
        maps: whether its detector has to draw suspicion maps.

    Raises:
        ConfigError: it draws none.
    """
    said = _trial(chain, maps)
    if maps and said.suspicion_map is None:
        spoken = "no detector" if chain.detector is None else f"the detector {chain.detector.name!r}"
        raise ConfigError(f"maps were asked for, and this defence has {spoken}, which draws none: leave them out")
    verdict = {head: type(values[0]) for head, values in said.columns().items() if head != "image"}
    made: dict[str, type] = {}
    for head, kind in verdict.items():
        made |= {head: kind, WHY: str} if head == "flagged" else {head: kind}
    who = dict.fromkeys(WHO, str)
    return {KEY: str, FRAME: int, FRAMES: int, **who, **made, ERROR: str, MADE_BY: str}


def heads_for(chain: DefendedClassifier) -> list[str]:
    """The columns of a verdict of this defence alone, those of a file's name and of an error around them."""
    return [head for head in columns_for(chain) if head not in (FRAME, FRAMES, *WHO)]


def _trial(chain: DefendedClassifier, maps: bool = False) -> Prediction:
    """What it says of a black image."""
    assert chain.image_facts is not None
    return chain.predict(torch.zeros(1, *chain.image_facts.image_shape), seed=0, explain=maps)


def _left(
    found: Iterable[tuple[Path, Frames | DataError | MissingExtraError]],
    kept: Kept,
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
            yield Judged.unread(path, frames)
        else:
            tally.dim += frames.dim
            yield from (Judged(path, place, frames) for place in kept.left(name_of(path), len(frames)))


def _answered(
    groups: Iterable[Sequence[Answer]],
    wanted: Sequence[Path],
    tally: Tally,
    lacking: list[tuple[Path, MissingExtraError]],
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each group of an engine's answers, and the files that have none; counts them."""
    left = track(wanted, "verdicts", len(wanted))
    for answers in groups:
        rows: list[dict[str, Any]] = []
        for answer, path in zip(answers, left, strict=False):  # in this order: the last file waits for its answer
            if answer.lacking is not None:
                lacking.append((path, MissingExtraError(answer.lacking)))
                continue
            tally.read += 1
            tally.failed += any(row[ERROR] is not None for row in answer.rows)
            tally.dim += answer.dim
            rows += answer.rows
        yield rows
    next(left, None)  # the last one is done


def verdicts(
    chain: DefendedClassifier, batch: Sequence[Judged], seed: int | None, target_fpr: float | None, maps: bool = False
) -> tuple[Prediction | None, list[dict[str, Any]]]:
    """What the defence says of those that have frames, and a row for each, in order.

    Args:
        chain: that is asked.
        batch: images, and files that could not be read.
        seed: of the noise; None draws one.
        target_fpr: another false-positive rate than the calibrated one.
        maps: whether the suspicion maps of flagged images are wanted.
    """
    images = [(one, one.frames.image(one.place)) for one in batch if one.frames is not None and one.place is not None]
    found: Prediction | None = None
    why: list[str | None] = []
    if images:
        pixels = torch.stack([image for _, image in images])
        ids = torch.tensor([derive_seed("file", name_of(one.path), one.place or 0) for one, _ in images])
        wanted: Literal["none", "flagged"] = "flagged" if maps else "none"
        found, why = predicted(chain, pixels, ids, seed, target_fpr=target_fpr, maps=wanted)
    said = iter(() if found is None else zip(found.rows(), why, strict=True))
    rows = []
    for one in batch:
        row: dict[str, Any] = {KEY: name_of(one.path), ERROR: one.error} | dict(zip(WHO, one.who, strict=True))
        if one.frames is not None:
            verdict, reason = next(said)
            row |= {FRAME: one.place, FRAMES: len(one.frames), WHY: reason}
            row |= dict(zip(WHO, (one.frames.patient, one.frames.study), strict=True)) | verdict
        rows.append({key: value for key, value in row.items() if key != "image"})
    return found, rows
