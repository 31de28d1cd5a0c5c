"""Split-conformal calibration: from benign scores to p-values, a threshold and a strength.

With n sorted benign scores s_i the p-value of a score s is p = (1 + #{s_i >= s}) / (n + 1), and an
image is flagged when p <= target_fpr. For exchangeable benign images P(flagged) <= target_fpr on
average over calibration sets (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with
conformal p-values"); for the set at hand and continuous scores the true rate is distributed as
Beta(k, n + 1 - k), k = floor((n + 1) * target_fpr).

Scores that differ by rounding count as equal (`Calibration.lowered`): a flag must not hinge on one rounding step, which
differs with the size of the batch. P-values grow by that, they never shrink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from medfedpure.core.errors import CalibrationError
from medfedpure.figures.binomial import beta_cdf

Scope = Literal["client", "federation"]
RELATIVE, ABSOLUTE = 1e-5, 1e-7


def least_scores(target_fpr: float) -> int:
    """How many benign scores can set a threshold at a rate in (0, 1): 1 / rate - 1, rounded up."""
    return math.ceil(1 / Fraction(repr(float(target_fpr))) - 1)


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out benign images, and the decisions that follow from them.

    Attributes:
        scores: `(n,)` float64, sorted ascending, one per independent benign image.
        target_fpr: the share of benign images that may be flagged, in (0, 1).
        scope: whose images these are: this client's, or pooled over the federation (which reveals
            every client's benign scores to the others, though no image).
    """

    scores: Tensor
    target_fpr: float = 0.05
    scope: Scope = "client"

    @classmethod
    def fit(
        cls, scores: Tensor, target_fpr: float = 0.05, *, scope: Scope = "client", allow_never_flagging: bool = False
    ) -> Self:
        """Calibrate on benign scores.

        Args:
            scores: `(n,)`, finite; one per near-duplicate group, for twins carry no information.
            target_fpr: in (0, 1).
            scope: see the class.
            allow_never_flagging: accept an n so small that nothing could ever be flagged.

        Raises:
            CalibrationError: scores that are empty or not finite, target_fpr outside (0, 1), or
                n < 1 / target_fpr - 1, with which no image could be flagged.
        """
        if not isinstance(scores, Tensor) or scores.ndim != 1 or scores.numel() == 0:
            came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CalibrationError(f"calibration needs scores of shape (n,), n >= 1; got {came}")
        calibration = cls(scores.detach().to("cpu", torch.float64).sort().values, float(target_fpr), scope)
        if not allow_never_flagging:
            calibration.check_rate(target_fpr)
        return calibration

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.numel() == 0 or self.scores.dtype != torch.float64:
            raise CalibrationError(
                f"calibration scores are float64 of shape (n,), n >= 1; got {self.scores.dtype} "
                f"{tuple(self.scores.shape)}"
            )
        if not bool(self.scores.isfinite().all()):
            raise CalibrationError("calibration scores contain NaN or infinity: check the detector on these images")
        if bool((self.scores[1:] < self.scores[:-1]).any()):
            raise CalibrationError("calibration scores must be sorted ascending: use Calibration.fit")
        if self.scope not in get_args(Scope):
            raise CalibrationError(f"the scopes are {', '.join(get_args(Scope))}; got {self.scope!r}")
        self.rank(self.target_fpr)

    def check_rate(self, target_fpr: float) -> None:
        """Raise CalibrationError at a rate outside (0, 1), or one at which so few scores can flag nothing."""
        if self.rank(target_fpr) == 0:
            needed = least_scores(target_fpr)
            raise CalibrationError(
                f"{len(self)} calibration images (one per near-duplicate group) can never flag at a false-positive "
                f"rate of {float(target_fpr):g}: bring at least {needed}, raise target_fpr, calibrate at "
                'scope="federation", or pass allow_never_flagging=True'
            )

    def lowered(self, scores: Tensor) -> Tensor:
        """Scores `(N,)` float64 less what rounding may add: 1e-5 of the score, and 1e-7 of the largest of calibration.

        NaN counts as most suspicious: an image that breaks the detector is not let pass.
        """
        values = _nan_as_infinity(scores.detach().to(torch.float64))
        return values - RELATIVE * values.abs().nan_to_num(posinf=0.0) - ABSOLUTE * self._largest

    @cached_property
    def _largest(self) -> float:
        return float(self.scores.abs().max())

    def __len__(self) -> int:
        return self.scores.numel()

    def rank(self, target_fpr: float | None = None) -> int:
        """k = floor((n + 1) * target_fpr), in exact arithmetic."""
        rate = self.target_fpr if target_fpr is None else target_fpr
        if not 0.0 < rate < 1.0:
            raise CalibrationError(f"target_fpr must lie in (0, 1); got {rate}")
        return math.floor((len(self) + 1) * Fraction(repr(float(rate))))

    def threshold(self, target_fpr: float | None = None) -> float:
        """The k-th largest calibration score; flagged is what lies above it, rounding aside.

        Infinity if k = 0.
        """
        k = self.rank(target_fpr)
        return math.inf if k == 0 else float(self.scores[len(self) - k])

    def p_values(self, scores: Tensor) -> Tensor:
        """Conformal p-values `(N,)` float64 in (0, 1]: small = suspicious."""
        reference = self.scores.to(scores.device, non_blocking=True)
        below = torch.searchsorted(reference, self.lowered(scores), side="left")
        return (1.0 + (len(self) - below).to(torch.float64)) / (len(self) + 1)

    def flagged(self, scores: Tensor, target_fpr: float | None = None) -> Tensor:
        """`(N,)` bool: p <= target_fpr, computed as lowered(score) > threshold, which is the same and exact."""
        return self.lowered(scores) > self.threshold(target_fpr)

    @cached_property
    def median(self) -> float:
        """Median of the calibration scores."""
        return float(self.scores.quantile(0.5))

    def scale(self, target_fpr: float | None = None) -> float:
        """sigma = max(threshold - median, 1e-6), the unit in which the strength rises."""
        return max(self.threshold(target_fpr) - self.median, 1e-6)

    def strength(self, scores: Tensor, target_fpr: float | None = None) -> Tensor:
        """1 - exp(-relu(s - threshold) / sigma), `(N,)` in [0, 1): how strongly to purify.

        Zero up to the threshold, rising with the score, differentiable in it.
        """
        threshold = self.threshold(target_fpr)
        if math.isinf(threshold):
            return torch.zeros_like(scores)
        return -torch.expm1(-torch.relu(_nan_as_infinity(scores) - threshold) / self.scale(target_fpr))

    def true_fpr_quantile(self, level: float = 0.95, target_fpr: float | None = None) -> float:
        """The false-positive rate that this calibration set keeps to with probability `level`.

        The `level`-quantile of Beta(k, n + 1 - k), 0 when k = 0.
        """
        if not 0.0 < level < 1.0:
            raise CalibrationError(f"level must lie in (0, 1); got {level}")
        k, n = self.rank(target_fpr), len(self)
        if k == 0:
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if beta_cdf(middle, k, n + 1 - k) < level else (low, middle)
        return (low + high) / 2

    def describe(self) -> str:
        """One line for people."""
        return (
            f"flags at most {self.target_fpr:.1%} of benign images on average over calibration sets; this set "
            f"({len(self)} images, {self.scope} scope) keeps to {self.true_fpr_quantile():.1%} with 95 % probability"
        )


def _nan_as_infinity(scores: Tensor) -> Tensor:
    """Scores in which NaN counts as most suspicious: an image that breaks the detector is not let pass."""
    return scores.masked_fill(scores.isnan(), math.inf)
