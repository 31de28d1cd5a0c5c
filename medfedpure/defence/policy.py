"""What becomes of an image: the four policies, and which parts each needs."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from medfedpure.core.detector import Detector
from medfedpure.core.errors import ConfigError, InputError, MissingRequirementError
from medfedpure.core.purifier import Purifier
from medfedpure.defence.voting import Vote

Policy = Literal["purify_flagged", "purify_all", "none", "abstain"]
PURIFYING = ("purify_flagged", "purify_all")


def check_parts(classifier: Any, detector: Detector | None, purifier: Purifier | None, policy: str, vote: Vote) -> None:
    """Make sure that a defence can be made of these.

    Raises:
        InputError: the classifier is no module.
        MissingRequirementError: the policy needs a part that is missing.
        ConfigError: no such policy, or a vote whose draws are none, or all the same.
    """
    if not isinstance(classifier, nn.Module):
        raise InputError(
            f"the classifier must be an nn.Module from images to logits; got {classifier!r:.60}: build it first, "
            "or wrap a function in a module whose forward calls it"
        )
    if policy not in get_args(Policy):
        raise ConfigError(f"no policy is named {policy!r}; the policies are {', '.join(get_args(Policy))}")
    if detector is None and policy in ("purify_flagged", "abstain"):
        raise MissingRequirementError(f"the policy {policy!r} needs a detector: pass detector=...")
    if purifier is None and policy in PURIFYING:
        raise MissingRequirementError(f"the policy {policy!r} needs a purifier: pass purifier=...")
    if vote.draws > 1 and (purifier is None or policy not in PURIFYING):
        raise ConfigError(f"a vote over {vote.draws} draws has nothing to draw under the policy {policy!r}")
    if vote.draws > 1 and purifier is not None and purifier.deterministic:
        raise ConfigError(f"{vote.draws} draws of the purifier {purifier.name!r} are all the same: it is deterministic")
