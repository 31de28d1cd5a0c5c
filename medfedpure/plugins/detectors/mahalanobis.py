"""How far are the classifier's features from those of every class? (Lee et al. 2018, arXiv 1807.03888)

    score(x) = min over classes c of (h(x) - mu_c)^T S^-1 (h(x) - mu_c)

h the features that the classifier's head receives, mu_c the class means and S the covariance within
classes of benign images, shrunk towards a multiple of the identity. Of the paper's detector this is the
part that needs no attacked images: one layer, no learned combination of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, FitContext, ScoreContext, check_requirements
from medfedpure.core.errors import DataError, MissingRequirementError
from medfedpure.core.results import State
from medfedpure.core.streams import Streams


class MahalanobisConfig(Config):
    """How the covariance is estimated."""

    shrinkage: float = Field(0.1, gt=0, le=1, description="share of the covariance that is a multiple of the identity")


class Mahalanobis(Detector):
    """Fitted on benign images and their labels; a score needs the features of one classifier pass."""

    Config = MahalanobisConfig
    deterministic = True
    differentiable = True
    needs_fit = True

    means: Tensor
    precision: Tensor

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.register_buffer("means", torch.zeros(0, 0, dtype=torch.float64), persistent=False)
        self.register_buffer("precision", torch.zeros(0, 0, dtype=torch.float64), persistent=False)

    @property
    def requires(self) -> frozenset[str]:
        """Features; and labels, while it is fitted."""
        return frozenset({"features", "labels"})

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Class means and the shared covariance of benign features.

        Raises:
            DataError: a class without images.
        """
        del seed
        context = context or FitContext()
        check_requirements(self, context)
        with torch.no_grad():
            rows = torch.cat(
                [_features(context)(batch.images.to(context.device)).double() for batch in data.batches(64)]
            )
        labels = data.labels.to(rows.device)
        counts = labels.bincount(minlength=data.num_classes)
        if bool((counts == 0).any()):
            empty = [name for name, count in zip(data.class_names, counts.tolist(), strict=True) if not count]
            raise DataError(f"no benign image of class {', '.join(empty)}: mahalanobis needs every class")
        sums = torch.zeros(data.num_classes, rows.shape[1], dtype=rows.dtype, device=rows.device)
        means = sums.index_add(0, labels, rows) / counts[:, None]
        centred = rows - means[labels]
        covariance = centred.T @ centred / len(rows)
        level = covariance.diagonal().mean().clamp_min(1e-12)
        share = self.config.shrinkage
        identity = torch.eye(len(covariance), dtype=rows.dtype, device=rows.device)
        return self._adopt(means, torch.linalg.inv((1 - share) * covariance + share * level * identity))

    def _adopt(self, means: Tensor, precision: Tensor) -> Self:
        self.means, self.precision = means, precision
        return self.mark_fitted()

    def fitted_state(self) -> State:
        """Means `(K, F)` and precision `(F, F)`, float64."""
        return State(tensors={"means": self.means, "precision": self.precision})

    def restore(self, state: State) -> None:
        """Take what `fitted_state` gave."""
        self._adopt(state.tensors["means"], state.tensors["precision"])

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:  # noqa: ARG002
        """`(N,)`, squared Mahalanobis distance to the nearest class mean."""
        gaps = _features(context)(images).to(self.means).unsqueeze(1) - self.means
        distances = torch.einsum("nkf,fg,nkg->nk", gaps, self.precision, gaps)
        return distances.amin(1).to(images.dtype)


def _features(context: ScoreContext) -> Callable[[Tensor], Tensor]:
    if context.features is None:
        raise MissingRequirementError("mahalanobis requires the classifier's features")
    return context.features
