"""What an attacker sees of a defence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from medfedpure.core.defense import DefendedClassifier


class ThreatView(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to logits `(N, K)`, as an attacker sees them.

    Attributes:
        name: the gradient mode, to be printed beside every number: "static", "bpda", ...
        score: images to detector scores `(N,)`, or None where hidden.
        threshold: the calibrated threshold of that score, or None where hidden.
        features: images to classifier features `(N, F)`, or None where hidden.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        *,
        name: str = "static",
        score: Callable[[Tensor], Tensor] | None = None,
        threshold: float | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.predict = predict
        self.name = name
        self.score = score
        self.threshold = threshold
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)`."""
        return self.predict(images)

    def provides(self) -> frozenset[str]:
        """What it shows beyond logits."""
        return frozenset(n for n in ("score", "threshold", "features") if getattr(self, n) is not None)


def as_view(module: nn.Module) -> ThreatView:
    """A plain module as a view that shows logits only; a view is returned as it is."""
    return module if isinstance(module, ThreatView) else ThreatView(module, name="static")


def static_view(defended: DefendedClassifier) -> ThreatView:
    """The bare classifier: the attacker ignores the defence (the paper's protocol)."""
    return ThreatView(defended.classifier, name="static: attacker ignores the defence")


def bpda_view(defended: DefendedClassifier) -> ThreatView:
    """The whole chain, with the identity as the gradient of the purifier (BPDA, Athalye 2018).

    Forward: what the chain answers, with fresh noise on each call (of a vote, one draw); backward: through the
    classifier as if purified images were the input images plus a constant.
    """

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            change = defended.read(images) - images
        logits: Tensor = defended.classifier(images + change)
        return logits

    one = "" if defended.vote.draws == 1 else f", one of the {defended.vote.draws} draws of its vote"
    return ThreatView(predict, name=f"bpda: identity gradient through the purifier{one}")
