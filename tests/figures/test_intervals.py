"""Intervals: they agree with scipy where it has them, and they cover what they say."""

import math

import pytest
import torch
from scipy.stats import betabinom, binomtest

from medfedpure.core.errors import InputError
from medfedpure.defence.calibration import Calibration
from medfedpure.figures.intervals import cluster_bootstrap, realised_fpr_interval, wilson


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 40), (40, 40), (117, 300)])
def test_wilson_agrees_with_scipy(hits, total):
    wanted = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson(hits, total) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize(("m", "n", "fpr"), [(50, 60, 0.05), (200, 100, 0.05), (37, 300, 0.1)])
def test_realised_rate_agrees_with_scipy(m, n, fpr):
    k = math.floor((n + 1) * fpr)
    law = betabinom(m, k, n + 1 - k)
    low, high = realised_fpr_interval(m, rank=k, calibration=n)
    assert (low * m, high * m) == pytest.approx((law.ppf(0.025), law.ppf(0.975)))


def test_realised_rate_covers_fresh_calibrations():
    generator, inside = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        calibration = Calibration.fit(torch.randn(80, generator=generator), 0.05)
        rate = float(calibration.flagged(torch.randn(120, generator=generator)).double().mean())
        low, high = realised_fpr_interval(120, rank=calibration.rank(), calibration=80)
        inside += low <= rate <= high
    assert inside >= 0.94 * 400, f"only {inside} of 400 realised rates lie in their 95 % interval"


def test_groups_widen_the_interval_where_images_are_twins():
    values = torch.randn(60, generator=torch.Generator().manual_seed(1)).repeat_interleave(10)

    def mean(positions):
        return float(values[positions].mean())

    alone = cluster_bootstrap(mean, torch.arange(600))
    grouped = cluster_bootstrap(mean, torch.arange(60).repeat_interleave(10))
    assert alone[1] - alone[0] < 0.5 * (grouped[1] - grouped[0]), "twins must not make an interval narrow"
    assert grouped[0] < float(values.mean()) < grouped[1]
    error = float(values[::10].std()) / math.sqrt(60)
    assert grouped[1] - grouped[0] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert cluster_bootstrap(mean, torch.arange(600)) == alone, "equal seeds, other intervals"


def test_undefined_draws_do_not_count():
    flips = iter(range(10**6))
    low, high = cluster_bootstrap(lambda _: math.nan if next(flips) % 2 else 1.0, torch.arange(5))
    assert low == high == 1.0
    with pytest.raises(InputError, match="undefined on every"):
        cluster_bootstrap(lambda _: math.nan, torch.arange(5))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cluster_bootstrap(float, torch.zeros(4, dtype=torch.int64)), "at least 2"),
        (lambda: wilson(5, 4), "hits <= total"),
        (lambda: wilson(1, 4, level=1.0), "level must lie"),
        (lambda: realised_fpr_interval(10, rank=0, calibration=10), "1 <= k <= n"),
    ],
)
def test_bad_arguments_are_named(call, text):
    with pytest.raises(InputError, match=text):
        call()
