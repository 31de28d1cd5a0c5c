"""What one request, and all of them together, may ask of the service; and how it says no."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields

from medfedpure.core.errors import ConfigError, MedFedPureError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Attributes:
        max_batch: images that are computed at a time.
        max_wait_ms: that a first image waits for others, in milliseconds.
        queue: images that are uploaded, wait or are computed at one time; further ones are refused.
        max_bytes: of one request.
        max_pixels: of one picture, padded to a square.
        upload_seconds: that the head of a request may take, and its body once more.

    Raises:
        ConfigError: a limit that lets nothing through.
    """

    max_batch: int = 16
    max_wait_ms: float = 5.0
    queue: int = 64
    max_bytes: int = 16 * 2**20
    max_pixels: int = 2**24
    upload_seconds: float = 30.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value < 0 or (value == 0 and item.name != "max_wait_ms"):
                raise ConfigError(f"{item.name} = {value} lets nothing through: give a number above 0")


class Refusal(MedFedPureError):
    """A request that is answered by a status and a sentence.

    Args:
        status: of HTTP.
        sentence: for the one who asked: what came, what was wanted, what to do next.
        headers: that go with it.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


def refusal_of(error: Exception) -> Refusal:
    """What became of one image: an error of ours is about it and is told, any other goes to the service's log."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MedFedPureError):
        return Refusal(422, f"the defence cannot answer for this image: {error}")
    _LOG.error("an image could not be computed", exc_info=error)
    return Refusal(500, "the service failed on this image: whoever runs it finds the reason in its log")


class Places:
    """The queue's places: taken when a request begins, given back when it ends; used from one thread.

    Args:
        most: places that there are.

    Attributes:
        taken: places that are not free.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self, count: int = 1) -> None:
        """Take places, all or none.

        Raises:
            Refusal: 413 where there are never so many, 429 where there are not now.
        """
        if count > self.most:
            raise Refusal(413, f"{count} images came in one request; at most {self.most} are taken: send fewer")
        if self.taken + count > self.most:
            raise Refusal(429, "the queue is full: ask again after the seconds of Retry-After", {"Retry-After": "1"})
        self.taken += count

    def give(self, count: int = 1) -> None:
        """Give places back."""
        self.taken -= count
