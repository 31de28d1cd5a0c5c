"""The drift monitor on the scores of a running service."""

from __future__ import annotations

import math
import threading
from typing import Any

from torch import Tensor

from medfedpure.core.errors import CalibrationError
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.monitor import Look, Monitor


class Drift:
    """What the monitor saw since the service began; scores come from one thread, questions from any.

    Args:
        calibration: of the defence; without one, or with too few scores, nothing is watched, and `state` says so.
        window: images in one look.
    """

    def __init__(self, calibration: Calibration | None, window: int = 100) -> None:
        self._lock = threading.Lock()
        self._monitor: Monitor | None = None
        self.last: Look | None = None
        self.looks = self.alarms = 0
        self._unwatched = "the defence has no calibration to compare with"
        if calibration is not None:
            try:
                self._monitor = Monitor(calibration, window=window)
            except CalibrationError as error:
                self._unwatched = str(error)

    @property
    def watched(self) -> bool:
        """Whether scores are compared at all."""
        return self._monitor is not None

    @property
    def p_value(self) -> float:
        """Of the last look; NaN before the first."""
        return math.nan if self.last is None else self.last.p_value

    def observe(self, scores: Tensor) -> None:
        """Take in scores `(N,)`, in the order of the stream."""
        if self._monitor is None:
            return
        with self._lock:
            for look in self._monitor.observe(scores):
                self.last = look
                self.looks += 1
                self.alarms += look.drifted

    def state(self) -> dict[str, Any]:
        """As plain values: whether it watches, how often it looked, how often that was an alarm, the last look."""
        with self._lock:
            if self._monitor is None:
                return {"watched": False, "why": self._unwatched}
            last = None if self.last is None else self.last.describe()
            return {"watched": True, "looks": self.looks, "alarms": self.alarms, "last": last}
