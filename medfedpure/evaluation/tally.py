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

    Args:
        labels: `(N,)` int64; readings may be of the first few of these images.
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
        size = len(readings[0].flagged)
        return torch.stack([reading.right(self.labels[:size], count) for reading in readings]).all(0)

    def fooled(self, readings: Sequence[Reading]) -> Tensor:
        """`(N,)` bool: accepted and wrong in one reading or more."""
        if not readings:
            return torch.zeros(len(self.labels), dtype=torch.bool)
        size = len(readings[0].flagged)
        return torch.stack([reading.fooled(self.labels[:size]) for reading in readings]).any(0)

    def recalls(self, readings: Sequence[Reading]) -> tuple[float | None, float | None]:
        """Sensitivity and specificity where every reading has to be right; None where no such image is there."""
        if not readings or not self.findings.numel():
            return None, None
        called = torch.tensor([reading.verdicts[0] for reading in readings])
        own = torch.isin(self.labels[: called.shape[1]], self.findings)
        found = torch.isin(called, self.findings)
        yes, no = found.all(0), (~found & (called != ABSTAINED)).all(0)
        return share(yes[own].tolist()), share(no[~own].tolist())

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
