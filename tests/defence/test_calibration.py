"""Calibration as mathematics: what it promises holds on average, and single sets follow the Beta distribution."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medfedpure.core.errors import CalibrationError
from medfedpure.defence.calibration import Calibration
from medfedpure.figures.binomial import beta_cdf

SETS = 800
FRESH = 4000


def realised(n: int, fpr: float, *, sets: int = SETS, ties: int = 0) -> torch.Tensor:
    """False-positive rate of each of many calibration sets on fresh benign scores."""
    generator = torch.Generator().manual_seed(hash((n, round(fpr * 1e6), ties)) % 2**31)
    rates = []
    for _ in range(sets):
        scores = torch.randn(n + FRESH, generator=generator, dtype=torch.float64)
        if ties:
            scores = (scores * ties).round() / ties
        calibration = Calibration.fit(scores[:n], fpr)
        rates.append(calibration.flagged(scores[n:]).double().mean())
    return torch.stack(rates)


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (59, 0.05), (100, 0.1), (250, 0.01), (33, 0.2)])
def test_the_mean_rate_keeps_to_the_target(n: int, fpr: float) -> None:
    rates = realised(n, fpr)
    k = math.floor((n + 1) * Fraction(repr(fpr)))
    error = 4 * float(rates.std()) / math.sqrt(SETS)
    mean = float(rates.mean())
    assert mean <= fpr + error, (
        f"mean rate {mean:.4f} over {SETS} sets exceeds {fpr} by more than 4 errors ({error:.4f})"
    )
    assert mean == pytest.approx(k / (n + 1), abs=error), f"mean rate {mean:.4f}; k / (n + 1) is {k / (n + 1):.4f}"


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (100, 0.1), (59, 0.2)])
def test_single_sets_follow_beta(n: int, fpr: float) -> None:
    generator = torch.Generator().manual_seed(n)
    k = math.floor((n + 1) * Fraction(repr(fpr)))
    true_rates = []
    for _ in range(SETS):
        calibration = Calibration.fit(torch.randn(n, generator=generator, dtype=torch.float64), fpr)
        true_rates.append(float(stats.norm.sf(calibration.threshold())))
    verdict = stats.kstest(true_rates, stats.beta(k, n + 1 - k).cdf)
    assert verdict.pvalue > 1e-3, f"the true rates of single sets are not Beta({k}, {n + 1 - k}): {verdict}"


@pytest.mark.parametrize("ties", [1, 2, 5])
def test_ties_never_raise_the_mean_rate(ties: int) -> None:
    rates = realised(59, 0.1, ties=ties)
    error = 4 * float(rates.std()) / math.sqrt(SETS)
    assert float(rates.mean()) <= 0.1 + error, (
        f"with ties the mean rate is {float(rates.mean()):.4f} > 0.1 + {error:.4f}"
    )


@pytest.mark.parametrize("fpr", [0.05, 0.5, 0.9])
def test_equal_scores_are_never_flagged(fpr: float) -> None:
    calibration = Calibration.fit(torch.full((100,), 0.3), fpr)
    equal = torch.full((7,), 0.3)
    assert not calibration.flagged(equal).any(), "a score equal to every benign score was flagged"
    assert bool((calibration.p_values(equal) == 1).all()), "its p-value must be 1"
    assert bool(calibration.flagged(equal + 1e-3).all()), "a score above every benign score was not flagged"


@pytest.mark.parametrize(("fpr", "least"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.3, 3)])
def test_smallest_set(fpr: float, least: int) -> None:
    calibration = Calibration.fit(torch.arange(float(least)), fpr)
    assert calibration.rank() >= 1, f"{least} scores suffice at {fpr}"
    assert bool(calibration.flagged(torch.tensor([float(least)]))), "a score above all must be flagged"
    if least > 1:
        with pytest.raises(CalibrationError, match=f"at least {least}"):
            Calibration.fit(torch.arange(float(least - 1)), fpr)


def test_too_small_a_set_can_be_asked_for() -> None:
    calibration = Calibration.fit(torch.arange(5.0), 0.05, allow_never_flagging=True)
    high = torch.tensor([1e9, 1e30])
    assert calibration.threshold() == math.inf, "with k = 0 the threshold is infinite"
    assert not calibration.flagged(high).any(), "nothing can be flagged with k = 0"
    assert bool((calibration.strength(high) == 0).all()), "the strength must be 0 with k = 0"
    assert calibration.true_fpr_quantile() == 0.0, "the true rate is 0 with k = 0"
    assert calibration.describe(), "it must describe itself"


scores_of = st.lists(st.integers(-8, 8).map(lambda value: value / 4), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(benign=scores_of, fresh=scores_of, percent=st.integers(1, 99))
def test_flagged_is_a_small_p_value(benign: list[float], fresh: list[float], percent: int) -> None:
    fpr = percent / 100
    calibration = Calibration.fit(torch.tensor(benign), fpr, allow_never_flagging=True)
    scores = torch.tensor(fresh)
    exact = [Fraction(1 + sum(b >= s for b in benign), len(benign) + 1) <= Fraction(percent, 100) for s in fresh]
    assert calibration.flagged(scores).tolist() == exact, "flagged differs from p <= target_fpr"
    wanted = [(1 + sum(b >= s for b in benign)) / (len(benign) + 1) for s in fresh]
    assert calibration.p_values(scores).tolist() == pytest.approx(wanted), "p-values differ from their definition"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(percent=st.integers(1, 99), n=st.integers(1, 400))
def test_rank_is_exact(percent: int, n: int) -> None:
    calibration = Calibration.fit(torch.zeros(n), percent / 100, allow_never_flagging=True)
    assert calibration.rank() == (n + 1) * percent // 100, "rounding error moved the rank"


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (100, 0.05), (1000, 0.05), (300, 0.2)])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.95, 0.999])
def test_quantile_of_the_true_rate(n: int, fpr: float, level: float) -> None:
    calibration = Calibration.fit(torch.randn(n, generator=torch.Generator().manual_seed(0)), fpr)
    k = calibration.rank()
    wanted = float(stats.beta.ppf(level, k, n + 1 - k))
    assert calibration.true_fpr_quantile(level) == pytest.approx(wanted, rel=1e-9), "differs from scipy's Beta quantile"


@pytest.mark.parametrize(("a", "b"), [(1, 19), (5, 96), (50, 951), (30, 10)])
def test_beta_cdf(a: int, b: int) -> None:
    for x in (-1.0, 0.0, 1e-6, 0.03, 0.2, 0.7, 0.999, 1.0, 2.0):
        assert beta_cdf(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), abs=1e-12), f"Beta({a}, {b}) cdf at {x}"


def test_strength() -> None:
    calibration = Calibration.fit(torch.arange(100.0), 0.05)
    threshold = calibration.threshold()
    assert threshold == 95.0, "the fifth largest of 0 ... 99 is 95"
    scores = torch.linspace(0, 500, 2000, dtype=torch.float64)
    strength = calibration.strength(scores)
    assert bool((strength[scores <= threshold] == 0).all()), "the strength must be 0 up to the threshold"
    assert bool((strength.diff() >= 0).all()), "the strength must not fall as the score rises"
    assert bool((strength[scores > threshold] > 0).all()), "flagged images have a strength above 0"
    assert float(strength.max()) <= 1, "the strength must not exceed 1"
    one_scale = torch.tensor([threshold + calibration.scale()])
    assert float(calibration.strength(one_scale)) == pytest.approx(1 - math.exp(-1)), "1 - 1/e one scale above"


def test_strength_is_differentiable() -> None:
    calibration = Calibration.fit(torch.arange(100.0), 0.05)
    scores = torch.tensor([10.0, 95.0, 96.0, 120.0, 1e6], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(calibration.strength(scores).sum(), scores)
    assert bool(slope.isfinite().all()), "gradients must be finite"
    assert slope[0] == 0, "below the threshold the strength is flat"
    assert slope[2] > slope[3] > 0, "above it rises, ever slower"
    assert torch.autograd.gradcheck(calibration.strength, (scores[2:4].detach().requires_grad_(True),)), "gradcheck"


def test_identical_scores_still_have_a_scale() -> None:
    calibration = Calibration.fit(torch.full((40,), 2.0), 0.05)
    assert calibration.scale() == 1e-6, "sigma is never below 1e-6"
    assert float(calibration.strength(torch.tensor([2.0]))) == 0.0, "strength at the threshold is 0"


def test_another_rate_needs_no_refit() -> None:
    benign = torch.randn(200, generator=torch.Generator().manual_seed(1))
    strict, loose = Calibration.fit(benign, 0.01), Calibration.fit(benign, 0.2)
    scores = torch.randn(500, generator=torch.Generator().manual_seed(2))
    for rate, other in ((0.01, strict), (0.2, loose)):
        assert torch.equal(strict.flagged(scores, rate), other.flagged(scores)), f"another answer at {rate}"
        assert torch.equal(strict.strength(scores, rate), other.strength(scores)), f"another strength at {rate}"


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([]),
        torch.zeros(3, 3),
        torch.tensor([0.0, float("nan")] * 20),
        torch.tensor([0.0, float("inf")] * 20),
    ],
    ids=["empty", "two axes", "NaN", "infinite"],
)
def test_bad_scores_raise(scores: torch.Tensor) -> None:
    with pytest.raises(CalibrationError):
        Calibration.fit(scores)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_bad_rates_raise(fpr: float) -> None:
    with pytest.raises(CalibrationError):
        Calibration.fit(torch.arange(100.0), fpr)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_bad_levels_raise(level: float) -> None:
    with pytest.raises(CalibrationError):
        Calibration.fit(torch.arange(100.0)).true_fpr_quantile(level)


def test_an_image_that_breaks_the_detector_is_not_let_pass() -> None:
    calibration = Calibration.fit(torch.arange(100.0))
    scores = torch.tensor([1.0, float("nan")])
    assert calibration.flagged(scores).tolist() == [False, True], "a NaN score must be flagged"
    assert float(calibration.p_values(scores)[1]) == pytest.approx(1 / 101), "its p-value is the smallest"
    assert calibration.strength(scores).tolist() == [0.0, 1.0], "its strength is the largest"
    never = Calibration.fit(torch.arange(5.0), allow_never_flagging=True)
    assert not never.flagged(scores).any(), "with k = 0 nothing is flagged"


def test_integers_and_gradients_are_taken() -> None:
    calibration = Calibration.fit(torch.arange(40).float().requires_grad_(True))
    assert not calibration.scores.requires_grad, "calibration scores carry no graph"
    assert calibration.scores.dtype == torch.float64, "calibration scores are kept in float64"
