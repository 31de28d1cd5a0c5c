"""Do the scores still come from where they were calibrated? A test of fixed windows of the stream.

A window's scores are compared with the calibration scores by the two-sample Kolmogorov-Smirnov test,
whose p-value is exact when both could be exchanged, over calibration sets and windows alike. Look k is made
at the level

    false_alarm * 6 / (pi^2 k^2),

so that over all looks, however many, a stream without drift raises an alarm with probability at most
`false_alarm`. What a difference means no test of scores can tell: another scanner, or an attack.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from medfedpure.core.errors import CalibrationError, ConfigError, InputError
from medfedpure.defence.calibration import Calibration
from medfedpure.figures.kolmogorov_smirnov import kolmogorov_smirnov_gap, kolmogorov_smirnov_p_value

KEPT = 200
"""Looks that a monitor remembers; a service never ends, and what it remembers has to."""


@dataclass(frozen=True)
class Look:
    """One comparison of a window with the calibration.

    Attributes:
        number: 1 for the first.
        statistic: largest gap between the two distribution functions, in [0, 1].
        p_value: how often a gap of this size or a larger one comes without drift.
        level: what the p-value is compared with at this look.
        window: images looked at.
    """

    number: int
    statistic: float
    p_value: float
    level: float
    window: int

    @property
    def drifted(self) -> bool:
        """Whether this look raises the alarm."""
        return self.p_value <= self.level

    def describe(self) -> str:
        """One line for people."""
        found = f"look {self.number}, {self.window} images: KS {self.statistic:.3f}, p = {self.p_value:.2g}"
        if not self.drifted:
            return f"{found}, above its level {self.level:.2g}: no drift seen"
        return f"{found}, not above its level {self.level:.2g}: shift or attack, scores cannot tell which"


class Monitor:
    """Collects the scores of a stream and looks once for each full window.

    Args:
        calibration: of the chain whose scores are watched.
        window: images in one look.
        false_alarm: probability of any alarm, ever, while nothing changes.

    Attributes:
        count: looks that were made.
        looks: the last of them, `KEPT` at most.

    Example:
        >>> import torch
        >>> from medfedpure.defence.calibration import Calibration
        >>> monitor = Monitor(Calibration.fit(torch.linspace(0, 1, 100)), window=20)
        >>> sum(look.drifted for look in monitor.observe(torch.full((45,), 2.0)))
        2
    """

    def __init__(self, calibration: Calibration, *, window: int = 100, false_alarm: float = 0.01) -> None:
        if window < 2:
            raise ConfigError(f"a window needs at least 2 images; got {window}")
        if not 0.0 < false_alarm < 1.0:
            raise ConfigError(f"false_alarm must lie in (0, 1); got {false_alarm}")
        smallest = 2 / math.comb(len(calibration) + window, window)
        if smallest > false_alarm * 6 / math.pi**2:
            raise CalibrationError(
                f"{len(calibration)} calibration scores and a window of {window} could never raise an alarm at "
                f"false_alarm = {false_alarm:g}: calibrate on more images, or widen the window"
            )
        self.calibration, self.window, self.false_alarm = calibration, window, false_alarm
        self.count = 0
        self.looks: deque[Look] = deque(maxlen=KEPT)
        self._waiting = torch.empty(0, dtype=torch.float64)

    def observe(self, scores: Tensor) -> list[Look]:
        """Take in scores `(N,)` in the order of the stream; the looks that became due.

        Raises:
            InputError: scores of another rank.
        """
        if scores.ndim != 1:
            raise InputError(f"scores of shape (N,) are wanted; got {tuple(scores.shape)}")
        waiting = torch.cat((self._waiting, scores.detach().to("cpu", torch.float64)))
        due = []
        while len(waiting) >= self.window:
            due.append(self._look(waiting[: self.window]))
            self.looks.append(due[-1])
            waiting = waiting[self.window :]
        self._waiting = waiting
        return due

    def _look(self, scores: Tensor) -> Look:
        self.count += 1
        level = self.false_alarm * 6 / (math.pi * self.count) ** 2
        gap = kolmogorov_smirnov_gap(self.calibration.scores, scores)
        p_value = kolmogorov_smirnov_p_value(gap, len(self.calibration), len(scores))
        return Look(self.count, gap / (len(self.calibration) * len(scores)), p_value, level, len(scores))
