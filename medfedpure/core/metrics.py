"""Figures of merit, in torch. Every rate is a share in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medfedpure.core.checks import check_labels
from medfedpure.core.errors import InputError


@dataclass(frozen=True)
class ClassificationFigures:
    """Of predicted against true labels.

    Attributes:
        balanced_accuracy: mean recall over the classes that occur.
        accuracy: share of right answers.
        sensitivity: recall of the positive (last) class; NaN where it does not occur.
        specificity: share of all other images that are not called positive; NaN where there is none.
        images: how many.
    """

    balanced_accuracy: float
    accuracy: float
    sensitivity: float
    specificity: float
    images: int


def classification_figures(predicted: Tensor, labels: Tensor, num_classes: int) -> ClassificationFigures:
    """Compare predictions `(N,)` int64 with labels `(N,)` int64.

    Raises:
        InputError: shapes or dtypes differ, or there is no image.
    """
    check_labels(labels, len(labels))
    check_labels(predicted, len(labels))
    if len(labels) == 0:
        raise InputError("there is no image to count")
    right = predicted == labels
    counts = torch.bincount(labels, minlength=num_classes).double()
    hits = torch.bincount(labels[right], minlength=num_classes).double()
    present = counts > 0
    positive = labels == num_classes - 1
    called = predicted == num_classes - 1
    return ClassificationFigures(
        balanced_accuracy=float((hits[present] / counts[present]).mean()),
        accuracy=float(right.double().mean()),
        sensitivity=float(called[positive].double().mean()),
        specificity=float((~called[~positive]).double().mean()),
        images=len(labels),
    )


def auroc(benign: Tensor, suspicious: Tensor) -> float:
    """P(score of a suspicious image > score of a benign one), ties counted half.

    Args:
        benign: `(n,)` scores; higher = more suspicious.
        suspicious: `(m,)` scores.

    Raises:
        InputError: one of them is empty.
    """
    if benign.numel() == 0 or suspicious.numel() == 0:
        raise InputError(f"AUROC needs scores of both kinds; got {benign.numel()} and {suspicious.numel()}")
    ordered = benign.double().sort().values
    below = torch.searchsorted(ordered, suspicious.double(), side="left")
    not_above = torch.searchsorted(ordered, suspicious.double(), side="right")
    return float((below + not_above).double().mean() / (2 * benign.numel()))


def true_positive_rate(benign: Tensor, suspicious: Tensor, fpr: float) -> float:
    """Largest share of suspicious images above a threshold that at most `fpr` of the benign ones exceed."""
    if not 0 <= fpr < 1:
        raise InputError(f"fpr must lie in [0, 1); got {fpr}")
    ordered = benign.double().sort(descending=True).values
    threshold = ordered[int(fpr * len(ordered))]
    return float((suspicious.double() > threshold).double().mean())
