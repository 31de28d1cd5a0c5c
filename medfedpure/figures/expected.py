"""The mean of a robustness curve over a range of eps, as one figure (curves: Goepfert et al. 2019, arXiv 1908.00096).

    E(e) = 1/e * integral over t in [0, e] of A(t),   A(t) the accuracy under attacks of size t, A(0) without any;

by the trapezoidal rule over the sizes that were measured: A is taken for linear between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from medfedpure.core.errors import InputError


def expected_robustness(sizes: Sequence[float], accuracies: Sequence[float]) -> float:
    """E(e) of the accuracies at those sizes, the last of which is e.

    Args:
        sizes: 0 first, then rising; two or more.
        accuracies: one for each size.

    Raises:
        InputError: sizes that do not begin with 0, do not rise, or are not as many as the accuracies.
    """
    sizes = list(sizes)
    rising = all(low < high for low, high in pairwise(sizes))
    if len(sizes) != len(accuracies) or len(sizes) < 2 or sizes[0] != 0 or not rising:
        raise InputError(
            f"sizes that rise from 0, two or more, and an accuracy for each are wanted; got sizes {sizes} and "
            f"{len(accuracies)} accuracies: put eps 0, the accuracy without an attack, first"
        )
    points = zip(pairwise(sizes), pairwise(accuracies), strict=True)
    area = sum((high - low) * (one + other) / 2 for (low, high), (one, other) in points)
    return area / sizes[-1]
