"""What an attacker sees of a defence.

A view is images to logits, with the gradient that the attacker is granted, and the detector's score, its
threshold and the classifier's features where they are known. The ladder of attackers (Carlini et al. 2019,
arXiv 1902.06705; Tramer et al. 2020, arXiv 2002.08347): `static` ignores the defence, `transfer` knows
another model only, `bpda` takes the identity for the purifier's gradient, `surrogate` differentiates a
shorter purifier, `exact` differentiates everything, `detector` sees the bare prediction and the score.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor, nn

from medfedpure.core.attack import Shortenable, Sight, ThreatView
from medfedpure.core.errors import MissingRequirementError
from medfedpure.defence.views import bpda_view as bpda_view
from medfedpure.defence.views import check_differentiable, score_of, threshold_of
from medfedpure.defence.views import exact_view as exact_view
from medfedpure.defence.views import gated_logs as gated_logs
from medfedpure.defence.views import is_stochastic as is_stochastic

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
        score=score_of(defended, sight),
        threshold=threshold_of(defended),
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
