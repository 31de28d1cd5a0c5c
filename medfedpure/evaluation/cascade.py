"""Which images an attack still has to meet: what is settled is not attacked again.

An image is settled once no further attack can change anything that the table counts of it: in some counted attack it
was not right in one draw, in another or the same not right in a majority of draws, in one accepted and misread, and,
where a class is a finding, its finding was missed or was called where there is none. So every figure of the worst case
is that of the whole ladder, in which every image meets every attack. Attacks of a smaller eps count too: the change
that they found is allowed at a larger one.

The first images, those of the self-checks, meet every attack all the same, so that attacks can be compared on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfedpure.core.verdict import ABSTAINED
from medfedpure.evaluation.readings import Count, Reading

_COUNTS: tuple[Count, ...] = ("one draw", "worst of N", "majority of N")


class Cascade:
    """What the counted attacks on one defence have left to settle.

    Args:
        labels: `(N,)` int64.
        findings: numbers of the classes that are a finding.
        always: the first so many images meet every attack.
        alone: every image meets every attack.
    """

    def __init__(self, labels: Tensor, findings: Sequence[int], *, always: int, alone: bool) -> None:
        self.labels, self.always, self.alone = labels, always, alone
        self.findings = torch.tensor(list(findings), dtype=torch.int64)
        self._open = torch.ones(len(_COUNTS) + 2, len(labels), dtype=torch.bool)
        self._open[-1] = bool(self.findings.numel())

    def met(self) -> Tensor:
        """Places of the images that the next attack meets, `(M,)` int64 in rising order."""
        wanted = self._open.any(0)
        wanted[: self.always] = True
        return torch.nonzero(wanted | self.alone).squeeze(1)

    def took(self, reading: Reading) -> None:
        """What the defence said under an attack that counts."""
        labels, at = reading.own(self.labels), reading.own(torch.arange(len(self.labels)))
        said = torch.tensor(reading.verdicts[0])
        found, own = torch.isin(said, self.findings), torch.isin(labels, self.findings)
        kept = torch.where(own, found, ~found & (said != ABSTAINED))
        right = [reading.right(labels, count) for count in _COUNTS]
        self._open[:, at] &= torch.stack([*right, ~reading.fooled(labels), kept])


def chunks(places: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """The number of each chunk of so many images, and which of the places `(M,)`, in rising order, are in it."""
    numbers = places.div(size, rounding_mode="floor")
    return [(number, places[numbers == number]) for number in numbers.unique().tolist()]
