"""Figures of merit, in torch. Every rate is a share in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medfedpure.core.checks import check_labels
from medfedpure.core.errors import InputError
from medfedpure.core.verdict import ABSTAINED


@dataclass(frozen=True)
class ClassificationFigures:
    """Of predicted against true labels.

    Attributes:
        balanced_accuracy: mean recall over the classes that occur.
        accuracy: share of right answers.
        sensitivity: share of images with a finding that are called a finding, be it another one; NaN where there is
            none, or where no class is known to be a finding.
        specificity: share of images without a finding that are called so; NaN likewise.
        images: how many.
        recalls: of each class by number, the share of its images that are called so; NaN where it does not occur.
    """

    balanced_accuracy: float
    accuracy: float
    sensitivity: float
    specificity: float
    images: int
    recalls: tuple[float, ...]


def classification_figures(
    predicted: Tensor, labels: Tensor, num_classes: int, positive: int | Sequence[int] | None = None
) -> ClassificationFigures:
    """Compare predictions with labels.

    Args:
        predicted: `(N,)` int64; `ABSTAINED` is right nowhere.
        labels: `(N,)` int64, the true classes, 0 ... K - 1.
        num_classes: K.
        positive: the classes that are a finding, by number: with several, any finding counts against none. By
            default the last of two; of more there is none.

    Raises:
        InputError: shapes or dtypes differ, classes out of range, or there is no image.
    """
    if positive is None:
        positive = (1,) if num_classes == 2 else ()
    findings = torch.tensor([positive] if isinstance(positive, int) else list(positive), dtype=torch.int64)
    check_labels(labels, len(labels))
    check_labels(predicted, len(labels))
    if len(labels) == 0:
        raise InputError("there is no image to count")
    for what, values, least in (("labels", labels, 0), ("predicted", predicted, ABSTAINED), ("positive", findings, 0)):
        if values.numel() and not least <= int(values.min()) <= int(values.max()) < num_classes:
            found = f"{int(values.min())} ... {int(values.max())}"
            raise InputError(f"{what} must lie in {least} ... {num_classes - 1}; got {found}")
    right = predicted == labels
    counts = torch.bincount(labels, minlength=num_classes).double()
    recalls = torch.bincount(labels[right], minlength=num_classes).double() / counts
    findings = findings.to(labels.device)
    own, called = torch.isin(labels, findings), torch.isin(predicted, findings)
    cleared = ~called & (predicted != ABSTAINED)
    return ClassificationFigures(
        balanced_accuracy=float(recalls[counts > 0].mean()),
        accuracy=float(right.double().mean()),
        sensitivity=float(called[own].double().mean()),
        specificity=float(cleared[~own].double().mean()) if findings.numel() else math.nan,
        images=len(labels),
        recalls=tuple(recalls.tolist()),
    )


def auroc(benign: Tensor, suspicious: Tensor) -> float:
    """P(score of a suspicious image > score of a benign one), ties counted half.

    Args:
        benign: `(n,)` scores; higher = more suspicious.
        suspicious: `(m,)` scores.

    Raises:
        InputError: one of them is empty or holds NaN.
    """
    _check_both("AUROC", benign, suspicious)
    ordered = benign.double().sort().values
    below = torch.searchsorted(ordered, suspicious.double(), side="left")
    not_above = torch.searchsorted(ordered, suspicious.double(), side="right")
    return float((below + not_above).double().mean() / (2 * benign.numel()))


def true_positive_rate(benign: Tensor, suspicious: Tensor, fpr: float) -> float:
    """Largest share of suspicious images above a threshold that at most `fpr` of the benign ones exceed.

    Args:
        benign: `(N,)` scores, higher = more suspicious.
        suspicious: `(M,)` scores.
        fpr: in [0, 1).

    Raises:
        InputError: `fpr` outside [0, 1), or one of the two is empty or holds NaN.
    """
    if not 0 <= fpr < 1:
        raise InputError(f"fpr must lie in [0, 1); got {fpr}")
    _check_both("a rate", benign, suspicious)
    ordered = benign.double().sort(descending=True).values
    threshold = ordered[int(fpr * len(ordered))]
    return float((suspicious.double() > threshold).double().mean())


def average_precision(benign: Tensor, suspicious: Tensor) -> float:
    """Area under the precision-recall curve as a step function, suspicious images being the positives.

        AP = sum over distinct thresholds of (recall gained there) x (precision there)

    It depends on how many images there are of each kind: a detector that guesses has the share of
    suspicious images. Scores are `(N,)` of benign and `(M,)` of suspicious images, higher = more suspicious.

    Raises:
        InputError: one of them is empty or holds NaN.
    """
    _check_both("precision", benign, suspicious)
    scores = torch.cat((benign, suspicious)).double()
    positive = torch.cat((torch.zeros(benign.numel()), torch.ones(suspicious.numel()))).double()
    ordered, order = scores.sort(descending=True)
    hits = positive[order].cumsum(0)
    called = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    last_of_tie = torch.cat((ordered[1:] != ordered[:-1], torch.tensor([True])))
    hits, called = hits[last_of_tie], called[last_of_tie]
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64)) / suspicious.numel()
    return float((gained * hits / called).sum())


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far confidence and accuracy lie apart (Guo et al. 2017, arXiv 1706.04599).

        ECE = sum_b n_b / n |accuracy_b - mean confidence_b|

    over equal-width bins (low, high] of the largest probability.

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        labels: `(N,)` int64.
        bins: how many.

    Raises:
        InputError: there is no image, no bin, or shapes do not fit.
    """
    check_labels(labels, len(probabilities))
    if bins < 1:
        raise InputError(f"at least one bin is wanted; got {bins}")
    if probabilities.ndim != 2 or len(probabilities) == 0:
        raise InputError(f"probabilities of shape (N, K), N >= 1, are wanted; got {tuple(probabilities.shape)}")
    confidence, predicted = probabilities.double().max(1)
    gap = (predicted == labels).double() - confidence
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, place.cpu(), gap.cpu())
    return float(sums.abs().sum() / len(labels))


def _check_both(what: str, benign: Tensor, suspicious: Tensor) -> None:
    if benign.numel() == 0 or suspicious.numel() == 0:
        raise InputError(f"{what} needs scores of both kinds; got {benign.numel()} and {suspicious.numel()}")
    for scores in (benign, suspicious):
        if bad := int(scores.isnan().sum()):
            raise InputError(f"{what} needs numbers; got {bad} NaN of {scores.numel()} scores: leave those images out")
