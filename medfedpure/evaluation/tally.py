"""Counts and figures of what a defence said: right, fooled, balanced accuracy, and what its score tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.config import Record
from medfedpure.core.verdict import ABSTAINED
from medfedpure.evaluation.readings import Count, Reading
from medfedpure.figures.balanced import balanced, balanced_interval
from medfedpure.figures.metrics import auroc, true_positive_rate


class Figure(Record):
    """An estimate and its 95 % interval; without one where there is a single group."""

    value: float
    low: float | None = None
    high: float | None = None


class Tally:
    """Figures of readings of the same images; equal ones are bootstrapped once.

    An image that a reading is not of counts there as nothing has happened to it: right, and not fooled.

    Args:
        labels: `(N,)` int64; readings may be of the first few of these images, or of some (`Reading.places`).
        groups: `(N,)` int64.
        findings: numbers of the classes that are a finding.
    """

    def __init__(self, labels: Sequence[int], groups: Sequence[int], findings: Sequence[int]) -> None:
        self.labels, self.groups = torch.tensor(labels), torch.tensor(groups)
        self.findings = torch.tensor(findings, dtype=torch.int64)
        self.known: dict[tuple[bytes, ...], Figure] = {}

    def right(self, readings: Sequence[Reading], count: Count = "one draw") -> Tensor:
        """`(N,)` bool: right in every reading; nowhere without readings."""
        if not readings:
            return torch.zeros(len(self.labels), dtype=torch.bool)
        return self._all(readings, [reading.right(reading.own(self.labels), count) for reading in readings])

    def fooled(self, readings: Sequence[Reading]) -> Tensor:
        """`(N,)` bool: accepted and wrong in one reading or more."""
        if not readings:
            return torch.zeros(len(self.labels), dtype=torch.bool)
        return ~self._all(readings, [~reading.fooled(reading.own(self.labels)) for reading in readings])

    def recalls(self, readings: Sequence[Reading]) -> tuple[float | None, float | None]:
        """Sensitivity and specificity where every reading has to be right; None where no such image is there."""
        if not readings or not self.findings.numel():
            return None, None
        called = [torch.tensor(reading.verdicts[0]) for reading in readings]
        found = [torch.isin(said, self.findings) for said in called]
        yes = self._all(readings, found)
        no = self._all(readings, [~held & (said != ABSTAINED) for held, said in zip(found, called, strict=True)])
        own = torch.isin(self.labels[: len(yes)], self.findings)
        return share(yes[own].tolist()), share(no[~own].tolist())

    def of(self, reading: Reading) -> tuple[Tally, Reading]:
        """The same of the images of one reading alone, and the reading as one of all of these."""
        if reading.places is None:
            return self, reading
        labels, groups = (reading.own(values).tolist() for values in (self.labels, self.groups))
        return Tally(labels, groups, self.findings.tolist()), reading.model_copy(update={"places": None})

    def _all(self, readings: Sequence[Reading], values: Sequence[Tensor]) -> Tensor:
        """Where what holds of each reading's images holds in every reading that an image is in."""
        partial = any(reading.places is not None for reading in readings)
        found = torch.ones(len(self.labels) if partial else len(readings[0].flagged), dtype=torch.bool)
        for reading, own in zip(readings, values, strict=True):
            at = torch.arange(len(own)) if reading.places is None else torch.tensor(reading.places, dtype=torch.int64)
            found[at] &= own
        return found

    def figure(self, right: Tensor) -> Figure:
        """Balanced accuracy of `(N,)` bool with its interval."""
        key = (bytes(right.tolist()),)
        if key not in self.known:
            labels, groups = self.labels[: len(right)], self.groups[: len(right)]
            low, high = balanced_interval(right, labels, groups) or (None, None)
            self.known[key] = Figure(value=balanced(right, labels), low=low, high=high)
        return self.known[key]


def detection(clean: Reading, attacked: Reading, chosen: Tensor) -> dict[str, Any]:
    """How well the score tells chosen attacked images, `(N,)` bool, from benign ones."""
    if clean.scores is None or attacked.scores is None:
        return {}
    benign, suspicious = torch.tensor(clean.scores), torch.tensor(attacked.scores)[chosen]
    if not suspicious.numel():
        return {"scored": 0}
    return {
        "scored": suspicious.numel(),
        "auroc": auroc(benign, suspicious),
        "tpr_at_1_fpr": true_positive_rate(benign, suspicious, 0.01),
        "tpr_at_5_fpr": true_positive_rate(benign, suspicious, 0.05),
    }


def share(flags: Sequence[bool]) -> float | None:
    """Of those that hold; None of nothing."""
    return sum(flags) / len(flags) if flags else None


def flat(record: Record) -> dict[str, Any]:
    """A record as one row: figures as three columns, recalls as one for each class, lists joined."""
    found: dict[str, Any] = {}
    for name, info in type(record).model_fields.items():
        value = getattr(record, name)
        if isinstance(value, Figure) or "Figure" in str(info.annotation):
            found |= {name: getattr(value, "value", None)}
            found |= {f"{name}_{end}": getattr(value, end, None) for end in ("low", "high")}
        elif isinstance(value, dict):
            found |= {f"recall {key}": own for key, own in value.items()}
        else:
            found[name] = " + ".join(value) if isinstance(value, list) else value
    return found
