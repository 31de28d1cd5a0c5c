"""Images of many requests, computed together by one thread; every answer goes back to the request that it is of."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.results import on_cpu
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.service.drift import Drift
from medfedpure.service.limits import Limits, refusal_of
from medfedpure.verdicts.predict import WHY
from medfedpure.verdicts.why import predicted

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What the defence said of one image.

    Attributes:
        row: its verdict by column.
        cleaned: `(C, H, W)` in [0, 1], what the classifier read; None where nothing was purified.
        suspicion: `(H, W)`, higher = more suspicious; None where it was not asked for, or the detector has no map.
    """

    row: dict[str, Any]
    cleaned: Tensor | None
    suspicion: Tensor | None


@dataclass
class _Waiting:
    image: Tensor
    explain: bool
    since: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)


class Batcher:
    """One thread that asks the defence.

    Args:
        chain: the defence, which nobody else uses meanwhile.
        limits: how many images at a time, and how long the first one waits for others.
        drift: is told the scores, in the order of the answers.
        seed: of the noise of every image, for tests; None draws fresh noise for each.
    """

    def __init__(self, chain: DefendedClassifier, limits: Limits, drift: Drift, seed: int | None = None) -> None:
        self.chain, self.limits, self.drift, self.seed = chain, limits, drift, seed
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="medfedpure-verdicts", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether answers can be expected."""
        return self._thread.is_alive() and not self._ending

    @property
    def length(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """Compute what waits, then end; returns when that is done."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def submit(self, image: Tensor, explain: bool = False) -> Future[Answer]:
        """The answer to be for an image `(C, H, W)`; one that is cancelled in time is not computed.

        Args:
            image: in [0, 1].
            explain: also ask where it looks suspicious.
        """
        one = _Waiting(image, explain)
        with self._changed:
            self._waiting.append(one)
            self._changed.notify()
        return one.answer

    def _work(self) -> None:
        while batch := self._next():
            wanted = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            for explain in (False, True):
                if alike := [one for one in wanted if one.explain is explain]:
                    self._answer(alike, explain)

    def _next(self) -> list[_Waiting]:
        """The next images: as many as came in time; none when all is over."""
        with self._changed:
            while not self._waiting and not self._ending:
                self._changed.wait()
            if self._waiting:
                until = self._waiting[0].since + self.limits.max_wait_ms / 1000
                while len(self._waiting) < self.limits.max_batch and not self._ending:
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self.limits.max_batch))]

    def _answer(self, batch: Sequence[_Waiting], explain: bool) -> None:
        """Answer images together; where that fails, each alone, so that one that fails takes no other with it.

        Where that fails too and a map was wanted, it is asked without: a verdict is worth more than its map.
        """
        try:
            answers = self._ask(torch.stack([one.image for one in batch]), explain)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._answer([one], explain)
            elif explain:
                self._answer(batch, explain=False)
                if batch[0].answer.exception() is None:
                    _LOG.error("an image has its verdict, and its map could not be drawn", exc_info=error)
            else:
                batch[0].answer.set_exception(refusal_of(error))
            return
        for one, answer in zip(batch, answers, strict=True):
            one.answer.set_result(answer)

    def _ask(self, images: Tensor, explain: bool) -> list[Answer]:
        # Under a seed all have one id: what an image is answered does not depend on who came with it.
        ids = torch.arange(len(images)) if self.seed is None else torch.zeros(len(images), dtype=torch.int64)
        said, why = predicted(self.chain, images, ids, self.seed, maps="all" if explain else "none")
        found = on_cpu(said)
        answers = []
        for place, (row, reason) in enumerate(zip(found.rows(), why, strict=True)):
            cleaned = found.images[place] if row["purified"] else None
            suspicion = None if found.suspicion_map is None else found.suspicion_map[place, 0]
            kept = {key: value for key, value in row.items() if key != "image"}
            answers.append(Answer({**kept, WHY: reason}, cleaned, suspicion))
        if found.scores is not None:
            self.drift.observe(found.scores)
        return answers
