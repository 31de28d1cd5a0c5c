"""`predict_files`: scans in, a row for each of them out, in constant memory, to be continued at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.errors import ConfigError, DataError
from medfedpure.core.progress import track
from medfedpure.core.storage import locked
from medfedpure.core.streams import derive_seed
from medfedpure.data.readers.images import Decoder, is_image
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.verdicts.files import files_of, name_of
from medfedpure.verdicts.sheet import KEY, MADE_BY, Format, Sheet


@dataclass
class Tally:
    """What became of the files.

    Attributes:
        files: that were named.
        before: whose rows were there already.
        read: that were read now.
        failed: of these, that could not be read.
        flagged, abstained: of these, as the defence says.
    """

    files: int = 0
    before: int = 0
    read: int = 0
    failed: int = 0
    flagged: int = 0
    abstained: int = 0

    def describe(self) -> str:
        """One line for people."""
        before = f", {self.before} of them done before" if self.before else ""
        told = f"{self.files} files{before}: {self.flagged} flagged, {self.abstained} without a verdict"
        return f"{told}, {self.failed} could not be read" + ("; counts are of this time" if self.before else "")


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
) -> Tally:
    """Write what a defence says of every file, a row each.

    Rows come as they are finished, in the order of the files, and are on the disk batch by batch. Ended before the
    last, the same call goes on: files that have a row get no second one. Files are decoded beside the computing.

    Args:
        chain: it knows what images it is for, as every defence that was calibrated on a data set does.
        inputs: files, folders or patterns; see `medfedpure.verdicts.files.files_of`.
        out: the file of rows; one that is there is continued.
        format: "csv", or "jsonl", an object a line.
        made_by: which defence it is, written into every row.
        seed: of the noise, which is each file's own; by default drawn from the operating system.
        target_fpr: another false-positive rate than the calibrated one.
        batch_size: images at a time.
        workers: threads that decode; by default as many as there are processors, at most 8.

    Raises:
        ConfigError: inputs that lead to no file, a defence that does not say what images it is for.
        ArtifactError: `out` holds something else, or somebody else writes to it.
    """
    if chain.image_facts is None:
        raise ConfigError(
            "this defence does not say what images it is for: calibrate it on a data set, as in "
            "chain.calibrate(medfedpure.create('dataset', 'image_folder', ...).read())"
        )
    files = files_of(inputs, is_image)
    tally = Tally(len(files))
    decode = decoder_for(chain.image_facts)
    with locked(out, "the writing of verdicts"), Sheet(out, heads_for(chain), format, made_by) as sheet:
        wanted = [path for path in files if name_of(path) not in sheet.done]
        tally.before = len(files) - len(wanted)
        pairs = track(decoded(wanted, decode, workers, 2 * batch_size), "verdicts", len(wanted))
        while batch := list(islice(pairs, batch_size)):
            rows = verdicts(chain, batch, seed, target_fpr)
            sheet.write(rows)
            tally.read += len(rows)
            tally.failed += sum(row["error"] is not None for row in rows)
            tally.flagged += sum(bool(row.get("flagged")) for row in rows)
            tally.abstained += sum(bool(row.get("abstained")) for row in rows)
    return tally


def heads_for(chain: DefendedClassifier) -> list[str]:
    """The columns of the rows of this defence."""
    assert chain.image_facts is not None
    found = chain.predict(torch.zeros(1, *chain.image_facts.image_shape), seed=0).columns()
    return [KEY, *(name for name in found if name != "image"), "error", MADE_BY]


def decoder_for(facts: ImageFacts) -> Callable[[Path], Tensor]:
    """From a file to `(C, S, S)` float32 in [0, 1], as the images were read that the defence was fitted on.

    Raises:
        ConfigError: the defence is for images that no file is read as.
    """
    channels, height, width = facts.image_shape
    if height != width or channels not in (1, 3):
        raise ConfigError(f"files are read as squares, grey or RGB; this defence is for {facts.describe()}")
    deep = facts.top > 255
    scaled = deep and facts.top < 65535 and facts.top & (facts.top + 1) == 0
    decoder = Decoder(height, channels, facts.top.bit_length() if scaled else None, 16 if deep else 8)
    top = 65535.0 if deep else 255.0
    return lambda path: decoder.read(path).float().div_(top)


def decoded(
    files: Iterable[Path], decode: Callable[[Path], Tensor], workers: int | None, ahead: int
) -> Iterator[tuple[Path, Tensor | str]]:
    """Every file and its image, or why there is none, in order; so many at most are decoded ahead of their use."""
    waiting: list[tuple[Path, Future[Tensor]]] = []
    left = iter(files)
    with ThreadPoolExecutor(max_workers=workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            while True:
                for path in islice(left, ahead - len(waiting)):
                    waiting.append((path, pool.submit(decode, path)))
                if not waiting:
                    return
                path, future = waiting.pop(0)
                try:
                    yield path, future.result()
                except DataError as error:
                    yield path, str(error)
        finally:
            for _, future in waiting:
                future.cancel()


def verdicts(
    chain: DefendedClassifier, batch: Sequence[tuple[Path, Tensor | str]], seed: int | None, target_fpr: float | None
) -> list[dict[str, Any]]:
    """A row for each file, in order."""
    images = [(path, image) for path, image in batch if isinstance(image, Tensor)]
    said: dict[Path, dict[str, Any]] = {}
    if images:
        found = chain.predict(
            torch.stack([image for _, image in images]),
            ids=torch.tensor([derive_seed("file", name_of(path)) for path, _ in images]),
            seed=seed,
            target_fpr=target_fpr,
            batch_size=len(images),
        )
        said = {path: row for (path, _), row in zip(images, found.rows(), strict=True)}
    rows = []
    for path, image in batch:
        row = {key: value for key, value in said.get(path, {}).items() if key != "image"}
        rows.append({KEY: name_of(path), **row, "error": image if isinstance(image, str) else None})
    return rows
