"""Detectors: is this image suspicious? Higher score = more suspicious."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_images, check_scores
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams


@runtime_checkable
class Denoiser(Protocol):
    """What a detector may borrow from a diffusion purifier."""

    def denoise(self, images: Tensor, timestep: Tensor, *, steps: int, streams: Streams) -> Tensor:
        """Noise images `(N, C, H, W)` to depth `timestep` `(N,)` and denoise them in `steps` evaluations."""


@runtime_checkable
class OneStepDenoiser(Protocol):
    """What a certificate may borrow from a diffusion purifier."""

    def denoise_once(self, noisy: Tensor, sigma: float) -> Tensor:
        """Images `(N, C, H, W)` in [0, 1] from ones with Gaussian noise of that std, in one network evaluation."""


@runtime_checkable
class NoisePredictor(Protocol):
    """What a detector of noise may borrow from a diffusion purifier."""

    def predict_noise(self, images: Tensor, timestep: Tensor) -> Tensor:
        """The noise `(N, C, H, W)` that a diffusion model sees in images in [0, 1], taken for ones at `(N,)`."""


@dataclass(frozen=True)
class ScoreContext:
    """What surrounds a detector in a chain.

    Attributes:
        classifier: maps images to logits `(N, K)`; None when there is none.
        features: maps images to features `(N, F)`, or None.
        denoiser: a diffusion model that cleans images, or None.
        logits: `(N, K)`, the classifier's logits on the very images being scored, where the chain
            already has them: use `predict_logits`, which saves a classifier pass.
        checkpoint: while a part is fitted, a folder where a long training keeps its progress and goes
            on from, for parts that can; None keeps nothing.
    """

    classifier: nn.Module | None = None
    features: Callable[[Tensor], Tensor] | None = None
    denoiser: Denoiser | None = None
    logits: Tensor | None = None
    checkpoint: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the classifier is: a part is fitted there. The CPU without one."""
        return device_of(self.classifier) if isinstance(self.classifier, nn.Module) else torch.device("cpu")

    def provides(self) -> frozenset[str]:
        """Names of the requirements that are met here."""
        return frozenset(name for name in ("classifier", "features", "denoiser") if getattr(self, name) is not None)

    def predict_logits(self, images: Tensor) -> Tensor:
        """Logits `(N, K)` of the images being scored."""
        if self.logits is not None:
            return self.logits
        if self.classifier is None:
            raise MissingRequirementError("this detector requires a classifier, and its context has none")
        logits: Tensor = self.classifier(images)
        return logits


FitContext = ScoreContext
"""What surrounds a detector or purifier while it is fitted: the same record, without `logits`."""


class Detector(Component, nn.Module):
    """One method to write: `score`; and `fit` where something is learned.

    A detector is an nn.Module, so networks assigned to it move with `.to(device)`.
    """

    kind: ClassVar[str] = "detector"

    @property
    def requires(self) -> frozenset[str]:
        """Which of "classifier", "features", "denoiser", "labels" it cannot work without."""
        return frozenset()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Learn from benign images; the default learns nothing.

        Args:
            data: benign images. Labels, where required, exist only here.
            context: classifier, features and denoiser of the chain to be.
            seed: of initialization, order and noise.
        """
        del data, seed
        check_requirements(self, context or FitContext())
        return self.mark_fitted()

    @abstractmethod
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """Suspicion `(N,)` of images `(N, C, H, W)` in [0, 1], higher = more suspicious.

        Each score may depend on its own image only, never on the batch.
        """
        raise NotImplementedError

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor | None:
        """Where it looks suspicious: `(N, 1, H, W)`, higher = more suspicious; None where there is no map."""
        del images, context, streams
        return None

    def reasons(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> list[str]:
        """Which part raised the score of each image `(N, C, H, W)`, N names; of one score it is the detector itself.

        A detector of several parts says "its name > the part's", at the cost of another score.
        """
        del context, streams
        return [self.name] * len(images)

    def forward(self, images: Tensor, *, context: ScoreContext | None = None, streams: Streams | None = None) -> Tensor:
        """Checked `score`: `(N,)`, device of the input.

        Raises:
            InputError: images of the wrong rank, dtype or range.
            NotFittedError: before `fit`.
            MissingRequirementError: the context lacks what `requires` names.
        """
        context = context or ScoreContext()
        check_images(images)
        self.check_fitted()
        check_requirements(self, context)
        scores = self.score(images, context=context, streams=streams or Streams.for_batch(0, len(images)))
        check_scores(scores, len(images), f"the detector {self.name!r}")
        return scores

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Detectors stay in eval mode: a defence does not change with its surroundings."""
        return super().train(False)


def check_requirements(part: Any, context: ScoreContext) -> None:
    """Raise MissingRequirementError unless the context provides all that `part.requires` names."""
    missing = part.requires - context.provides() - {"labels"}
    if missing:
        raise MissingRequirementError(
            f"the {part.kind} {part.name!r} requires {', '.join(sorted(missing))}, and this chain provides "
            f"{', '.join(sorted(context.provides())) or 'nothing'}: a denoiser comes from a diffusion purifier such as "
            "'ddpm', features from a classifier plugin"
        )
