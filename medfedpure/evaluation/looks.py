"""How often an attack of the ladder looks at one image, at the most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Looks:
    """Looks at one image.

    Attributes:
        steep: with a gradient.
        plain: without one; the verdict that every attack asks for at its end is one of them.
        each: gradients that a steep look takes: aware attacks take that of the loss and that of the score.
    """

    steep: int
    plain: int
    each: int = 1

    @property
    def gradients(self) -> int:
        """Of all steep looks."""
        return self.steep * self.each

    def __add__(self, other: Looks) -> Looks:
        return Looks(self.steep + other.steep, self.plain + other.plain, self.each)

    def __mul__(self, times: int) -> Looks:
        return Looks(self.steep * times, self.plain * times, self.each)


def looks_of(attack: str, options: Mapping[str, Any], classes: int = 2) -> Looks:
    """At the most; fewer where images fall early.

    Args:
        attack: one that the ladder names.
        options: of the plugin, as the ladder writes them.
        classes: that the view answers.
    """
    return _LOOKS[attack](options, classes)


def _pgd_eot(options: Mapping[str, Any], classes: int) -> Looks:  # noqa: ARG001
    """Every start is judged once more where it may stop early, and again where it has rivals."""
    starts, eot = options["restarts"], options["eot"]
    judged = int(options.get("early_stop", True)) + int(starts > 1)
    return Looks(options["steps"] * eot * starts, judged * eot * starts + 1)


def _aware(options: Mapping[str, Any], classes: int) -> Looks:  # noqa: ARG001
    """The last step is looked at like the others."""
    return Looks((options["steps"] + 1) * options["eot"] * options["restarts"], 1, each=2)


def _square(options: Mapping[str, Any], classes: int) -> Looks:  # noqa: ARG001
    """Two questions for each square, and before the first: the image, its margin, and the stripes."""
    return Looks(0, options.get("rounds", 1) * (3 + 2 * options["queries"]) + 1)


def _suite(options: Mapping[str, Any], classes: int) -> Looks:
    """Every part, the judgement before the first and after each, and the verdict; APGD's last point has no gradient."""
    steps, eot = options["steps"], options["eot"]
    apgd, fab = Looks(steps * eot, eot), Looks(steps, steps)
    if options["version"] == "rand":
        return apgd * 2 + Looks(0, 3 * eot * options["patience"] + 1)
    aims = min(9, classes - 1)
    second = apgd if classes < 4 else apgd * aims + Looks(0, 1)
    return apgd + second + fab * aims + Looks(0, 1) + Looks(0, 4 + 1)


_LOOKS: Mapping[str, Callable[[Mapping[str, Any], int], Looks]] = {
    "pgd_eot": _pgd_eot,
    "joint_pgd": _aware,
    "orthogonal_pgd": _aware,
    "square": _square,
    "auto_attack_suite": _suite,
}
