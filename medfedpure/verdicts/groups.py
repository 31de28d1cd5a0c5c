"""Verdicts of patients or studies from those of their images, made anew of all rows, a group's counts at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from medfedpure.core.errors import ConfigError
from medfedpure.core.rows.table import columns_of, csv_text
from medfedpure.core.storage import write_bytes
from medfedpure.verdicts.decoding import NO_PICTURE
from medfedpure.verdicts.formats import ENDINGS
from medfedpure.verdicts.kept import ERROR

By = Literal["patient", "study"]
Combine = Literal["worst", "mean", "vote"]


@dataclass(frozen=True)
class Grouping:
    """Of whom verdicts are made, and how.

    worst: the verdict of the image that is most probably of the last class, and its probabilities. The group is
        flagged where any image is.
    mean: probabilities are the mean over images, the class is the most probable one.
    vote: probabilities are the shares of images of each class, the class is the largest one, of equal ones the last.

    Under mean and vote the group is flagged where more than half of its images are. Images without a verdict, those
    that abstained, have no say in class and probabilities, whatever the way, and have one in whether the group is
    flagged; a group of none but these has no class, and one of no image that could be read is not said to be unflagged
    either. Rows of no patient or study, as of pictures, NIfTI and files that do not say whose they are, belong to
    nobody: they are counted in a last row without a name, and get no class.
    Reports, plans and what else holds no picture are counted apart from files that could not be read.

    Args:
        by: "patient" or "study": pseudonyms, which only a key gives.
        combine: "worst", "mean" or "vote".

    Raises:
        ConfigError: neither of these.
    """

    by: By
    combine: Combine = "worst"

    def __post_init__(self) -> None:
        for value, known in ((self.by, get_args(By)), (self.combine, get_args(Combine))):
            if value not in known:
                raise ConfigError(f"verdicts of images are joined as {', '.join(known)}; got {value!r}")

    def place(self, out: Path) -> Path:
        """Where the table goes: beside the rows, "verdicts.csv" to "verdicts.patient.csv"."""
        stem = out.stem if out.suffix.casefold() in ENDINGS else out.name
        return out.with_name(f"{stem}.{self.by}.csv")

    def write(self, path: Path, rows: Iterable[Mapping[str, Any]], classes: int, names: tuple[str, ...]) -> int:
        """Write the table, whole or not at all; how many groups it has, nobody's row not counted.

        Args:
            path: of a CSV file; one that is there is replaced.
            rows: of images, typed, in any order.
            classes: K.
            names: of the classes, or ().

        Raises:
            ArtifactError: it cannot be written.
        """
        groups: dict[str, _Group] = {}
        nobody = _Group(classes)
        for row in rows:
            who = row[self.by]
            (nobody if not who else groups.setdefault(who, _Group(classes))).add(row)
        verdict = [*_verdict_of(classes, names), "flagged"]
        told = [self._row(who, group, names) for who, group in groups.items()]
        if nobody.images or nobody.errors or nobody.no_picture:
            told.append({**self._row("", nobody, names), **dict.fromkeys(verdict)})
        table = columns_of(told, [self.by, *verdict, *_COUNTS, "combined"])
        write_bytes(path, csv_text(table).encode(errors="backslashreplace"))
        return len(groups)

    def _row(self, who: str, group: _Group, names: tuple[str, ...]) -> dict[str, Any]:
        said = group.said(self.combine)
        row: dict[str, Any] = {self.by: who, **dict.fromkeys(_verdict_of(group.classes, names))}
        if said is not None:
            label, shares = said
            row |= {"label": label} | ({"class": names[label]} if names else {})
            row |= {f"probability_{k}": share for k, share in enumerate(shares)}
        half = 0 if self.combine == "worst" else group.images / 2
        counts = {name: getattr(group, name) for name in _COUNTS}
        flagged = group.flagged_images > half if group.images else None
        return {**row, "flagged": flagged, **counts, "combined": self.combine}


_COUNTS = ("images", "flagged_images", "abstained_images", "errors", "no_picture")


def _verdict_of(classes: int, names: tuple[str, ...]) -> list[str]:
    """The columns of a verdict."""
    return ["label", *(["class"] if names else []), *(f"probability_{k}" for k in range(classes))]


@dataclass
class _Group:
    """What is kept of a group's images, however many they are."""

    classes: int
    images: int = 0
    flagged_images: int = 0
    abstained_images: int = 0
    errors: int = 0
    no_picture: int = 0
    label: int | None = None
    best: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    votes: Counter[int] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row."""
        if row[ERROR]:
            self.no_picture += row[ERROR] == NO_PICTURE
            self.errors += row[ERROR] != NO_PICTURE
            return
        self.images += 1
        self.flagged_images += bool(row["flagged"])
        if row["abstained"]:
            self.abstained_images += 1
            return
        said = [float(row[f"probability_{k}"]) for k in range(self.classes)]
        self.votes[row["label"]] += 1
        if not self.best or said[-1] > self.best[-1]:
            self.best, self.label = said, row["label"]
        self.total = [a + b for a, b in zip(self.total or [0.0] * self.classes, said, strict=True)]

    def said(self, combine: Combine) -> tuple[int, list[float]] | None:
        """Class and probabilities; None where no image has a verdict."""
        count = self.votes.total()
        if self.label is None:
            return None
        if combine == "worst":
            return self.label, self.best
        shares = [self.votes[k] for k in range(self.classes)] if combine == "vote" else self.total
        shares = [share / count for share in shares]
        # Of equal votes the last class, as the one that is looked for; of equal means the first, as of an image.
        places = range(self.classes)
        label = max(places, key=lambda k: (shares[k], k)) if combine == "vote" else max(places, key=lambda k: shares[k])
        return label, shares
