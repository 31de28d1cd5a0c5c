"""Three recipes: what each fits, and what becomes of an image; and the record of a policy that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from medfedpure.core.component import check_types
from medfedpure.core.errors import ArtifactError, ConfigError, did_you_mean
from medfedpure.defence.policy import PURIFYING, Policy

Recipe = Literal["paper", "robust", "fast"]
"""paper: what the detector flags is purified. robust: the policy that held up best on held-out images, each attacked by
who knows it. fast: no purifier; what a cheap detector flags is refused."""

ARMS: tuple[Policy, ...] = ("none", "purify_flagged", "purify_all")
"""What "robust" chooses among, the cheapest first."""

_DETECTORS: Mapping[Recipe, str] = {"paper": "compose", "robust": "compose", "fast": "feature_squeezing"}
_FAST: Mapping[str, Any] = {"bits": ()}
"""The median filter alone: one pass, where fewer bits cost another and detect no more (benchmarks/recipes.py)."""
_PURIFIER = "ddpm"


@dataclass(frozen=True)
class Plan:
    """What is fitted, and what becomes of an image.

    Attributes:
        detector: plugin name.
        detector_config: what the recipe says of it.
        purifier: plugin name; None = none is fitted.
        policy: what becomes of images; None = it is chosen on held-out images.
    """

    detector: str
    detector_config: Mapping[str, Any]
    purifier: str | None
    policy: Policy | None


def plan_of(
    recipe: Recipe, *, detector: str | None = None, purifier: str | None = None, policy: Policy | None = None
) -> Plan:
    """What a recipe makes of what else was said, which wins where both can be.

    Args:
        recipe: its name.
        detector: plugin name; None = the recipe's.
        purifier: plugin name; None = the recipe's.
        policy: None = the recipe's.

    Raises:
        ConfigError: no such recipe, or one that contradicts what was said.
    """
    settled = policy_of(recipe, policy)
    for kind, name in (("detector", detector), ("purifier", purifier)):
        if name is not None and not name:
            raise ConfigError(f"the {kind} has an empty name: leave it out, and the recipe's is taken")
    if recipe == "fast" and purifier is not None:
        raise ConfigError(
            f"the recipe 'fast' fits no purifier, and the purifier {purifier!r} was given: leave it out, or take the "
            "recipe 'paper' or 'robust'"
        )
    own = _FAST if recipe == "fast" and detector is None else {}
    return Plan(detector or _DETECTORS[recipe], own, None if recipe == "fast" else purifier or _PURIFIER, settled)


def policy_of(recipe: Recipe, policy: Policy | None) -> Policy | None:
    """The policy under a recipe; None where it is chosen on held-out images.

    Args:
        recipe: its name.
        policy: what was said; None = nothing.

    Raises:
        ConfigError: no such recipe or policy, or one that contradicts the other.
    """
    known = get_args(Recipe)
    if recipe not in known:
        guess = did_you_mean(str(recipe), known)
        raise ConfigError(f"no recipe is named {recipe!r}.{guess} The recipes are {', '.join(known)}")
    if policy is not None and policy not in get_args(Policy):
        raise ConfigError(f"no policy is named {policy!r}; the policies are {', '.join(get_args(Policy))}")
    if recipe == "robust":
        if policy is not None:
            raise ConfigError(
                f"the recipe 'robust' chooses the policy on held-out images, and the policy {policy!r} was given: "
                "leave the policy out, or take the recipe 'paper'"
            )
        return None
    if recipe == "fast" and policy in PURIFYING:
        raise ConfigError(
            f"the recipe 'fast' fits no purifier, which the policy {policy!r} needs: leave the policy out, or take the "
            "recipe 'paper'"
        )
    return policy or ("abstain" if recipe == "fast" else "purify_flagged")


@dataclass(frozen=True)
class Arm:
    """One policy on the images of a choice; shares are balanced accuracies in [0, 1].

    Attributes:
        policy: of the chain.
        clean: on unattacked images.
        static: on images attacked on the bare classifier.
        knowing: on images attacked through this chain.
        worst: of images that are read rightly in all three, and as attacked through the other policies.
        low, high: 95 % interval of `worst`; None with a single near-duplicate group.
        view: how the knowing attacker sees the chain, and how often he looks at each image.
        seconds: that an unattacked image took.
    """

    policy: Policy
    clean: float
    static: float
    knowing: float
    worst: float
    low: float | None
    high: float | None
    view: str
    seconds: float

    def describe(self) -> str:
        """One line for people."""
        held = "" if self.low is None or self.high is None else f" (95 % interval {self.low:.0%} to {self.high:.0%})"
        return (
            f"{self.policy}: clean {self.clean:.1%}, static {self.static:.1%}, attacked through it {self.knowing:.1%}, "
            f"worst case {self.worst:.1%}{held}, {1000 * self.seconds:.3g} ms an image; {self.view}"
        )


def best_of(arms: Sequence[Arm], guessing: float) -> Policy:
    """The policy of the highest worst case, of equal ones the first.

    Args:
        arms: one or more, the cheapest first.
        guessing: what an arm must exceed on unattacked images, where any does.
    """
    reading = [arm for arm in arms if arm.clean > guessing] or arms
    return max(reading, key=lambda arm: round(arm.worst, 9)).policy


@dataclass(frozen=True)
class Choice:
    """Why a defence has the policy that it has: the worst case of each, on images of no fit, calibration or check.

    The best of several on few images looks better than it is: report what other images say.

    Attributes:
        policy: that of the highest worst case, of equal ones the cheapest; a policy that reads unattacked images no
            better than by guessing is taken only where all do.
        images: one of each near-duplicate group.
        truth: what a verdict is compared with.
        guessing: the balanced accuracy of guessing, 1 / K of the K >= 2 classes that occur.
        attack: norm, eps, steps and further conditions of every attack.
        arms: what was tried.

    Raises:
        ArtifactError: no arm, no images, shares outside [0, 1], or a policy that is not the best.
    """

    policy: Policy
    images: int
    truth: str
    guessing: float
    attack: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        shares = [share for arm in self.arms for share in (arm.clean, arm.static, arm.knowing, arm.worst)]
        tried = {arm.policy for arm in self.arms}
        fits = self.images >= 1 and tried <= set(ARMS) and all(0 <= share <= 1 for share in (*shares, self.guessing))
        if not fits or not tried or len(tried) < len(self.arms) or self.policy != best_of(self.arms, self.guessing):
            raise ArtifactError(f"a choice of policy names the best of what it tried; got {asdict(self)!r:.400}")

    def weakness(self) -> str:
        """In words, that nothing which was tried holds; "" where the worst case is better than guessing."""
        worst = next(arm.worst for arm in self.arms if arm.policy == self.policy)
        if worst > self.guessing:
            return ""
        return (
            f"no policy holds: the best worst case is {worst:.1%} on {self.images} images, and guessing gives "
            f"{self.guessing:.1%} ({self.attack}). Train the classifier on adversarial examples"
        )

    def describe(self) -> str:
        """Lines for people: the choice, each policy, the conditions."""
        weak = self.weakness()
        return "\n".join(
            (
                *([weak] if weak else []),
                f"policy {self.policy!r}, chosen by the recipe 'robust' on {self.images} images held out for it; "
                f"balanced accuracy against {self.truth}",
                *(arm.describe() for arm in self.arms),
                f"{self.attack}; the best of {len(self.arms)} on these images, so that its figures flatter it; no "
                "evaluation",
            )
        )

    def __str__(self) -> str:
        return self.describe()

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "arms": [asdict(arm) for arm in self.arms]}

    @classmethod
    def read(cls, document: Any, where: str) -> Self:
        """From what `document` gave.

        Raises:
            ArtifactError: it was not saved so.
        """
        wanted = {"policy": str, "images": int, "truth": str, "guessing": float, "attack": str, "arms": list}
        if not isinstance(document, dict) or document.keys() != wanted.keys():
            raise ArtifactError(f"{where} holds no choice of a policy as this version saves it: restore it")
        check_types(document, wanted, where)
        try:
            return cls(**{**document, "arms": tuple(Arm(**arm) for arm in document["arms"])})
        except TypeError as error:
            raise ArtifactError(f"{where} holds a choice of a policy that was edited: {error}") from error
