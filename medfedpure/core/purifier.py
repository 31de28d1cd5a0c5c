"""Purifiers: clean this image, that strongly."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

from torch import Tensor, nn

from medfedpure.core.checks import check_images
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext, check_requirements
from medfedpure.core.errors import InputError
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams


class Purifier(Component, nn.Module):
    """One method to write: `purify`; and `fit` where something is learned.

    A purifier is an nn.Module, so networks assigned to it move with `.to(device)`.
    """

    kind: ClassVar[str] = "purifier"

    @property
    def requires(self) -> frozenset[str]:
        """Which of "classifier", "features", "denoiser", "labels" fitting cannot do without."""
        return frozenset()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Learn from benign images; the default learns nothing."""
        del data, seed
        check_requirements(self, context or FitContext())
        return self.mark_fitted()

    @abstractmethod
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        """Clean images.

        Args:
            images: `(N, C, H, W)` in [0, 1].
            strength: `(N,)` in [0, 1]; 0 is the mildest purification, 1 the strongest.
            streams: the source of all randomness.

        Returns:
            Images in [0, 1], device and dtype of the input, with the network evaluations of each.
        """
        raise NotImplementedError

    def forward(
        self, images: Tensor, strength: Tensor | float = 0.0, *, streams: Streams | None = None
    ) -> Purification:
        """Checked `purify`.

        Args:
            images: `(N, C, H, W)`, floating, in [0, 1].
            strength: `(N,)` in [0, 1], or one number for all; 0 = the mildest cleaning.
            streams: where noise comes from; by default seed 0 and the places in the batch as ids.

        Raises:
            InputError: images of the wrong rank, dtype or range; a strength outside [0, 1].
            NotFittedError: before `fit`.
        """
        check_images(images)
        self.check_fitted()
        strengths = strength if isinstance(strength, Tensor) else images.new_full((len(images),), float(strength))
        if strengths.shape != (len(images),):
            raise InputError(f"strength must have shape ({len(images)},); got {tuple(strengths.shape)}")
        if strengths.numel() and not bool(((strengths >= 0) & (strengths <= 1)).all()):
            raise InputError(f"strength must lie in [0, 1]; got {strengths.min():.4g} to {strengths.max():.4g}")
        result = self.purify(images, strengths.to(images), streams=streams or Streams.for_batch(0, len(images)))
        if result.images.shape != images.shape or result.images.dtype != images.dtype:
            raise InputError(
                f"the purifier {self.name!r} returned {result.images.dtype} {tuple(result.images.shape)} for "
                f"{images.dtype} {tuple(images.shape)}: shape and dtype must be kept"
            )
        return result

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Purifiers stay in eval mode: a defence does not change with its surroundings."""
        return super().train(False)
