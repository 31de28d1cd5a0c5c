"""What a page of verdicts needs of the rows: counts, and the few most suspicious ones, however many rows there are."""

from __future__ import annotations

import heapq
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from medfedpure.core.errors import InputError
from medfedpure.defence.calibration import Calibration
from medfedpure.verdicts.kept import ERROR, FRAME, KEY, MADE_BY

MOST_SHOWN = 20
_MOST_REASONS = 100
_NUMBERS = re.compile(r"\d+")
OTHER_REASON = "other reasons"


@dataclass
class Class:
    """Of images of one verdict: how many, and how many of these were flagged, purified, left without a verdict."""

    images: int = 0
    flagged: int = 0
    purified: int = 0
    abstained: int = 0


@dataclass
class Reason:
    """Of files that could not be read for one reason: how many, and one of them."""

    files: int = 0
    example: str = ""


@dataclass
class Counts:
    """What became of the rows.

    Args:
        edges: scores, ascending, between which images are counted; of a calibration, `edges_of`.
        shown: how many of the most suspicious rows are kept, 0 to 20.

    Attributes:
        files: that were read; a file counts by the row of its first image.
        failed: that could not be.
        images: that have a row.
        flagged, purified, abstained: of these.
        classes: by what the verdict is called.
        reasons: of failures by their text, its numbers replaced by N; after a hundred by "other reasons".
        parts: of the detector that raised a flag, where rows say it.
        bins: images by the place of their score among the edges.
        defences: that speak in the rows.

    Raises:
        InputError: more rows were asked for than a page may hold.
    """

    edges: list[float] = field(default_factory=list)
    shown: int = 12
    files: int = 0
    failed: int = 0
    images: int = 0
    flagged: int = 0
    purified: int = 0
    abstained: int = 0
    classes: dict[str, Class] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)
    parts: Counter[str] = field(default_factory=Counter)
    bins: list[int] = field(default_factory=list)
    defences: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.shown <= MOST_SHOWN:
            raise InputError(f"a page shows 0 to {MOST_SHOWN} images; {self.shown} were asked for")
        self.bins = [0] * (len(self.edges) + 1)
        self._top: list[tuple[float, int, Mapping[str, Any]]] = []

    def of(self, rows: Iterable[Mapping[str, Any]]) -> Self:
        """Count rows, one after another."""
        for number, row in enumerate(rows):
            self._add(row, number)
        return self

    def most_suspicious(self) -> list[Mapping[str, Any]]:
        """The rows of the highest scores, the highest first, of equal ones the first."""
        return [row for _, _, row in sorted(self._top, key=lambda one: (-one[0], -one[1]))]

    def _add(self, row: Mapping[str, Any], number: int) -> None:
        self.defences.setdefault(str(row.get(MADE_BY) or ""))
        if row.get(ERROR):
            self.failed += 1
            self._note(str(row[ERROR]), str(row[KEY]))
            return
        self.files += row.get(FRAME) in (None, 0)
        self.images += 1
        name = str(row["class"] if row.get("class") is not None else row["label"])
        one = self.classes.setdefault(name, Class())
        one.images += 1
        for what in ("flagged", "purified", "abstained"):
            if row.get(what):
                setattr(one, what, getattr(one, what) + 1)
                setattr(self, what, getattr(self, what) + 1)
        if row.get("flagged") and row.get("why"):
            self.parts[str(row["why"])] += 1
        if (score := row.get("score")) is not None:
            self._rank(math.inf if math.isnan(score) else float(score), number, row)

    def _rank(self, score: float, number: int, row: Mapping[str, Any]) -> None:
        self.bins[bisect_left(self.edges, score)] += 1
        held = (score, -number, dict(row))
        if len(self._top) < self.shown:
            heapq.heappush(self._top, held)
        elif self._top and held[:2] > self._top[0][:2]:
            heapq.heapreplace(self._top, held)

    def _note(self, why: str, file: str) -> None:
        text = _NUMBERS.sub("N", why)
        text = text if text in self.reasons or len(self.reasons) < _MOST_REASONS else OTHER_REASON
        reason = self.reasons.setdefault(text, Reason(example=file))
        reason.files += 1


def edges_of(calibration: Calibration | None) -> list[float]:
    """Nine scores that part those of the calibration into tenths; fewer where many are equal; none without ten."""
    if calibration is None:
        return []
    scores = calibration.scores.tolist()
    return sorted({scores[math.ceil(len(scores) * tenth / 10) - 1] for tenth in range(1, 10) if len(scores) >= 10})


def calibrated(calibration: Calibration, edges: list[float]) -> list[float]:
    """Shares of the calibration's own scores between these edges."""
    places = Counter(bisect_left(edges, score) for score in calibration.scores.tolist())
    return [places[place] / len(calibration) for place in range(len(edges) + 1)]
