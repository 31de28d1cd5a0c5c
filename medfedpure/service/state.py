"""What a running service is made of, and how it judges one upload."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from medfedpure.core.errors import ArtifactError
from medfedpure.service.audit import AuditLog
from medfedpure.service.batching import Answer, Batcher
from medfedpure.service.decoding import Reader
from medfedpure.service.drift import Drift
from medfedpure.service.limits import Limits, Places, Refusal, refusal_of
from medfedpure.service.metrics import Metrics
from medfedpure.service.uploads import Upload
from medfedpure.verdicts.kept import KEY, MADE_BY

T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """Which pictures go with a verdict, each as a PNG of 8 bits in base64.

    Attributes:
        scan: the image as the defence was given it.
        map: where it looks suspicious.
        cleaned: what the classifier read instead.
    """

    scan: bool = False
    map: bool = False
    cleaned: bool = False


@dataclass
class Service:
    """All of one service; its methods are called on the event loop.

    Attributes:
        limits: of requests.
        reader: of uploads.
        batcher: asks the defence.
        drift: what its monitor saw.
        metrics: for Prometheus.
        heads: the columns of a row.
        made_by: which defence it is.
        token: that requests have to bring; None where only this machine may ask.
        audit: the log; None where nobody wants one.
        places: of the queue.
        ending: whether requests are refused because the service ends.
        in_flight: requests that are not answered yet.
        fault: why no verdict can be given; None where it can.
    """

    limits: Limits
    reader: Reader
    batcher: Batcher
    drift: Drift
    metrics: Metrics
    places: Places
    heads: list[str]
    made_by: str
    token: str | None
    audit: AuditLog | None
    ending: bool = False
    in_flight: int = 0
    fault: str | None = None
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "medfedpure-uploads"))

    async def beside(self, call: Callable[..., T], *arguments: Any) -> T:
        """What a call answers that would hold up all others, asked in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    @contextmanager
    def queueing(self) -> Iterator[Callable[[int], None]]:
        """Hold a place of the queue for this block, and more where the block calls for them.

        Raises:
            Refusal: there are no such places.
        """
        held = 0

        def take(count: int) -> None:
            nonlocal held
            self.places.take(count)
            held += count

        take(1)
        try:
            yield take
        finally:
            self.places.give(held)

    async def judge(self, upload: Upload, pictures: Pictures) -> dict[str, Any]:
        """The row of one upload, and the pictures that were asked for.

        Raises:
            Refusal: it cannot be read, or cannot be answered for.
        """
        try:
            image = await self.beside(self.reader.read, upload.content)
            answer = await asyncio.wrap_future(self.batcher.submit(image, pictures.map))
            row = self.row(upload, answer.row)
            return row | await self.beside(_drawn, image, answer, pictures) if pictures != Pictures() else row
        except Exception as error:
            raise refusal_of(error) from error

    def row(self, upload: Upload, verdict: dict[str, Any], error: str | None = None) -> dict[str, Any]:
        """A row with all columns, those that are not known None."""
        row = {head: verdict.get(head) for head in self.heads}
        return row | {KEY: upload.name, MADE_BY: self.made_by, "error": error}

    def record(self, request: str, uploads: list[Upload], found: list[dict[str, Any] | Refusal]) -> None:
        """Count verdicts, and write them into the log; no verdict leaves before its row is on the disk.

        Raises:
            Refusal: the log cannot be written.
        """
        rows = []
        for item, (upload, one) in enumerate(zip(uploads, found, strict=True)):
            about = {"request": request, "item": item}
            if self.audit is not None:
                about["scan"] = self.audit.name_of(upload.content)
            if isinstance(one, Refusal):
                rows.append({"event": "refused", **about, "status": one.status})
            else:
                facts = {head: one[head] for head in self.heads if head not in (KEY, "error")}
                rows.append({"event": "verdict", **about, **facts})
        self._write(rows)
        self.metrics.tell(rows)

    def resume(self) -> None:
        """Try whether the log, which could not be written, can be written again."""
        with suppress(Refusal):
            self._write([{"event": "resumed"}])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self.audit is None:
            return
        try:
            self.audit.append(rows)
            self.fault = None
        except (ArtifactError, OSError) as error:
            self.fault = str(error)
            raise Refusal(503, "the log of verdicts cannot be written, and no verdict leaves without it") from error


def _drawn(image: Tensor, answer: Answer, pictures: Pictures) -> dict[str, Any]:
    """Pictures of an image `(C, S, S)`, by the names that they have in a row."""
    drawn: dict[str, Any] = {}
    if pictures.scan:
        drawn["scan_png"] = _png(image)
    if pictures.map:
        drawn |= {"map_png": None, "map_low": None, "map_high": None}
        if (seen := answer.suspicion) is not None and bool(seen.isfinite().all()):
            low, high = float(seen.min()), float(seen.max())
            shade = (seen - low) / max(high - low, 1e-12)
            drawn |= {"map_png": _png(shade[None]), "map_low": low, "map_high": high}
    if pictures.cleaned:
        drawn["cleaned_png"] = None if answer.cleaned is None else _png(answer.cleaned)
    return drawn


def _png(image: Tensor) -> str:
    """An image `(1 or 3, H, W)` in [0, 1]."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte().movedim(0, -1).squeeze(-1).contiguous()
    height, width = pixels.shape[:2]
    written = io.BytesIO()
    Image.frombytes("L" if pixels.ndim == 2 else "RGB", (width, height), pixels.numpy().tobytes()).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode("ascii")
