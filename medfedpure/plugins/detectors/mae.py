"""Masked-autoencoder detector, trained on benign images only.

After MedFedPure (arXiv 2511.11625), whose score is the mean reconstruction error over masked patches

    reconstruction(x) = mean over masks m of || m * (x - r_m(x)) ||^2 / |m|,

and after MagNet (Meng and Chen 2017, arXiv 1705.09064), which asks whether the prediction survives:

    prediction_shift(x) = mean over masks m of JS( f(x), f(r_m(x)) ).

r_m reconstructs from the patches that mask m leaves visible; the visible ones it denoises. The masks
are complementary: every patch is masked equally often.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import Detector, FitContext, ScoreContext
from medfedpure.core.divergence import jensen_shannon
from medfedpure.core.errors import ConfigError, InputError, MissingRequirementError
from medfedpure.core.results import State
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, isolated_rng
from medfedpure.core.training import Task, TrainingConfig, train
from medfedpure.models.mae import MaskedAutoencoder


class MAEModelConfig(Config):
    """Size of the autoencoder; the paper's is 512 wide, 12 deep, 8 heads, decoder depth 8."""

    patch_size: int = Field(4, ge=1, description="side of a patch; the image side must be a multiple of it")
    width: int = Field(96, ge=8, description="of the encoder")
    depth: int = Field(3, ge=1, description="encoder blocks")
    heads: int = Field(4, ge=1, description="attention heads of encoder and decoder")
    decoder_width: int = Field(64, ge=8, description="of the decoder")
    decoder_depth: int = Field(2, ge=1, description="decoder blocks")


class MAEScoreConfig(Config):
    """How an image is scored."""

    kind: Literal["prediction_shift", "reconstruction"] = Field(
        "prediction_shift", description="does the prediction survive, or the paper's mean reconstruction error"
    )
    masks: int = Field(4, ge=1, description="complementary masks that are averaged")
    mask_ratio: float = Field(0.25, gt=0, lt=1, description="share of patches hidden by each mask")


class MAEConfig(Config):
    """Model, training and score."""

    model: MAEModelConfig = Field(default_factory=MAEModelConfig, description="the autoencoder")
    mask_ratios: tuple[float, float] = Field((0.15, 0.75), description="training draws each batch's ratio from here")
    noise: float = Field(0.03, ge=0, description="largest std of the noise added to training images, in [0, 1] units")
    visible_weight: float = Field(1.0, ge=0, description="weight of denoising visible patches beside painting masked")
    score: MAEScoreConfig = Field(default_factory=MAEScoreConfig, description="the score")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(steps=1500, batch_size=64, learning_rate=1e-3, ema=0.99),
        description="its training",
    )


class MAEDetector(Detector):
    """Reconstructs from what is visible; suspicious when the image or its prediction does not come back."""

    Config = MAEConfig
    differentiable: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.network: MaskedAutoencoder | None = None
        self.shape = (0, 0, 0)

    @property
    def requires(self) -> frozenset[str]:
        """The classifier, when the score asks whether its prediction survives."""
        return frozenset({"classifier"} if self.config.score.kind == "prediction_shift" else ())

    # -- training ------------------------------------------------------------------------------

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh autoencoder for square `(C, H, W)` images.

        Raises:
            ConfigError: images that are not square or no multiple of the patch size.
        """
        channels, height, width = image_shape
        model = self.config.model
        if height != width or height % model.patch_size:
            raise ConfigError(
                f"the masked autoencoder needs square images whose side is a multiple of patch_size "
                f"{model.patch_size}; got {height} x {width}: pad them, or choose another patch_size"
            )
        with isolated_rng(seed):
            return MaskedAutoencoder(
                channels,
                height,
                model.patch_size,
                model.width,
                model.depth,
                model.heads,
                model.decoder_width,
                model.decoder_depth,
            ).eval()

    def task(self) -> Task:
        """Paint masked patches, denoise visible ones."""
        return MaskedReconstruction(self.config)

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained autoencoder."""
        assert isinstance(network, MaskedAutoencoder)
        self.network, self.shape = network.eval(), image_shape
        return self.mark_fitted()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train on benign images."""
        del context
        network = self.make_network(data.image_shape, seed)
        train(network, self.task(), data, self.config.training, seed=seed, description="masked autoencoder")
        return self.adopt(network, data.image_shape)

    def fitted_state(self) -> State:
        """The network's tensors and the image shape."""
        assert self.network is not None
        return State.of(self.network, shape=list(self.shape))

    def restore(self, state: State) -> None:
        """Rebuild the network and load it strictly."""
        channels, height, width = state.values["shape"]
        network = self.make_network((channels, height, width), seed=0)
        load_strictly(network, state.tensors, "the autoencoder of 'mae'")
        self.adopt(network, (channels, height, width))

    # -- scoring -------------------------------------------------------------------------------

    def reconstructions(self, images: Tensor, *, streams: Streams) -> list[tuple[Tensor, Tensor]]:
        """For each mask, the reconstruction `(N, C, H, W)` in [0, 1] and the mask `(N, L)`."""
        self.check_fitted()
        network = self.network
        assert network is not None
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"this detector was fitted on images of shape {self.shape}; got {tuple(images.shape)}")
        score = self.config.score
        place = streams.permutations(network.patches, stage="mask", device=images.device)
        own = images.to(network.position.dtype)
        results = []
        for number in range(score.masks):
            masked = complementary_mask(place, number, score.masks, score.mask_ratio)
            painted = network.to_images(network(own, masked)).clamp(0, 1)
            results.append((painted.to(images.dtype), masked))
        return results

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`: mean JS divergence of predictions, or mean squared error over masked patches."""
        network, values = self.network, []
        assert network is not None
        for painted, masked in self.reconstructions(images, streams=streams):
            if self.config.score.kind == "reconstruction":
                error = network.to_patches(images - painted).square().mean(2)
                values.append((error * masked).sum(1) / masked.sum(1))
            else:
                if context.classifier is None:
                    raise MissingRequirementError("the score 'prediction_shift' requires a classifier")
                values.append(jensen_shannon(context.predict_logits(images), context.classifier(painted)))
        return torch.stack(values).mean(0)

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N, 1, H, W)`: mean absolute difference to the reconstructions, channels averaged."""
        del context
        changes = [(painted - images).abs() for painted, _ in self.reconstructions(images, streams=streams)]
        return torch.stack(changes).mean(0).mean(1, keepdim=True)


def complementary_mask(place: Tensor, number: int, masks: int, ratio: float) -> Tensor:
    """Mask `number` of `masks`, `(N, L)` bool, from a random order of the patches `(N, L)`.

    The masks are equally spaced windows of one cyclic order, so every patch is hidden equally often
    (up to rounding).
    """
    patches = place.shape[1]
    hidden = min(max(round(ratio * patches), 1), patches - 1)
    start = round(number * patches / masks)
    return (place - start) % patches < hidden


class MaskedReconstruction(Task):
    """Squared error on masked patches, plus that of denoising visible ones."""

    def __init__(self, config: MAEConfig) -> None:
        self.config = config

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """One ratio for the batch, one mask and one noise level for each image."""
        assert isinstance(model, MaskedAutoencoder)
        low, high = self.config.mask_ratios
        ratio = low + (high - low) * float(Streams.for_batch(streams.seed, 1).uniform((1,), stage="ratio"))
        place = streams.permutations(model.patches, stage="mask", device=batch.images.device)
        masked = complementary_mask(place, 0, 1, ratio)
        level = streams.uniform((1, 1, 1), stage="level", like=batch.images) * self.config.noise
        noisy = batch.images + level * streams.normal(batch.images.shape[1:], stage="noise", like=batch.images)
        error = (model(noisy, masked) - model.to_patches(batch.images)).square().mean(2)
        hidden = (error * masked).sum() / masked.sum()
        seen = (error * ~masked).sum() / (~masked).sum()
        total: Tensor = 10 * (hidden + self.config.visible_weight * 10 * seen)
        return total
