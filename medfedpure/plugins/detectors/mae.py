"""Masked-autoencoder detector, trained on benign images only.

After MedFedPure (arXiv 2511.11625), whose score is the mean reconstruction error over masked patches

    reconstruction(x) = mean over masks m of || m * (x - r_m(x)) ||^2 / |m|,

and after MagNet (Meng and Chen 2017, arXiv 1705.09064), which asks whether the prediction survives:

    prediction_shift(x) = mean over masks m of JS( f(x), f(r_m(x)) ).

r_m reconstructs from the patches that mask m leaves visible, after noise was added; the visible ones it
denoises. The masks are complementary: with masks * mask_ratio whole, every patch is masked equally often,
and otherwise (as by default, 2 * 0.1) no patch more than once more than another. A third score,

    combined(x) = T log sum_i exp( z_i(x) / T ),   z_i = (log s_i(x) - mean_i) / std_i,

is a smooth maximum of reconstruction at several mask ratios, of the prediction shift, and of what the
denoising removes at high frequencies, mean over masks of || (1 - m) * (L * (x - r_m(x))) ||^2 / |1 - m| with L
the Laplacian. Means and standard deviations are those of benign images.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, FitContext, ScoreContext, check_requirements
from medfedpure.core.errors import DataError, InputError, MissingRequirementError
from medfedpure.core.progress import track
from medfedpure.core.results import State
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.task import Task
from medfedpure.figures.divergences import jensen_shannon
from medfedpure.models.mae import MaskedAutoencoder
from medfedpure.models.mae_training import (
    MAENetworkConfig,
    MaskedReconstruction,
    Share,
    complementary_mask,
    fit_autoencoder,
    make_autoencoder,
)


class MAEScoreConfig(Config):
    """How an image is scored."""

    kind: Literal["prediction_shift", "reconstruction", "combined"] = Field(
        "prediction_shift",
        description="does the prediction survive, the paper's mean reconstruction error, or several statistics at once",
    )
    masks: int = Field(2, ge=1, description="complementary masks that are averaged")
    mask_ratio: float = Field(0.1, gt=0, lt=1, description="share of patches hidden by each mask; the paper's is 0.75")
    noise: float = Field(0.04, ge=0, description="std of noise added before reconstruction, in [0, 1] units")
    ratios: tuple[Share, ...] = Field((0.5, 0.75), description="further mask ratios whose errors 'combined' looks at")
    temperature: float = Field(0.5, gt=0, description="T of 'combined', in standard deviations; towards 0 = maximum")


class MAEConfig(MAENetworkConfig):
    """The autoencoder, its training, and the score."""

    score: MAEScoreConfig = Field(default_factory=MAEScoreConfig, description="the score")


class MAEDetector(Detector):
    """Reconstructs from what is visible; suspicious when the image or its prediction does not come back."""

    Config = MAEConfig
    differentiable = True
    needs_fit = True

    centre: Tensor
    spread: Tensor

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.network: MaskedAutoencoder | None = None
        self.shape = (0, 0, 0)
        self.register_buffer("centre", torch.zeros(0, dtype=torch.float64), persistent=False)
        self.register_buffer("spread", torch.ones(0, dtype=torch.float64), persistent=False)

    @property
    def requires(self) -> frozenset[str]:
        """The classifier, when the score asks whether its prediction survives."""
        return frozenset(() if self.config.score.kind == "reconstruction" else {"classifier"})

    # -- training ------------------------------------------------------------------------------

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh autoencoder for square `(C, H, W)` images; ConfigError for others."""
        return make_autoencoder(self.config.model, image_shape, seed)

    def task(self) -> Task:
        """Paint masked patches, denoise visible ones."""
        return MaskedReconstruction(self.config)

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained autoencoder; the score 'combined' then still needs `finish_fit`."""
        assert isinstance(network, MaskedAutoencoder)
        self.network, self.shape = network.eval(), image_shape
        return self if self.config.score.kind == "combined" else self.mark_fitted()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train on benign images.

        Raises:
            DataError: too few groups for `validation_share`.
            ArtifactError: `context.checkpoint` holds another training.
        """
        context = context or FitContext()
        if self.config.score.kind == "combined":
            check_requirements(self, context)
        network = fit_autoencoder(self.config, data, context=context, seed=seed)
        return self.adopt(network, data.image_shape).finish_fit(data, context=context, seed=seed)

    @torch.no_grad()
    def finish_fit(self, data: ImageDataset, *, context: FitContext, seed: int = 0) -> Self:
        """Measure mean and standard deviation of the statistics of 'combined', one image of each group.

        Raises:
            DataError: a statistic does not vary.
        """
        if self.config.score.kind != "combined":
            return self
        kept = data.one_per_group(seed)
        rows = torch.cat(
            [
                self._statistics(
                    batch.images.to(context.device), context, Streams(derive_seed(seed, "standardize"), batch.ids)
                ).double()
                for batch in track(kept.batches(64), "scores of benign images", -(-len(kept) // 64))
            ]
        )
        spread = rows.std(0)
        if not bool((spread > 0).all()):
            raise DataError(f"a statistic of 'combined' does not vary over {len(kept)} images: bring more of them")
        self.centre, self.spread = rows.mean(0), spread
        return self.mark_fitted()

    def fitted_state(self) -> State:
        """The network's tensors, the image shape, and the benign mean and spread of 'combined'."""
        assert self.network is not None
        measured = {"centre": self.centre.tolist(), "spread": self.spread.tolist()}
        return State.of(self.network, shape=list(self.shape), **measured)

    def restore(self, state: State) -> None:
        """Rebuild the network and load it strictly."""
        channels, height, width = state.values["shape"]
        network = self.make_network((channels, height, width), seed=0)
        load_strictly(network, state.tensors, "the autoencoder of 'mae'")
        self.adopt(network, (channels, height, width))
        self.centre = torch.tensor(state.values["centre"], dtype=torch.float64)
        self.spread = torch.tensor(state.values["spread"], dtype=torch.float64)
        self.mark_fitted()

    # -- scoring -------------------------------------------------------------------------------

    def reconstructions(
        self, images: Tensor, *, streams: Streams, ratio: float | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """For each mask, the reconstruction `(N, C, H, W)` in [0, 1] and the mask `(N, L)`.

        The mask ratio is the score's own unless one is given.
        """
        network = self.network
        assert network is not None
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"this detector was fitted on images of shape {self.shape}; got {tuple(images.shape)}")
        score = self.config.score
        place = streams.permutations(network.patches, stage="mask", device=images.device)
        own = images.to(network.position.dtype)
        if score.noise:
            own = own + score.noise * streams.normal(images.shape[1:], stage="noise", like=own)
        results = []
        for number in range(score.masks):
            masked = complementary_mask(place, number, score.masks, score.mask_ratio if ratio is None else ratio)
            painted = network.to_images(network(own, masked)).clamp(0, 1)
            results.append((painted.to(images.dtype), masked))
        return results

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`, by the formula of `score.kind`."""
        score = self.config.score
        if score.kind == "combined":
            rows = self._statistics(images, context, streams)
            heat, standardized = score.temperature, (rows - self.centre.to(rows)) / self.spread.to(rows)
            largest: Tensor = heat * torch.logsumexp(standardized / heat, dim=1)
            return largest
        found = self.reconstructions(images, streams=streams)
        if score.kind == "reconstruction":
            return self._error(images, found)
        return _prediction_shift(images, found, context)

    def _statistics(self, images: Tensor, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N, S)`: logarithms of prediction shift, high-frequency residual, and errors at every ratio."""
        score = self.config.score
        found = self.reconstructions(images, streams=streams)
        values = [_prediction_shift(images, found, context), self._residual(images, found), self._error(images, found)]
        for ratio in score.ratios:
            values.append(self._error(images, self.reconstructions(images, streams=streams, ratio=ratio)))
        return torch.log(torch.stack(values, dim=1) + 1e-8)

    def _error(self, images: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        network, values = self.network, []
        assert network is not None
        for painted, masked in found:
            error = network.to_patches(images - painted).square().mean(2)
            values.append((error * masked).sum(1) / masked.sum(1))
        return torch.stack(values).mean(0)

    def _residual(self, images: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        network, values = self.network, []
        assert network is not None
        for painted, masked in found:
            error = network.to_patches(_laplacian(images - painted)).square().mean(2)
            values.append((error * ~masked).sum(1) / (~masked).sum(1))
        return torch.stack(values).mean(0)

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N, 1, H, W)`: mean absolute difference to the reconstructions, channels averaged."""
        del context
        changes = [(painted - images).abs() for painted, _ in self.reconstructions(images, streams=streams)]
        return torch.stack(changes).mean(0).mean(1, keepdim=True)


def _prediction_shift(images: Tensor, found: list[tuple[Tensor, Tensor]], context: ScoreContext) -> Tensor:
    classifier = context.classifier
    if classifier is None:
        raise MissingRequirementError("the score of 'mae' asks whether the prediction survives: it needs a classifier")
    logits = context.predict_logits(images)
    return torch.stack([jensen_shannon(logits, classifier(painted)) for painted, _ in found]).mean(0)


def _laplacian(images: Tensor) -> Tensor:
    """Four neighbours minus four times the pixel, the border repeated."""
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    weight = kernel.expand(images.shape[1], 1, 3, 3)
    return functional.conv2d(padded, weight, groups=images.shape[1])
