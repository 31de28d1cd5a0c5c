"""How far a figure may be off: the unit of uncertainty is the near-duplicate group, not the image."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from medfedpure.core.errors import InputError

Interval = tuple[float, float]


def cluster_bootstrap(
    statistic: Callable[[Tensor], float],
    groups: Tensor,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic when whole groups are drawn with replacement.

    Args:
        statistic: from positions `(M,)` int64 of the drawn images to a figure; NaN where it is undefined
            for a draw, which then does not count.
        groups: `(N,)` int64, the near-duplicate group of every image.
        draws: bootstrap samples.
        level: probability that the interval should cover.
        seed: equal seeds draw equal groups, so that figures of two methods can be compared in pairs.

    Raises:
        InputError: fewer than two groups, or no draw for which the statistic is defined.
    """
    _check_level(level)
    members = [torch.nonzero(groups == group).squeeze(1) for group in groups.unique()]
    if len(members) < 2:
        raise InputError(f"an interval over groups needs at least 2 of them; got {len(members)}")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(draws):
        drawn = torch.randint(len(members), (len(members),), generator=generator)
        values.append(statistic(torch.cat([members[place] for place in drawn.tolist()])))
    found = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if found.numel() == 0:
        raise InputError("the statistic is undefined on every bootstrap sample: bring more images of every kind")
    tail = (1 - level) / 2
    low, high = found.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def wilson(hits: float, total: int, *, level: float = 0.95) -> Interval:
    """Interval of a share of independent images (Wilson 1927); only where every group has one image.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    _check_level(level)
    if not 0 <= hits <= total or total == 0:
        raise InputError(f"0 <= hits <= total and total >= 1 are wanted; got {hits} of {total}")
    z = float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)))
    share = hits / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def paired_difference(one: Tensor, other: Tensor, *, level: float = 0.95) -> Interval:
    """Interval of the difference of two shares of the same independent images (Newcombe 1998, his method 10).

    With p1, p2 the shares, l and u Wilson's limits of each, and phi the correlation of the pairs, corrected for
    continuity:

        d - sqrt( (p1 - l1)^2 - 2 phi (p1 - l1) (u2 - p2) + (u2 - p2)^2 )  to
        d + sqrt( (u1 - p1)^2 - 2 phi (u1 - p1) (p2 - l2) + (p2 - l2)^2 )

    A bootstrap of few images that all agree, or all differ, would claim to be certain.

    Args:
        one: `(N,)` bool.
        other: `(N,)` bool, of the same images.
        level: probability that the interval should cover.
    """
    total, both = len(one), int((one & other).sum())
    first, second = int(one.sum()), int(other.sum())
    neither = total - first - second + both
    (low1, high1), (low2, high2) = wilson(first, total, level=level), wilson(second, total, level=level)
    p1, p2 = first / total, second / total
    scale = first * (total - first) * second * (total - second)
    phi = 0.0
    if scale:
        agreement = both * neither - (first - both) * (second - both)
        phi = (max(agreement - total / 2, 0.0) if agreement > 0 else agreement) / math.sqrt(scale)
    below = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    above = (high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2
    return p1 - p2 - math.sqrt(max(below, 0.0)), p1 - p2 + math.sqrt(max(above, 0.0))


def realised_fpr_interval(images: int, *, rank: int, calibration: int, level: float = 0.95) -> Interval:
    """Where the realised false-positive rate of a calibrated detector should lie.

    Of m benign test images that can be exchanged with the calibration images, the number flagged
    follows BetaBinomial(m; k, n + 1 - k): the threshold's own rate is Beta(k, n + 1 - k), and each image
    is flagged at that rate.

    Args:
        images: m, one per near-duplicate group.
        rank: k of `Calibration.rank`, at least 1.
        calibration: n, the size of the calibration set.
        level: probability of the central interval.

    Raises:
        InputError: no image, or k outside 1 ... n.
    """
    _check_level(level)
    if images < 1 or not 1 <= rank <= calibration:
        raise InputError(f"m >= 1 and 1 <= k <= n are wanted; got m = {images}, k = {rank}, n = {calibration}")
    a, b = rank, calibration + 1 - rank
    chances = [
        math.exp(_log_choose(images, flagged) + _log_beta(flagged + a, images - flagged + b) - _log_beta(a, b))
        for flagged in range(images + 1)
    ]
    tail, low, high, seen = (1 - level) / 2, None, images, 0.0
    for flagged, chance in enumerate(chances):
        seen += chance
        if low is None and seen > tail:
            low = flagged
        if seen >= 1 - tail:
            high = flagged
            break
    return (low or 0) / images, high / images


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise InputError(f"level must lie in (0, 1); got {level}")
