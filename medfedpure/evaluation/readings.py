"""What a defence says of images, in several draws of its noise, and the figures that follow.

A verdict counts as right where it is accepted and the label, as fooled where it is accepted and another. One
draw is what a patient gets; the worst of N is what an attacker gets who may try N times; a majority of N is
what N readings give together (DiffHammer, arXiv 2410.16910; DiffBreak, arXiv 2411.16598).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

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
        nfe: evaluations of the purifier's network for each image and draw, those of the detector included, mean.
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


def read(
    chain: DefendedClassifier, images: Tensor, ids: Tensor, labels: Tensor, *, seed: int, draws: int, batch_size: int
) -> Reading:
    """Ask a chain `draws` times about `(N, C, H, W)`; the labels are for the calibration error only."""
    answers = []
    with counted_rows(chain) as rows:
        start = time.perf_counter()
        for place in range(draws):
            answers.append(chain.predict(images, ids=ids, seed=derive_seed(seed, "draw", place), batch_size=batch_size))
        seconds = time.perf_counter() - start
    first = answers[0]
    accepted = ~first.abstained.cpu()
    ece = None
    if bool(accepted.any()):
        ece = expected_calibration_error(first.probabilities.cpu()[accepted], labels[accepted])
    return Reading(
        verdicts=[said.labels.masked_fill(said.abstained, ABSTAINED).tolist() for said in answers],
        flagged=first.flagged.tolist(),
        purified=first.purified.tolist(),
        scores=None if first.scores is None else first.scores.tolist(),
        nfe=rows[0] / (draws * len(images)),
        ms=1000 * seconds / (draws * len(images)),
        ece=ece,
    )


@contextmanager
def counted_rows(chain: DefendedClassifier) -> Iterator[list[int]]:
    """Counts, in the first place of a list, the rows that pass the purifier's network inside the block."""
    total, network = [0], getattr(chain.purifier, "network", None)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module, output
        total[0] += len(inputs[0])

    handle = network.register_forward_hook(count) if isinstance(network, nn.Module) else None
    try:
        yield total
    finally:
        if handle is not None:
            handle.remove()
