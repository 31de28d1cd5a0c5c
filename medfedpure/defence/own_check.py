"""What a fresh defence did on images that it held out itself: is it worth anything? No evaluation."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from medfedpure.core.component import check_types
from medfedpure.core.errors import ArtifactError, WeakDefenceWarning
from medfedpure.defence.policy import PURIFYING, Policy
from medfedpure.figures.intervals import wilson

LITTLE = 0.5
"""A share of the fooled images below which the defence is called weak."""

_MOST = 2**53  # beyond, floats are not exact

_COUNTS = ("images", "fooled", "flagged", "restored", "benign_flagged", "benign_kept")


@dataclass(frozen=True)
class OwnCheck:
    """Counts over images that nothing was fitted or calibrated on, one of each near-duplicate group.

    Attributes:
        images: how many.
        fooled: of these, where the attack changed the bare classifier's verdict.
        flagged: of the fooled, by the detector.
        restored: of the fooled, where the defence says what the bare classifier said before the attack.
        benign_flagged: of the unattacked images.
        benign_kept: of the unattacked images, where the defence says what the bare classifier says.
        policy: of the defence; only "purify_flagged" and "purify_all" restore anything.
        attack: norm, eps, steps and further conditions, as they must stand beside the counts.
        missing: why there was no attack, or "".

    Raises:
        ArtifactError: counts that cannot be, or no such policy.
    """

    images: int
    fooled: int
    flagged: int
    restored: int
    benign_flagged: int
    benign_kept: int
    policy: Policy
    attack: str
    missing: str = ""

    def __post_init__(self) -> None:
        if min(getattr(self, name) for name in _COUNTS) < 0 or not (
            max(self.flagged, self.restored) <= self.fooled <= self.images
            and max(self.benign_flagged, self.benign_kept, 1) <= self.images <= _MOST
        ):
            raise ArtifactError(f"counts of an own check are parts of each other; got {asdict(self)!r:.300}")
        if self.policy not in get_args(Policy):
            raise ArtifactError(
                f"an own check is of one of the policies {', '.join(get_args(Policy))}; got {self.policy!r}"
            )

    @property
    def purifies(self) -> bool:
        """Whether the policy could restore a verdict."""
        return self.policy in PURIFYING

    def weaknesses(self) -> list[str]:
        """In words, which shares of the fooled images are little; flags decide nothing under "purify_all"."""
        counts = {"flagged": self.policy != "purify_all", "restored": self.purifies}
        found = [name for name, counted in counts.items() if counted and getattr(self, name) < LITTLE * self.fooled]
        return [f"{_share(getattr(self, name), self.fooled)} {name}" for name in found]

    def describe(self) -> str:
        """Two lines for people: what was seen, and under what attack."""
        unattacked = f"unattacked: {_share(self.benign_flagged, self.images)} flagged"
        if self.purifies:
            unattacked += f", {_share(self.benign_kept, self.images)} verdicts kept"
        if self.missing:
            return f"own check on {self.images} images held out, {unattacked}\nno attack was made: {self.missing}"
        attacked = f"the attack fools the bare classifier on {self.fooled}"
        if not self.fooled:
            attacked = "the attack fools the bare classifier on none: nothing to flag or restore"
        else:
            attacked += f", of these {_share(self.flagged, self.fooled)} flagged"
            if self.purifies:
                attacked += f", {_share(self.restored, self.fooled)} restored"
        return f"own check on {self.images} images held out: {attacked}; {unattacked}\n{self.attack}; not an evaluation"

    def __str__(self) -> str:
        return self.describe()

    def warn(self, remedy: str, bound: float = 1.0, who: str = "this defence") -> None:
        """Warn where little was flagged or restored, or too many unattacked images were flagged.

        Args:
            remedy: what to do about it.
            bound: rate of flagged benign images that the calibration promises to keep to, with 95 % probability.
            who: whose defence it is, for the sentence.

        Warns:
            WeakDefenceWarning: with the numbers and their conditions.
        """
        if wilson(self.benign_flagged, self.images)[0] > bound:
            warnings.warn(
                f"{who} flags more benign images than it promises: {_share(self.benign_flagged, self.images)}, "
                f"where the calibration keeps to {bound:.1%} with 95 % probability: bring more benign images, and such "
                "as it will read",
                WeakDefenceWarning,
                stacklevel=3,
            )
        if found := self.weaknesses():
            warnings.warn(
                f"{who} looks weak: where the attack fools the bare classifier, only {' and '.join(found)} "
                f"({self.attack}). {remedy}",
                WeakDefenceWarning,
                stacklevel=3,
            )

    @classmethod
    def read(cls, document: Any, where: str) -> Self:
        """From `dataclasses.asdict` of one.

        Raises:
            ArtifactError: it was not saved so.
        """
        wanted = dict.fromkeys(_COUNTS, int) | {"policy": str, "attack": str, "missing": str}
        if not isinstance(document, dict) or document.keys() != wanted.keys():
            raise ArtifactError(f"{where} holds no own check as this version saves it: restore it")
        check_types(document, wanted, where)
        return cls(**document)


def _share(part: int, whole: int) -> str:
    """As counts, and per cent with its 95 % interval."""
    low, high = wilson(part, whole)
    return f"{part} of {whole} ({part / whole:.0%}, 95 % interval {low:.0%} to {high:.0%})"
