"""What counts of verdicts say, in sentences, and what they do not say."""

from __future__ import annotations

from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.figures.intervals import realised_fpr_interval, wilson
from medfedpure.reporting.verdicts.counts import Counts

_MANY = 10_000
"""Images beyond which the interval of their flags hardly shrinks: what is left of it is the calibration's own."""
MISUSE = (
    "No diagnosis: this is research software and no medical device, and a verdict is still that of the classifier "
    "behind the defence.",
    "No acquittal: an image that is not flagged may be attacked by somebody who knows the detector.",
    "No proof of an attack: a flag says that a score is higher than those of the calibration. Another scanner, "
    "protocol or kind of patient does that too.",
    "A p-value is the share of benign images like those of the calibration that look at least as suspicious, and not "
    "the probability of an attack.",
    "A purified image serves the classifier. It is no image to read from: faint findings are what a purifier removes.",
    "The shares are of these files. They are no accuracy: nobody said here what the images really show.",
)


def lead(counts: Counts) -> str:
    """The first sentence."""
    if not counts.images:
        return f"No image was judged; {files(counts.failed)} could not be read."
    told = f"{counts.flagged} of {images(counts.images)} in {files(counts.files)} flagged"
    without = f", {counts.abstained} left without a verdict" if counts.abstained else ""
    failed = f"; {files(counts.failed)} could not be read" if counts.failed else ""
    return f"{told}{without}{failed}."


def files(count: int) -> str:
    """So many files."""
    return f"{count} file{'' if count == 1 else 's'}"


def images(count: int) -> str:
    """So many images."""
    return f"{count} image{'' if count == 1 else 's'}"


def rate(counts: Counts, chain: DefendedClassifier, target_fpr: float | None) -> list[str]:
    """The share that was flagged beside what the calibration promises of benign images.

    Args:
        counts: of the rows.
        chain: that spoke.
        target_fpr: that it was asked for; None is its own.
    """
    calibration = chain.calibration
    if calibration is None:
        return ["This defence has no calibration and flags nothing."]
    if not counts.images:
        return []
    target = calibration.target_fpr if target_fpr is None else target_fpr
    bound = calibration.true_fpr_quantile(target_fpr=target)
    low, high = wilson(counts.flagged, counts.images)
    told = [
        f"{counts.flagged / counts.images:.1%} flagged, 95 % interval {low:.1%} to {high:.1%} (after Wilson, for "
        "independent images).",
        f"Of benign images like those of the calibration at most {target:.1%} are flagged on average over calibration "
        f"sets; this set, {len(calibration)} images, keeps to {bound:.1%} with 95 % probability.",
    ]
    if counts.images > counts.files:
        told.append("Images of one file are not independent, so these intervals are too narrow.")
    return [*told, _against(counts, calibration, target)]


def _against(counts: Counts, calibration: Calibration, target: float) -> str:
    """Whether so many flags are to be expected of benign images."""
    if not (rank := calibration.rank(target)):
        return "So few calibration images can flag nothing at this rate."
    among = min(counts.images, _MANY)
    low, high = realised_fpr_interval(among, rank=rank, calibration=len(calibration))
    wanted = f"of so many benign images like those, {low:.1%} to {high:.1%} would be flagged in 95 % of all cases."
    share = counts.flagged / counts.images
    if share > high:
        return (
            f"More than that: {wanted} Attacks, or another scanner, protocol or kind of patient: scores cannot tell "
            "which. Look at the images, and calibrate again where they are benign."
        )
    if share < low:
        return f"Less than that: {wanted} These images look more ordinary than those of the calibration."
    return f"The counts do not contradict that: {wanted} It says nothing of any single image."


def drift(counts: Counts, shares: list[float]) -> str:
    """The largest gap between scores and calibration, as a hint.

    Args:
        counts: with bins.
        shares: of the calibration in the same bins.
    """
    total, gap, below, own = sum(counts.bins), 0.0, 0.0, 0.0
    at = None
    for edge, count, share in zip(counts.edges, counts.bins, shares, strict=False):
        below, own = below + count / total, own + share
        if abs(below - own) > abs(gap):
            gap, at = below - own, (edge, below, own)
    if at is None:
        return "Scores lie as those of the calibration do."
    edge, below, own = at
    return (
        f"The largest gap: {below:.0%} of these images score at most {edge:.4g}, and {own:.0%} of the calibration. A "
        "hint and no test: a stream is tested for drift by a monitor, image by image."
    )


def threat(chain: DefendedClassifier) -> list[str]:
    """What stands behind the flags, and under what attack the defence was looked at."""
    told = []
    if chain.detector is not None and chain.calibration is not None:
        told.append(
            f"The detector {chain.detector.name!r} was calibrated on {len(chain.calibration)} benign images, "
            f"{chain.calibration.scope} scope. A calibration sees no attack: how many attacked images are flagged "
            "depends on the attack."
        )
    if chain.own_check is None:
        return [*told, "No check under an attack is saved with this defence: nothing is known here of what it catches."]
    return [*told, *(f"{line[:1].upper()}{line[1:]}." for line in chain.own_check.describe().splitlines())]
