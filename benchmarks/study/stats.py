"""Figures of what was measured: folds pooled, every image once, in pairs where two arms are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.study.how import How
from medfedpure.figures.balanced import balanced, balanced_difference, balanced_interval
from medfedpure.figures.intervals import cluster_bootstrap

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """What one arm said of images of one data set.

    Attributes:
        ids, labels, groups: `(N,)` int64.
        right: `(N,)` float64, the share of draws that are right.
        fooled: `(N,)` float64, the share that is accepted and wrong; empty where it was not kept.
    """

    ids: Tensor
    labels: Tensor
    groups: Tensor
    right: Tensor
    fooled: Tensor

    def at(self, ids: Iterable[int]) -> Answers:
        """Of these images alone, in their order."""
        place = {name: where for where, name in enumerate(self.ids.tolist())}
        rows = torch.tensor([place[name] for name in ids], dtype=torch.int64)
        fooled = self.fooled[rows] if len(self.fooled) else self.fooled
        return Answers(self.ids[rows], self.labels[rows], self.groups[rows], self.right[rows], fooled)

    @property
    def value(self) -> float:
        """Balanced accuracy."""
        return balanced(self.right, self.labels)

    def interval(self) -> tuple[float, float]:
        """95 % of the balanced accuracy, over groups."""
        whole = bool(((self.right == 0) | (self.right == 1)).all())
        found = balanced_interval(self.right.bool() if whole else self.right, self.labels, self.groups)
        assert found is not None
        return found

    def recall(self, label: int) -> float:
        """Share of the images of a class that are right."""
        return float(self.right[self.labels == label].mean())


@dataclass(frozen=True)
class Difference:
    """Of two balanced accuracies on the same images, and its 95 % interval."""

    value: float
    low: float
    high: float
    images: int
    groups: int


def difference(one: Answers, other: Answers) -> Difference:
    """One less the other, on the images that both were asked about."""
    known = set(other.ids.tolist())
    ids = [name for name in one.ids.tolist() if name in known]
    first, second = one.at(ids), other.at(ids)
    whole = all(bool(((own.right == 0) | (own.right == 1)).all()) for own in (first, second))
    groups = len(first.groups.unique())
    if whole:
        found = balanced_difference(first.right.bool(), second.right.bool(), first.labels, first.groups)
        assert found is not None
        low, high = found
    else:  # shares of draws are no counts: groups are drawn again
        gap = first.right - second.right

        def drawn(rows: Tensor) -> float:
            complete = len(first.labels[rows].unique()) == len(first.labels.unique())
            return balanced(gap[rows], first.labels[rows]) if complete else float("nan")

        low, high = cluster_bootstrap(drawn, first.groups)
    return Difference(first.value - second.value, low, high, len(ids), groups)


def gap(one: Answers | None, other: Answers | None) -> Difference | None:
    """Their difference in pairs; None where one is not measured, or no image is common to both."""
    if one is None or other is None or not set(one.ids.tolist()) & set(other.ids.tolist()):
        return None
    return difference(one, other)


def area_interval(areas: Sequence[float], attacked: Sequence[int], benign: Sequence[int]) -> tuple[float, float]:
    """95 % of the mean of areas under ROC curves, one a fold (Hanley and McNeil 1982, 10.1148/radiology.143.1.7063747).

    The variance of an area A over n attacked and m benign images is
    (A (1 - A) + (n - 1) (A / (2 - A) - A^2) + (m - 1) (2 A^2 / (1 + A) - A^2)) / (n m).

    Args:
        areas: of the folds.
        attacked, benign: images of each fold, one of each group.
    """
    variance = 0.0
    for area, n, m in zip(areas, attacked, benign, strict=True):
        square = area * area
        spread = (n - 1) * (area / (2 - area) - square) + (m - 1) * (2 * square / (1 + area) - square)
        variance += (area * (1 - area) + spread) / (n * m)
    middle, half = sum(areas) / len(areas), 1.96 * math.sqrt(variance) / len(areas)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Results:
    """The JSON of one size of the study."""

    folder: Path
    how: How

    def read(self, place: str, name: str) -> Document | None:
        """One unit; None where it is not done."""
        path = self.folder / self.how.name / place / f"{name}.json"
        if not path.exists():
            return None
        found: Document = json.loads(path.read_text(encoding="utf-8"))
        return found

    def folds(self, name: str) -> dict[str, Document]:
        """Of the folds of Br35H, by place, those where a unit is done."""
        places = [f"br35h_fold_{number}" for number in self.how.folds]
        found = {place: self.read(place, name) for place in places}
        return {place: document for place, document in found.items() if document is not None}

    def answers(
        self, found: Mapping[str, Document], pick: Callable[[Document], Document], part: str = "test"
    ) -> Answers:
        """Pooled over places of one data set.

        Args:
            found: by place.
            pick: of a document, what has ids, right and draws.
            part: whose labels and groups are taken.
        """
        rows: list[tuple[int, int, int, float, float]] = []
        for place, document in found.items():
            own = pick(document)
            images = self.read(place, "images")
            assert images is not None
            labels, groups = (_by_id(images[part], key) for key in ("labels", "groups"))
            draws, fooled = own.get("draws", 1), own.get("fooled", "0" * len(own["right"]))
            for name, right, wrong in zip(numbers(own["ids"]), own["right"], fooled, strict=True):
                rows.append((name, labels[name], groups[name], int(right) / draws, int(wrong) / draws))
        ids, label, group, right, wrong = (list(column) for column in zip(*rows, strict=True))
        whole = [torch.tensor(column, dtype=torch.int64) for column in (ids, label, group)]
        share = [torch.tensor(column, dtype=torch.float64) for column in (right, wrong)]
        return Answers(*whole, *share)

    def clean(self, arm: str) -> Answers | None:
        """All test images of the folds that are done."""
        found = self.folds(f"static_{arm}")
        return self.answers(found, answers_of("clean")) if found else None

    def paper(self, arm: str) -> Answers | None:
        """One image of each group under the paper's attack."""
        found = self.folds(f"static_{arm}")
        return self.answers(found, answers_of("paper")) if found else None

    def unattacked(self, arm: str) -> Answers | None:
        """The images of the ladder, not attacked."""
        found = self.folds(f"ladder_{arm}")
        return self.answers(found, unattacked) if found else None

    def worst(self, arm: str, eps: float) -> Answers | None:
        """One image of each group, or fewer, in the worst case of the ladder."""
        found = {
            place: document for place, document in self.folds(f"ladder_{arm}").items() if key(eps) in document["worst"]
        }
        return self.answers(found, lambda document: worst(document, eps)) if found else None


def answers_of(kind: str) -> Callable[[Document], Document]:
    """What is taken of a document: its images "clean" or under the "paper" attack."""
    return lambda document: document[kind]


def unattacked(document: Document) -> Document:
    """What a ladder's first draw says of its images before they are attacked."""
    return {"ids": document["ids"], "right": document["clean"]}


def worst(document: Document, eps: float) -> Document:
    """The worst case of a ladder at an eps, with the ids of its images."""
    return {"ids": document["ids"], **document["worst"][key(eps)]}


def key(eps: float) -> str:
    """What the worst case of an eps is kept under."""
    return f"{eps:.4g}"


def numbers(line: str) -> list[int]:
    """Whole numbers of a line."""
    return [int(word) for word in line.split()]


def _by_id(images: Document, name: str) -> dict[int, int]:
    return dict(zip(numbers(images["ids"]), numbers(images[name]), strict=True))
