"""What a defence gains on attacked images over the best of what is simpler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from medfedpure.core.dataset import ImageDataset
from medfedpure.evaluation.tally import Figure
from medfedpure.figures.balanced import balanced, balanced_difference

Gains = dict[str, Figure]
"""By baseline: "bare", "anchor", "majority"."""


def gains_over(defended: Tensor, baselines: Mapping[str, Tensor], test: ImageDataset) -> Gains:
    """Differences of balanced accuracy on the same images, each with its 95 % interval.

    Args:
        defended: `(N,)` verdicts of the defence.
        baselines: `(N,)` verdicts of what is simpler, by name.
        test: labels and groups of these images.
    """
    right, found = defended == test.labels, {}
    for name, verdicts in baselines.items():
        other = verdicts == test.labels
        low, high = balanced_difference(right, other, test.labels, test.groups) or (None, None)
        value = balanced(right, test.labels) - balanced(other, test.labels)
        found[name] = Figure(value=value, low=low, high=high)
    return found


def mean_gain(gains: Sequence[Figure]) -> Figure:
    """Unweighted mean over clients; as these share no image, the distances of the intervals add in squares.

    mean -+ sqrt( sum_i (d_i - l_i)^2 ) / K (Zou and Donner 2008, 10.1002/sim.3095)
    """
    value, below, above = sum(one.value for one in gains) / len(gains), 0.0, 0.0
    for one in gains:
        if one.low is None or one.high is None:
            return Figure(value=value)
        below, above = below + (one.value - one.low) ** 2, above + (one.high - one.value) ** 2
    low, high = value - math.sqrt(below) / len(gains), value + math.sqrt(above) / len(gains)
    return Figure(value=value, low=max(-1.0, low), high=min(1.0, high))


def gain_over_best(clients: Sequence[Gains]) -> tuple[str, Figure] | None:
    """The baseline that is hardest to beat on average, and the mean gain over it; None where nothing was compared.

    Chosen on the same images, which flatters the baseline, never the defence.
    """
    names = [name for name in clients[0] if all(name in own for own in clients)] if clients else []
    means = {name: mean_gain([own[name] for own in clients]) for name in names}
    return min(means.items(), key=lambda item: item[1].value, default=None)


def shown(gain: Figure) -> bool:
    """Whether a gain is shown: its 95 % interval lies above 0."""
    return gain.low is not None and gain.low > 0
