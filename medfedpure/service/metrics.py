"""What Prometheus is told: counts and times; no image, no name, nothing of one patient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from medfedpure.service.drift import Drift

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one service.

    Args:
        queue: how many images are uploaded, wait or are computed now.
        drift: what the monitor saw.
    """

    def __init__(self, queue: Callable[[], float], drift: Drift) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "medfedpure_requests", "Requests that were answered.", ("path", "status"), registry=self._registry
        )
        self._images = Counter("medfedpure_images", "Images that came.", ("outcome",), registry=self._registry)
        self._flagged = Counter("medfedpure_flagged", "Images that were flagged.", registry=self._registry)
        self._abstained = Counter("medfedpure_abstained", "Images without a verdict.", registry=self._registry)
        self._seconds = Histogram(
            "medfedpure_request_seconds",
            "From a request's head to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        for outcome in ("verdict", "refused"):
            self._images.labels(outcome)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "queue_images": ("Images that are uploaded, wait or are computed.", queue),
            "drift_watched": ("1 where scores are compared with the calibration.", lambda: drift.watched),
            "drift_looks": ("Windows of scores that were compared with the calibration.", lambda: drift.looks),
            "drift_alarms": ("Of these, that raised the alarm: shift or attack.", lambda: drift.alarms),
            "drift_p_value": ("Of the last window; NaN before the first.", lambda: drift.p_value),
        }
        for name, (text, ask) in gauges.items():
            Gauge(f"medfedpure_{name}", text, registry=self._registry).set_function(ask)

    def answered(self, path: str, status: int, seconds: float | None) -> None:
        """Count a request.

        Args:
            path: one of those that the service knows.
            status: of HTTP.
            seconds: that it took; None where that says nothing.
        """
        self._requests.labels(path, str(status)).inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def tell(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count rows of the log."""
        for row in rows:
            self._images.labels(row["event"]).inc()
            self._flagged.inc(bool(row.get("flagged")))
            self._abstained.inc(bool(row.get("abstained")))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
