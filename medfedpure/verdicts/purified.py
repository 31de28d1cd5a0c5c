"""What the classifier read of every image that was purified, as a file that lies where its source lies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medfedpure.core.disk.whole import make_folder, put_bytes, write_bytes, writing_to
from medfedpure.core.errors import ArtifactError, ConfigError, DataError
from medfedpure.core.results import Prediction
from medfedpure.data.readers.derived.kinds import ENDINGS, derived
from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.folders import entries_of
from medfedpure.data.readers.nifti import Axis
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.policy import PURIFYING
from medfedpure.verdicts.files import picture_of
from medfedpure.verdicts.listening import Judged

DOCUMENT, KEY = "purified.json", "uids.key"
"""Whose images a folder holds; and the secret under which UIDs were replaced, where no other one was given."""


class Purified:
    """Writes what the classifier read of each image that was purified: PNG of pictures, derived DICOM, NIfTI slices.

    Of an image that was not purified nothing is written, and what an ended call left of it is taken away. Where several
    purifications were voted on, it is the first.

    Args:
        path: of the folder, made where it is missing, for its owner only.
        chain: the defence.
        made_by: which it is.
        key_file: the secret under which the rows name patients, and so do these DICOM files; by default one in the
            folder, and nobody is named.
        axis: that NIfTI volumes are cut across.

    Raises:
        ConfigError: a defence that purifies nothing, or does not say what images it is for.
        ArtifactError: the folder cannot be made or written, or holds anything else, or files of another defence or
            under another key.
        DataError: a key that cannot be read; later, a source that cannot be read any more.
    """

    def __init__(
        self,
        path: str | Path,
        chain: DefendedClassifier,
        *,
        made_by: str = "",
        key_file: str | Path | None = None,
        axis: Axis = "axial",
    ) -> None:
        if chain.policy not in PURIFYING or chain.purifier is None or chain.image_facts is None:
            raise ConfigError(
                f"a defence of policy {chain.policy!r} purifies no file, so there is nothing to save: leave this out, "
                f"or take one whose policy is {' or '.join(PURIFYING)} and that was calibrated on a data set"
            )
        self.path, self._axis = Path(path), axis
        self._deep = chain.image_facts.top > 255
        self._by = f"purified by {chain.purifier.name}"
        self._draws = f", the first of {chain.vote.draws} draws" if chain.vote.draws > 1 else ""
        self._defence, self._named = made_by, key_file is not None
        self._open()
        self._pseudonyms = Pseudonyms.from_file(self.path / KEY if key_file is None else Path(key_file))
        self._claim()

    def judged(self, batch: Sequence[Judged], found: Prediction | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write those of one batch that were purified."""
        del rows
        if found is None:
            return
        told = [one for one in batch if one.frames is not None]
        said = (found.purified.tolist(), found.strength.tolist(), found.trace.nfe.tolist(), found.images.cpu())
        for one, purified, strength, nfe, square in zip(told, *said, strict=True):
            if purified:
                self._write(one, square, f"{self._by} at strength {strength:.3f}, {nfe} evaluations{self._draws}")
            else:
                self._remove(one, ENDINGS)

    def _open(self) -> None:
        if not self.path.exists():
            make_folder(self.path.parent)
            with writing_to(self.path):
                self.path.mkdir(mode=0o700, exist_ok=True)
        make_folder(self.path)
        try:
            there = {path.name for path in entries_of(self.path)} - {KEY}
        except DataError as error:
            raise ArtifactError(f"{error}: name another folder for purified images") from error
        if there and DOCUMENT not in there:
            raise ArtifactError(
                f"{self.path} holds something else than purified images, such as {min(there)}: name another folder"
            )

    def _claim(self) -> None:
        """Say whose files these are, or see that they are ours: one name stands for one image of one defence."""
        document, mine = self.path / DOCUMENT, {"defence": self._defence, "key": self._pseudonyms.of(DOCUMENT)}
        if not document.exists():
            write_bytes(document, json.dumps(mine).encode(), mode=0o600)
            return
        try:
            known = json.loads(document.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{document} cannot be read ({error}): name another folder") from error
        if known != mine:
            same = isinstance(known, dict) and known.get("defence") == self._defence
            differs = "this defence under another key" if same else "another defence"
            raise ArtifactError(f"{self.path} holds purified images of {differs}: name another folder")

    def _write(self, one: Judged, square: Any, told: str) -> None:
        assert one.frames is not None
        assert one.place is not None
        stem = _stem(one.path, one.place)
        told = (
            f"{told}; defence {self._defence or 'unnamed'}; grey as the defence shows it, resampled to "
            f"{square.shape[1]} pixels and cut to the picture; for a classifier, not for diagnosis"
        )
        patient = one.frames.patient if self._named else None
        maker = Maker(told, version("medfedpure"), stem, self._pseudonyms, patient)
        try:
            ending, content = derived(one.path, one.place, square, self._deep, maker, self._axis)
        except DataError as error:
            raise DataError(f"{error}; the rows so far are kept, and the same call goes on without it") from error
        self._remove(one, [other for other in ENDINGS if other != ending])
        put_bytes(self.path / (stem + ending), content)

    def _remove(self, one: Judged, endings: Sequence[str]) -> None:
        stem = _stem(one.path, one.place or 0)
        for ending in endings:
            place = self.path / (stem + ending)
            with writing_to(place):
                place.unlink(missing_ok=True)


def purified_of(folder: Path, path: Path, place: int) -> Path | None:
    """The file that `Purified` wrote of an image of a file, if it did."""
    stem = _stem(path, place)
    return next((found for ending in ENDINGS if (found := folder / (stem + ending)).is_file()), None)


def _stem(path: Path, place: int) -> str:
    """As a suspicion map of the same image is named."""
    return picture_of(path, place).removesuffix(".png")
