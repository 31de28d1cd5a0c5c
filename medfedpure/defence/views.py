"""What an attacker sees who knows the whole chain: its answer, with its own gradient or the identity's.

Other views stand in `medfedpure.evaluation.views`; these two are also asked for where a defence chooses its policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Sight, ThreatView
from medfedpure.core.errors import InputError, MissingRequirementError

if TYPE_CHECKING:
    from medfedpure.defence.chain import DefendedClassifier


def bpda_view(defended: DefendedClassifier) -> ThreatView:
    """The whole chain `defended`, with the identity as the gradient of the purifier (BPDA, Athalye 2018).

    Forward: what the chain answers, with fresh noise on each call (of a vote, one draw); backward: through the
    classifier as if purified images were the input images plus a constant.
    """

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            change = defended.read(images) - images
        logits: Tensor = defended.classifier(images + change)
        return logits

    one = "" if defended.vote.draws == 1 else f", one of the {defended.vote.draws} draws of its vote"
    return ThreatView(
        predict,
        of=defended,
        name=f"bpda: identity gradient through the purifier{one}",
        stochastic=is_stochastic(defended),
    )


def exact_view(defended: DefendedClassifier, *, bandwidth: float = 1.0) -> ThreatView:
    """The whole chain `defended` with its own gradient, through detector, strength, gate, purifier and classifier.

    Both branches are evaluated for every image, p = g p_purified + (1 - g) p_raw, every draw of a vote included.
    The gate g is what the chain decides, 1 where the score s exceeds the threshold; its gradient is that of

        sigmoid((s - threshold) / (bandwidth * (threshold - median of the calibration scores))).

    Forward and backward of one call share their noise; every call draws fresh noise. Memory does not grow with the
    purifier's steps where it checkpoints. What it answers is log p, equal to the chain's verdict.

    Raises:
        MissingRequirementError: detector or purifier are not differentiable; the text says which.
        InputError: bandwidth not above 0.
    """
    if not bandwidth > 0:
        raise InputError(f"bandwidth > 0 is wanted; got {bandwidth}")
    check_differentiable(defended)

    def sight(images: Tensor) -> Sight:
        found = defended.inspect(images, defended.next_streams(len(images)))
        scores = images.new_zeros(len(images)) if found.scores is None else found.scores
        if defended.policy not in ("purify_flagged", "purify_all"):
            return found.logits, scores
        cleaned = defended.clean(images, found.strength, found.streams).logits
        if defended.policy == "purify_all":
            return cleaned, scores
        calibration = defended.calibration
        assert calibration is not None  # inspect made sure
        soft = torch.sigmoid((scores - calibration.threshold()) / (bandwidth * calibration.scale()))
        return gated_logs(cleaned, found.logits, found.flagged, soft), scores

    gated = f", gate hard forward and sigmoid backward, bandwidth {bandwidth:g} x (threshold - median)"
    drawn = "" if defended.vote.draws == 1 else f", all {defended.vote.draws} draws of its vote"
    return ThreatView(
        lambda images: sight(images)[0],
        of=defended,
        name=f"exact: gradient of the whole chain{drawn}{gated if defended.policy == 'purify_flagged' else ''}",
        sight=sight,
        features=defended.context().features,
        stochastic=is_stochastic(defended),
        score=score_of(defended, sight),
        threshold=threshold_of(defended),
    )


@runtime_checkable
class HasStandIn(Protocol):
    """A classifier whose own gradient says too little: what is made on `stand_in` must be replayed on it as well."""

    @property
    def stand_in(self) -> nn.Module:
        """Images `(N, C, H, W)` to logits `(N, K)` over the same classes."""


def stand_in_of(classifier: nn.Module) -> nn.Module | None:
    """What an attacker of a classifier, or of the network in a plugin's model, attacks beside it; mostly None."""
    parts = (classifier, getattr(classifier, "network", None))
    return next((part.stand_in for part in parts if isinstance(part, HasStandIn)), None)


def member_view(defended: DefendedClassifier) -> ThreatView:
    """What the stand-in of the classifier of `defended` says: of images, or where the policy purifies of clean ones.

    The gradient is that of stand-in and purifier (the identity's where the purifier has none), without detector and
    gate. Of a vote, one draw.

    Raises:
        MissingRequirementError: the classifier has none.
    """
    member = stand_in_of(defended.classifier)
    if member is None:
        raise MissingRequirementError("the classifier names no network to attack in its place")
    if defended.policy not in ("purify_flagged", "purify_all"):
        return ThreatView(member, of=defended, name="member: crafted on the network that stands for the classifier")
    purifier = defended.purifier
    exact = purifier is not None and purifier.differentiable

    def predict(images: Tensor) -> Tensor:
        if exact:
            seen = defended.read(images)
        else:
            with torch.no_grad():
                change = defended.read(images) - images
            seen = images + change
        logits: Tensor = member(seen)
        return logits

    how = "exact gradient of the purifier" if exact else "identity gradient through the purifier"
    return ThreatView(
        predict,
        of=defended,
        name=f"member: the network that stands for the classifier, {how}",
        stochastic=is_stochastic(defended),
    )


def gated_logs(purified: Tensor, raw: Tensor, flagged: Tensor, soft: Tensor) -> Tensor:
    """log p `(N, K)` of p = g p_purified + (1 - g) p_raw, from logits `(N, K)`: g hard forward, and soft backward.

    In logarithms, because a p that rounds to 0 or 1 has no gradient. Where p rounds to 0, g has none.

    Args:
        purified: `(N, K)` logits of the purified branch.
        raw: `(N, K)` logits of the other.
        flagged: `(N,)` bool, the gate.
        soft: `(N,)` in [0, 1], whose gradient stands for the gate's.
    """
    purified, raw, gate = purified.log_softmax(1), raw.log_softmax(1), flagged[:, None]
    logs, others = torch.where(gate, purified, raw), torch.where(gate, raw, purified)
    seen = logs.detach().clamp_min(math.log(torch.finfo(logs.dtype).tiny))
    # d log p / dg = (p_purified - p_raw) / p
    slope = torch.where(gate, 1.0, -1.0) * (1 - (others.detach() - seen).exp()) * (seen == logs.detach())
    return logs + (soft - soft.detach())[:, None] * slope.to(logs)


def is_stochastic(defended: DefendedClassifier) -> bool:
    """Whether two calls of a chain may answer differently."""
    parts = [
        defended.purifier if defended.policy in ("purify_flagged", "purify_all") else None,
        defended.detector if defended.policy in ("purify_flagged", "abstain") else None,
    ]
    return any(part is not None and not part.deterministic for part in parts)


def check_differentiable(defended: DefendedClassifier, *, purifier: bool = True) -> None:
    """Raise MissingRequirementError where a part that decides has no gradient."""
    used: list[Any] = [defended.detector] if defended.policy == "purify_flagged" or not purifier else []
    used += [defended.purifier] if purifier and defended.policy in ("purify_flagged", "purify_all") else []
    for part in used:
        if part is not None and not part.differentiable:
            raise MissingRequirementError(
                f"the {part.kind} {part.name!r} is not differentiable, so there is no exact gradient: attack this "
                "defence through bpda, or without gradients (square)"
            )


def score_of(defended: DefendedClassifier, sight: Callable[[Tensor], Sight]) -> Callable[[Tensor], Tensor] | None:
    """The score of what a `sight` of `defended` sees, images to `(N,)`; None where there is no threshold."""
    return None if threshold_of(defended) is None else lambda images: sight(images)[1]


def threshold_of(defended: DefendedClassifier) -> float | None:
    """The calibrated threshold of `defended`; None without a detector or a calibration."""
    if defended.detector is None or defended.calibration is None:
        return None
    return defended.calibration.threshold()
