"""Several independent purifications of one image, run as one batch, and the vote over what is read in them.

A stochastic purifier answers differently each time, and an attack often breaks some draws only (Kang et
al. 2024, "DiffAttack"; DiffHammer, 2024): the vote is what an attacker has to break. Its agreement is
reported as confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor

from medfedpure.acceleration.known import picked
from medfedpure.core.errors import ConfigError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import verdicts


@dataclass(frozen=True)
class Vote:
    """How many draws, and how they are counted.

    Attributes:
        draws: independent purifications of each image.
        how: "mean" of the probabilities, or "majority" of the verdicts (the mean breaks ties).
        min_agreement: share of draws that must give the verdict; below it the chain abstains.

    Raises:
        ConfigError: draws that are no whole number from 1, another word, a share outside [0, 1], or agreement asked of
            one draw.
    """

    draws: int = 1
    how: Literal["mean", "majority"] = "mean"
    min_agreement: float = 0.0

    def __post_init__(self) -> None:
        counted = isinstance(self.draws, Integral) and not isinstance(self.draws, bool) and self.draws >= 1
        shared = isinstance(self.min_agreement, Real) and 0 <= self.min_agreement <= 1
        if not (counted and shared) or self.how not in ("mean", "majority"):
            raise ConfigError(f'a vote has draws >= 1, how "mean" or "majority", min_agreement in [0, 1]; got {self}')
        object.__setattr__(self, "draws", int(self.draws))  # of numpy's numbers too, which JSON does not know
        object.__setattr__(self, "min_agreement", float(self.min_agreement))
        if self.draws == 1 and self.min_agreement > 0:
            raise ConfigError(f"a single draw always agrees with itself: min_agreement needs draws > 1; got {self}")

    def count(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(N, K)` and agreement `(N,)` from the logits of all draws `(N, draws, K)`.

        The mean of probabilities p is returned as log p; a majority as log of (votes + p) / (draws + 1), which
        orders classes by votes and equal votes by p. Both are differentiable through p.
        """
        if self.draws == 1:
            return logits[:, 0], logits.new_ones(len(logits))
        mean = logits.log_softmax(2).logsumexp(1) - math.log(self.draws)
        votes = (
            torch.nn.functional.one_hot(verdicts(logits.flatten(0, 1)), logits.shape[2])
            .unflatten(0, logits.shape[:2])
            .sum(1)
        )
        # in logarithms, so that a sure answer keeps a gradient
        counted = mean if self.how == "mean" else (votes + mean.exp()).div(self.draws + 1).log()
        agreement = votes.gather(1, verdicts(counted)[:, None]).squeeze(1) / self.draws
        return counted.clamp_min(math.log(torch.finfo(counted.dtype).tiny)), agreement.to(logits.dtype)


@dataclass(frozen=True)
class Cleaned:
    """What became of `M` images.

    Attributes:
        images: `(M, C, H, W)`, the first draw.
        logits: `(M, K)` of the vote.
        nfe: `(M,)` int64, network evaluations over all draws.
        timestep: `(M,)`, the diffusion depth, or None.
        agreement: `(M,)`, share of draws that give the verdict.
    """

    images: Tensor
    logits: Tensor
    nfe: Tensor
    timestep: Tensor | None
    agreement: Tensor


def draw(purifier: Purifier, images: Tensor, strength: Tensor, streams: Streams, vote: Vote) -> Purification:
    """Purify every draw of `(M, C, H, W)` in one batch `(M * draws, C, H, W)`, the draws of an image side by side."""
    copies = torch.arange(len(strength)).repeat_interleave(vote.draws)
    return purifier.purify(
        images.repeat_interleave(vote.draws, 0), picked(strength, copies), streams=streams.repeat(vote.draws)
    )


def count(drawn: Purification, logits: Tensor, vote: Vote) -> Cleaned:
    """Vote over what is read, logits `(M * draws, K)`, in the draws of `M` images."""
    shape = (-1, vote.draws)
    counted, agreement = vote.count(logits.unflatten(0, shape))
    return Cleaned(
        images=drawn.images[:: vote.draws],
        logits=counted,
        nfe=drawn.nfe.unflatten(0, shape).sum(1),
        timestep=None if drawn.timestep is None else drawn.timestep[:: vote.draws],
        agreement=agreement,
    )
