"""Exact tails of the binomial and beta distributions, in plain Python."""

from __future__ import annotations

import math
from functools import cache


def beta_cdf(x: float, a: int, b: int) -> float:
    """P(Beta(a, b) <= x) for integer a, b: the chance of at least a successes in a + b - 1 trials."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    n = a + b - 1
    log_terms = (
        math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) + j * math.log(x) + (n - j) * math.log1p(-x)
        for j in range(a, n + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in log_terms))


@cache
def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """The one-sided lower bound of a binomial proportion: the alpha-quantile of Beta(k, n - k + 1); 0 for k = 0.

    For k = n it is alpha^(1 / n).
    """
    if successes == 0:
        return 0.0
    if successes == trials:
        return math.exp(math.log(alpha) / trials)
    low, high = 0.0, successes / trials
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, successes, trials - successes + 1) < alpha else (low, middle)
    return low
