"""What an attacker sees of a defence.

A view is images to logits, with the gradient that the attacker is granted, and the detector's score, its
threshold and the classifier's features where they are known. The ladder of attackers (Carlini et al. 2019,
arXiv 1902.06705; Tramer et al. 2020, arXiv 2002.08347): `static` ignores the defence, `transfer` knows
another model only, `bpda` takes the identity for the purifier's gradient, `surrogate` differentiates a
shorter purifier, `exact` differentiates everything, `detector` sees the bare prediction and the score.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Shortenable, Sight, ThreatView
from medfedpure.core.errors import InputError, MissingRequirementError

if TYPE_CHECKING:
    from medfedpure.defence.chain import DefendedClassifier


def static_view(defended: DefendedClassifier) -> ThreatView:
    """The bare classifier of `defended`: the attacker ignores the defence (the paper's protocol)."""
    return ThreatView(
        defended.classifier,
        of=defended,
        name="static: attacker ignores the defence",
        features=defended.context().features,
    )


def transfer_view(model: nn.Module, of: str = "another model") -> ThreatView:
    """A model that is not the victim's, called what `of` says: what is found there is replayed on the victim."""
    return ThreatView(model, name=f"transfer: crafted on {of}", features=getattr(model, "features", None))


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
        score=_score_of(defended, sight),
        threshold=_threshold_of(defended),
    )


def detector_view(defended: DefendedClassifier) -> ThreatView:
    """The bare prediction of `defended` beside the score: for attacks that fool one and hide from the other.

    Raises:
        MissingRequirementError: there is no calibrated, differentiable detector.
    """
    if defended.detector is None or defended.calibration is None:
        raise MissingRequirementError("a detector view needs a defence with a calibrated detector")
    check_differentiable(defended, purifier=False)

    def sight(images: Tensor) -> Sight:
        found = defended.inspect(images, defended.next_streams(len(images)))
        assert found.scores is not None
        return found.logits, found.scores

    return ThreatView(
        defended.classifier,
        of=defended,
        name="detector: bare prediction and detector score, both differentiated",
        sight=sight,
        features=defended.context().features,
        stochastic=not defended.detector.deterministic,
        score=_score_of(defended, sight),
        threshold=_threshold_of(defended),
    )


def surrogate_view(defended: DefendedClassifier, *, steps: int, bandwidth: float = 1.0) -> ThreatView:
    """As `exact_view` of `defended` at that `bandwidth`, its purifier in at most `steps` evaluations: cheaper.

    Raises:
        MissingRequirementError: the purifier cannot be shortened.
    """
    if not isinstance(defended.purifier, Shortenable):
        raise MissingRequirementError("a surrogate view needs a purifier that has `shortened`, such as ddpm's")
    cheaper = copy.copy(defended)
    cheaper._modules = {**defended._modules, "purifier": defended.purifier.shortened(steps)}
    view = exact_view(cheaper, bandwidth=bandwidth)
    view.name = f"surrogate: the purifier in {steps} steps, otherwise {view.name}"
    return view


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


def _score_of(defended: DefendedClassifier, sight: Callable[[Tensor], Sight]) -> Callable[[Tensor], Tensor] | None:
    return None if _threshold_of(defended) is None else lambda images: sight(images)[1]


def _threshold_of(defended: DefendedClassifier) -> float | None:
    if defended.detector is None or defended.calibration is None:
        return None
    return defended.calibration.threshold()
