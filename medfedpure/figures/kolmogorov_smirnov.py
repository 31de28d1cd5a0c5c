"""The two-sample Kolmogorov-Smirnov test, exact for samples that could be exchanged."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kolmogorov_smirnov_gap(first: Tensor, second: Tensor) -> int:
    """n m max |F(x) - G(x)| of samples `(n,)` and `(m,)`, an integer; NaN counts as the largest value."""
    ordered = [
        sample.double().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).sort().values
        for sample in (first, second)
    ]
    points = torch.cat(ordered)
    below = [torch.searchsorted(sample, points, side="right") for sample in ordered]
    return int((below[0] * len(second) - below[1] * len(first)).abs().max())


def kolmogorov_smirnov_p_value(gap: int, n: int, m: int) -> float:
    """P(n m max |F - G| >= gap) when all orders of the n + m values are equally likely (Hodges 1958).

    Counts the lattice paths from (0, 0) to (n, m) that stay within |i m - j n| < gap, as shares of all
    paths. Ties make it conservative.
    """
    columns = torch.arange(m + 1, dtype=torch.float64)
    inside = torch.zeros(m + 1, dtype=torch.float64)
    for row in range(n + 1):
        allowed = (row * m - columns * n).abs() < gap
        # share[i][j] = share[i-1][j] * i/(i+j) + share[i][j-1] * j/(i+j), the chance that a random path
        # to (i, j) stays inside, by its last step.
        values = (inside * (row / (row + columns).clamp_min(1))).tolist() if row else [1.0] + [0.0] * m
        for column in range(m + 1):
            if column and allowed[column]:
                values[column] += values[column - 1] * column / (row + column)
            elif not allowed[column]:
                values[column] = 0.0
        inside = torch.tensor(values, dtype=torch.float64)
    return min(1.0, max(0.0, 1.0 - float(inside[m])))
