"""Detectors of the Adversarial Robustness Toolbox that learn from benign images alone.

That is `SubsetScanningDetector` (McFowland, Speakman and Neill 2013; Cintas et al. 2020 on activations):
among the features that the classifier's head receives, the subset with the most unusual p-values against
benign images is searched,

    score(x) = max over subsets S of F(p_S),

F the scan statistic of Berk and Jones, higher criticism, or Kolmogorov and Smirnov. ART's other
detectors need attacked images or a second network, and are refused with the reason.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from art.defences.detector.evasion.subsetscanning.scanner import Scanner
from art.defences.detector.evasion.subsetscanning.scoring_functions import ScoringFunctions
from pydantic import Field, field_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, FitContext, ScoreContext, check_requirements
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.results import State
from medfedpure.core.streams import Streams

LARGEST = 0.5
"""ART's largest p-value that counts as unusual; where no feature has one, the best subset is empty: score 0."""
TIE = 1e-5
"""Features closer than this share of the largest count as equal: ranks must not turn on rounding."""
STATISTICS = {
    "BerkJones": ScoringFunctions.get_score_bj_fast,
    "HigherCriticism": ScoringFunctions.get_score_hc_fast,
    "KolmarovSmirnov": ScoringFunctions.get_score_ks_fast,
}
REFUSED = {
    "BinaryInputDetector": "it learns from attacked images, so it knows only the attacks it was shown",
    "BinaryActivationDetector": "it learns from attacked images, so it knows only the attacks it was shown",
    "BeyondDetectorPyTorch": "it needs a self-supervised network and augmentations, which no configuration can name",
}


class ArtDetectorConfig(Config):
    """Which of ART's detectors, and its options."""

    detector: str = Field("SubsetScanningDetector", description="class name in art.defences.detector.evasion")
    scoring_function: Literal["BerkJones", "HigherCriticism", "KolmarovSmirnov"] = Field(
        "BerkJones", description="the scan statistic, by ART's names"
    )

    @field_validator("detector")
    @classmethod
    def _fits_benign_images(cls, value: str) -> str:
        if value != "SubsetScanningDetector":
            reason = REFUSED.get(value, "it is not known here")
            raise ValueError(f"{value} cannot be used: {reason}. SubsetScanningDetector fits on benign images")
        return value


class ArtDetector(Detector):
    """ART's subset scanning over the classifier's features; not differentiable."""

    Config = ArtDetectorConfig
    deterministic = True
    needs_fit = True

    activations: Tensor

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.register_buffer("activations", torch.zeros(0, 0), persistent=False)

    @property
    def requires(self) -> frozenset[str]:
        """The classifier's features."""
        return frozenset({"features"})

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Keep the sorted features of benign images, one image of each near-duplicate group."""
        context = context or FitContext()
        check_requirements(self, context)
        kept = data.one_per_group(seed)
        with torch.no_grad():
            rows = [_features(context)(batch.images.to(context.device)) for batch in kept.batches(64)]
        return self._adopt(torch.cat(rows).float().sort(0).values)

    def _adopt(self, activations: Tensor) -> Self:
        self.activations = activations
        return self.mark_fitted()

    def fitted_state(self) -> State:
        """Benign features `(n, F)`, each column sorted by itself: no image's own row remains."""
        return State({}, {"activations": self.activations})

    def restore(self, state: State) -> None:
        """Take the features back."""
        self._adopt(state.tensors["activations"])

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:  # noqa: ARG002
        """`(N,)`, the largest scan statistic."""
        with torch.no_grad():
            features = _features(context)(images.detach()).to(self.activations)
        # ART's own loop over features takes a second for an image; its scan is what is asked for.
        ranges = self._p_values(features).cpu().numpy()
        statistic = STATISTICS[self.config.scoring_function]
        scores = []
        for row in ranges:
            unusual = bool((row[:, 1] <= LARGEST).any())
            best = Scanner.fgss_individ_for_nets(row, a_max=LARGEST, score_function=statistic)[0] if unusual else 0.0
            scores.append(float(best))
        return images.new_tensor(scores)

    def _p_values(self, features: Tensor) -> Tensor:
        """Smallest and largest one-sided p-values `(N, F, 2)` float64 of features `(N, F)`, as ART defines them."""
        known, asked = self.activations.T.contiguous(), features.T.contiguous()
        count = known.shape[1]
        above = count - torch.searchsorted(known, asked, right=True).T
        not_below = count - torch.searchsorted(known, asked - TIE * known.abs().amax(1, keepdim=True)).T
        return torch.stack((above, not_below + 1), dim=2).double() / (count + 1)


def _features(context: ScoreContext) -> Any:
    if context.features is None:
        raise MissingRequirementError("the detector 'art' requires the classifier's features")
    return context.features
