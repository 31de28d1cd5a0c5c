"""What a defence says of images, in several draws of its noise, and the figures that follow.

A verdict counts as right where it is accepted and the label, as fooled where it is accepted and another. One
draw is what a patient gets; the worst of N is what an attacker gets who may try N times; a majority of N is
what N readings give together (DiffHammer, arXiv 2410.16910; DiffBreak, arXiv 2411.16598).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain as in_turn
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medfedpure.acceleration.counted import counting
from medfedpure.core.config import Record
from medfedpure.core.streams import derive_seed
from medfedpure.core.verdict import ABSTAINED, fooled
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.figures.metrics import expected_calibration_error

Count = Literal["one draw", "worst of N", "majority of N"]


class Reading(Record):
    """What a chain says of N images.

    Attributes:
        verdicts: for each draw the N classes; -1 where it abstains.
        flagged, purified, scores: of the first draw; scores are None without a detector.
        nfe: evaluations of the purifier's networks for each image and draw, those of the detector included, mean.
        ms: wall-clock milliseconds for each image and draw, mean.
        ece: expected calibration error of the first draw, NaN where nothing is accepted.
        places: which of the evaluated images these are, in rising order; None = the first N of them.
    """

    verdicts: list[list[int]]
    flagged: list[bool]
    purified: list[bool]
    scores: list[float] | None
    nfe: float
    ms: float
    ece: float | None
    places: list[int] | None = None

    def __repr__(self) -> str:
        counts = f"{sum(self.flagged)} flagged, {sum(self.purified)} purified"
        return f"Reading of {len(self.flagged)} images in {len(self.verdicts)} draws: {counts}"

    __str__ = __repr__

    def own(self, values: Tensor) -> Tensor:
        """Of values `(M,)` of all evaluated images, those `(N,)` of the images that were read."""
        return values[: len(self.flagged)] if self.places is None else values[self.places]

    def right(self, labels: Tensor, count: Count = "one draw") -> Tensor:
        """`(N,)` bool: accepted, and the label, of labels `(N,)`."""
        verdicts = torch.tensor(self.verdicts)
        hits = verdicts == labels
        if count == "one draw":
            return hits[0]
        if count == "worst of N":
            return hits.all(0)
        # a tie with any other class, or with abstaining, is not a majority
        classes = int(torch.maximum(verdicts.max(), labels.max())) + 1
        votes = torch.stack([(verdicts == place).sum(0) for place in range(-1, classes)], 1)
        own = votes.gather(1, labels[:, None] + 1).squeeze(1)
        others = votes.scatter(1, labels[:, None] + 1, -1).amax(1)
        return own > others

    def fooled(self, labels: Tensor) -> Tensor:
        """`(N,)` bool: in the first draw accepted, and not the label."""
        first = torch.tensor(self.verdicts[0])
        return fooled(first, labels) & (first != ABSTAINED)

    def coverage(self) -> float:
        """Share of images that the first draw does not abstain on."""
        return float((torch.tensor(self.verdicts[0]) != ABSTAINED).double().mean())


@dataclass(frozen=True)
class Said:
    """What a chain said of M images in N draws: a part of a reading.

    Attributes:
        verdicts: for each draw the M classes; -1 where it abstains.
        flagged, purified, scores: of the first draw; scores are None without a detector.
        probabilities: `(M, K)` of the first draw, on the CPU.
        rows: that passed the purifier's networks.
        seconds: wall clock.
    """

    verdicts: list[list[int]]
    flagged: list[bool]
    purified: list[bool]
    scores: list[float] | None
    probabilities: Tensor
    rows: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """All but the probabilities."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "probabilities"}


def hear(chain: DefendedClassifier, images: Tensor, ids: Tensor, *, seed: int, draws: int, batch_size: int) -> Said:
    """Ask a chain `draws` times about `(M, C, H, W)`."""
    answers = []
    with counting(networks_of(chain.purifier)) as count:
        start = time.perf_counter()
        for place in range(draws):
            answers.append(chain.predict(images, ids=ids, seed=derive_seed(seed, "draw", place), batch_size=batch_size))
        seconds = time.perf_counter() - start
    first = answers[0]
    return Said(
        verdicts=[said.labels.masked_fill(said.abstained, ABSTAINED).tolist() for said in answers],
        flagged=first.flagged.tolist(),
        purified=first.purified.tolist(),
        scores=None if first.scores is None else first.scores.tolist(),
        probabilities=first.probabilities.cpu(),
        rows=count.rows,
        seconds=seconds,
    )


def reading_of(parts: Sequence[Said], labels: Tensor) -> Reading:
    """One reading of what was said of N images in several parts; labels `(N,)` are for the calibration error only."""
    said = [list(in_turn.from_iterable(draw)) for draw in zip(*(part.verdicts for part in parts), strict=True)]
    size, accepted = len(said[0]), torch.tensor(said[0]) != ABSTAINED
    ece = None
    if bool(accepted.any()):
        probabilities = torch.cat([part.probabilities for part in parts])
        ece = expected_calibration_error(probabilities[accepted], labels[accepted])
    scores = [part.scores for part in parts if part.scores is not None]
    return Reading(
        verdicts=said,
        flagged=[flag for part in parts for flag in part.flagged],
        purified=[done for part in parts for done in part.purified],
        scores=[score for own in scores for score in own] if scores else None,
        nfe=sum(part.rows for part in parts) / (len(said) * size),
        ms=1000 * sum(part.seconds for part in parts) / (len(said) * size),
        ece=ece,
    )


def networks_of(purifier: nn.Module | None) -> list[nn.Module]:
    """What counts as the network of a purifier: the one that it trained, and the one that was distilled from it."""
    found = [getattr(purifier, name, None) for name in ("network", "student")]
    return [network for network in found if isinstance(network, nn.Module)]
