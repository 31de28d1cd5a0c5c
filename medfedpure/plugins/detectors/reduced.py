"""Another detector, lent the chain's diffusion model on a smaller image: 1 / f^2 of its pixels.

    D'(x, t) = x + U( D(P x, t) - P x ),    eps'(x, t) = U eps_theta(2 P x - 1, t)

P averages squares of f x f pixels, U repeats each value f x f times: what the diffusion model takes away or sees in the
small image is taken away from, or seen in, the large one. A fully convolutional network answers at any size (Long et
al. 2015, arXiv 1411.4038), and only it works on less; a classifier that the detector asks still reads whole images.
Averaging divides noise that differs from pixel to pixel by f, so that the small image shows less of a perturbation, and
nothing of one that has a mean of 0 in every square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Denoiser, Detector, FitContext, NoisePredictor, ScoreContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.results import State
from medfedpure.core.streams import Streams
from medfedpure.plugins.detectors.parts import PartConfig, made, packed, spelled, unpack, upgraded


class ReducedConfig(Config):
    """Which detector, and how small the image."""

    inner: PartConfig = Field(PartConfig(plugin="score_norm"), description="one that borrows a diffusion model")
    factor: int = Field(2, ge=2, le=16, description="f, side of the squares of pixels that are averaged")


class Reduced(Detector):
    """Its flags and requirements are those of the detector inside."""

    Config = ReducedConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.inner = made(self.config.inner)
        if "denoiser" not in self.inner.requires:
            raise ConfigError(
                f"reduced lets a diffusion model work on less, and {self.config.inner.plugin!r} borrows none: take it "
                "as it is, or choose an inner one such as 'score_norm', 'denoising_disagreement' or 'compose'"
            )
        self.config = self.config.model_copy(update={"inner": spelled(self.config.inner, self.inner)})
        self.deterministic, self.differentiable = self.inner.deterministic, self.inner.differentiable
        self.per_image_streams, self.needs_fit = self.inner.per_image_streams, self.inner.needs_fit

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """The inner configuration is brought up to date by its own plugin."""
        return {**config, "inner": upgraded(config["inner"], format)} if "inner" in config else config

    @property
    def requires(self) -> frozenset[str]:
        """What the inner one requires."""
        return self.inner.requires

    def _lent(self, context: ScoreContext) -> ScoreContext:
        """The same context with the diffusion model on smaller images."""
        whole = context.denoiser
        if whole is None:
            return context
        kind = SmallerPredictor if isinstance(whole, NoisePredictor) else SmallerDenoiser
        return replace(context, denoiser=kind(whole, self.config.factor))

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Fit the inner one, on whole images and with the smaller diffusion model."""
        self.inner.fit(data, context=self._lent(context or FitContext()), seed=seed)
        return self.mark_fitted()

    def fitted_state(self) -> State:
        """The inner one's."""
        return packed([self.inner])

    def restore(self, state: State) -> None:
        """Give it back."""
        if state.values or self.needs_fit:
            unpack(state, [self.inner])
        self.mark_fitted()

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`, the inner one's."""
        return self.inner.score(images, context=self._lent(context), streams=streams)

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor | None:
        """`(N, 1, H, W)`, the inner one's: in squares where it shows what the diffusion model sees."""
        return self.inner.suspicion_map(images, context=self._lent(context), streams=streams)

    def reasons(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> list[str]:
        """What the inner one says: "reduced > score_norm"."""
        said = self.inner.reasons(images, context=self._lent(context), streams=streams)
        return [f"{self.name} > {text}" for text in said]


class SmallerDenoiser:
    """A diffusion model of whole images that computes on averages of `factor` x `factor` pixels.

    Attributes:
        deepest: the deepest timestep of the model, as a function; None where it says none.
    """

    def __init__(self, whole: Any, factor: int) -> None:
        self.whole, self.factor = whole, factor
        self.deepest = getattr(whole, "deepest", None)

    def _small(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, self.factor, ceil_mode=True, count_include_pad=False)

    def _large(self, small: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[2:]
        repeated = small.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return repeated[:, :, :height, :width]

    def denoise(self, images: Tensor, timestep: Tensor, *, steps: int, streams: Streams) -> Tensor:
        """Images `(N, C, H, W)` in [0, 1], changed as the model changes their averages at depth `(N,)`."""
        small, whole = self._small(images), self.whole
        assert isinstance(whole, Denoiser)
        change = whole.denoise(small, timestep, steps=steps, streams=streams) - small
        return (images + self._large(change, images)).clamp(0, 1)


class SmallerPredictor(SmallerDenoiser):
    """The same of a model that can also be asked for noise."""

    def predict_noise(self, images: Tensor, timestep: Tensor) -> Tensor:
        """The noise `(N, C, H, W)` that the model sees in the averages, taken for images at `(N,)`."""
        whole = self.whole
        assert isinstance(whole, NoisePredictor)
        return self._large(whole.predict_noise(self._small(images), timestep), images)
