"""What a defence says of images, in several draws of its noise, and the figures that follow.

A verdict counts as right where it is accepted and the label, as fooled where it is accepted and another. One
draw is what a patient gets; the worst of N is what an attacker gets who may try N times; a majority of N is
what N readings give together (DiffHammer, arXiv 2410.16910; DiffBreak, arXiv 2411.16598).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medfedpure.core.streams import derive_seed
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.figures.intervals import Interval, cluster_bootstrap, paired_difference, wilson
from medfedpure.figures.metrics import expected_calibration_error

ABSTAINED = -1
Count = Literal["one draw", "worst of N", "majority of N"]


class Record(BaseModel):
    """Frozen, and written to JSON as it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reading(Record):
    """What a chain says of N images.

    Attributes:
        verdicts: for each draw the N classes; -1 where it abstains.
        flagged, purified, scores: of the first draw; scores are None without a detector.
        nfe: evaluations of the purifier's network for each image and draw, those of the detector included, mean.
        ms: wall-clock milliseconds for each image and draw, mean.
        ece: expected calibration error of the first draw, NaN where nothing is accepted.
    """

    verdicts: list[list[int]]
    flagged: list[bool]
    purified: list[bool]
    scores: list[float] | None
    nfe: float
    ms: float
    ece: float | None

    def right(self, labels: Tensor, count: Count = "one draw") -> Tensor:
        """`(N,)` bool: accepted, and the label."""
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
        return (first != labels) & (first != ABSTAINED)

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


def balanced(right: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of `(N,)` bool that hold; NaN without images."""
    shares = [float(right[labels == label].double().mean()) for label in labels.unique()]
    return sum(shares) / len(shares) if shares else float("nan")


def balanced_difference(one: Tensor, other: Tensor, labels: Tensor, groups: Tensor) -> Interval | None:
    """95 % interval of the difference of two `balanced` on the same `(N,)` images; None with a single group.

    Where every group has one image, Newcombe's paired intervals of the classes, their distances added in squares;
    otherwise the same near-duplicate groups are drawn for both.
    """
    present = labels.unique()
    if len(groups.unique()) < 2:
        return None

    def gap(rows: Tensor) -> float:
        if len(labels[rows].unique()) < len(present):
            return float("nan")
        return balanced(one[rows], labels[rows]) - balanced(other[rows], labels[rows])

    if len(groups.unique()) < len(groups):
        return cluster_bootstrap(gap, groups)
    below = above = 0.0
    for label in present:
        first, second = one[labels == label], other[labels == label]
        low, high = paired_difference(first, second)
        middle = float(first.double().mean() - second.double().mean())
        below, above = below + (middle - low) ** 2, above + (high - middle) ** 2
    middle = gap(torch.arange(len(labels)))
    return max(-1.0, middle - math.sqrt(below) / len(present)), min(1.0, middle + math.sqrt(above) / len(present))


def balanced_interval(right: Tensor, labels: Tensor, groups: Tensor, *, draws: int = 1000) -> Interval | None:
    """95 % interval of `balanced`, of `(N,)` bool, labels and groups; None with a single group.

    Where every group has one image, Wilson's intervals of the classes, their distances added in squares (Zou and
    Donner 2008, 10.1002/sim.3095): a bootstrap of 24 right images of 24 would claim to be certain. Otherwise
    near-duplicate groups are drawn with replacement.
    """
    present = labels.unique()
    if len(groups.unique()) < 2:
        return None
    if len(groups.unique()) == len(groups):
        below = above = 0.0
        for label in present:
            own = right[labels == label]
            low, high = wilson(int(own.sum()), len(own))
            share = float(own.double().mean())
            below, above = below + (share - low) ** 2, above + (high - share) ** 2
        middle = balanced(right, labels)
        low, high = middle - math.sqrt(below) / len(present), middle + math.sqrt(above) / len(present)
        return max(0.0, low), min(1.0, high)

    def figure(rows: Tensor) -> float:
        return balanced(right[rows], labels[rows]) if len(labels[rows].unique()) == len(present) else float("nan")

    return cluster_bootstrap(figure, groups, draws=draws)
