"""Balanced accuracy and its intervals: the mean over classes, the unit of uncertainty the near-duplicate group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medfedpure.figures.intervals import Interval, cluster_bootstrap, paired_difference, wilson


def balanced(right: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of `(N,)` bool that hold, or of the mean of shares; NaN without images."""
    shares = [float(right[labels == label].double().mean()) for label in labels.unique()]
    return sum(shares) / len(shares) if shares else float("nan")


def balanced_difference(one: Tensor, other: Tensor, labels: Tensor, groups: Tensor) -> Interval | None:
    """95 % interval of the difference of two `balanced` on the same `(N,)` images; None with a single group.

    Where every group has one image, Newcombe's paired intervals of the classes, their distances added in squares;
    otherwise the same near-duplicate groups are drawn for both.
    """
    present = labels.unique()
    if len(groups.unique()) < 2:
        return None

    def gap(rows: Tensor) -> float:
        if len(labels[rows].unique()) < len(present):
            return float("nan")
        return balanced(one[rows], labels[rows]) - balanced(other[rows], labels[rows])

    if len(groups.unique()) < len(groups):
        return cluster_bootstrap(gap, groups)
    below = above = 0.0
    for label in present:
        first, second = one[labels == label], other[labels == label]
        low, high = paired_difference(first, second)
        middle = float(first.double().mean() - second.double().mean())
        below, above = below + (middle - low) ** 2, above + (high - middle) ** 2
    middle = gap(torch.arange(len(labels)))
    return max(-1.0, middle - math.sqrt(below) / len(present)), min(1.0, middle + math.sqrt(above) / len(present))


def balanced_interval(right: Tensor, labels: Tensor, groups: Tensor, *, draws: int = 1000) -> Interval | None:
    """95 % interval of `balanced`, of `(N,)` bool, labels and groups; None with a single group.

    Of a defence that draws noise, how often each image is right, in [0, 1], may stand for the bool.

    Where every group has one image, Wilson's intervals of the classes, their distances added in squares (Zou and
    Donner 2008, 10.1002/sim.3095): a bootstrap of 24 right images of 24 would claim to be certain. Otherwise
    near-duplicate groups are drawn with replacement.
    """
    present = labels.unique()
    if len(groups.unique()) < 2:
        return None
    if len(groups.unique()) == len(groups):
        below = above = 0.0
        for label in present:
            own = right[labels == label]
            low, high = wilson(float(own.double().sum()), len(own))
            share = float(own.double().mean())
            below, above = below + (share - low) ** 2, above + (high - share) ** 2
        middle = balanced(right, labels)
        low, high = middle - math.sqrt(below) / len(present), middle + math.sqrt(above) / len(present)
        return max(0.0, low), min(1.0, high)

    def figure(rows: Tensor) -> float:
        return balanced(right[rows], labels[rows]) if len(labels[rows].unique()) == len(present) else float("nan")

    return cluster_bootstrap(figure, groups, draws=draws)


def chance_level(value: float | None, interval: Interval | None, chance: float) -> str:
    """How a balanced accuracy stands to guessing, in words; "" where it is clearly better, or unknown.

    Args:
        value: the balanced accuracy.
        interval: its 95 % interval; None where there is none, which leaves the value itself.
        chance: what guessing gets, 1 / K of the K classes that occur.
    """
    if value is None or math.isnan(value):
        return ""
    low, high = interval or (value, 1.0)
    if low > chance:
        return ""
    return "below chance level" if high < chance else "at chance level"
