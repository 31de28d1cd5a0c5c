"""How the masked autoencoder is configured, built and trained: what its detector and its purifier share."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.results import device_of
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.core.task import Task
from medfedpure.models.mae import MaskedAutoencoder
from medfedpure.training.loop import train

_FLAT = 1e-3
"""Variance of a patch below which it counts as flat, such as air: its own would blow its error up."""


Share = Annotated[float, Field(gt=0, lt=1)]


class MAEModelConfig(Config):
    """Size of the autoencoder; the paper's is 512 wide, 12 deep, 8 heads, decoder depth 8."""

    patch_size: int = Field(4, ge=1, le=512, description="side of a patch; the image side must be a multiple of it")
    width: int = Field(96, ge=8, le=4096, description="of the encoder")
    depth: int = Field(3, ge=1, le=64, description="encoder blocks")
    heads: int = Field(4, ge=1, le=64, description="attention heads of encoder and decoder")
    decoder_width: int = Field(64, ge=8, le=4096, description="of the decoder")
    decoder_depth: int = Field(2, ge=1, le=64, description="decoder blocks")


class MAENetworkConfig(Config):
    """The autoencoder and its training on benign images."""

    model: MAEModelConfig = Field(default_factory=MAEModelConfig, description="the autoencoder")
    mask_ratios: tuple[Share, Share] = Field((0.05, 0.75), description="training draws each batch's ratio from here")
    noise: float = Field(0.06, ge=0, description="largest std of the noise added to training images, in [0, 1] units")
    visible_weight: float = Field(10.0, ge=0, description="weight of denoising visible patches beside painting masked")
    normalized_loss: bool = Field(
        False, description="errors of a patch relative to its own variance (He et al. 2022, norm_pix_loss)"
    )
    validation_share: float = Field(
        0.0, ge=0, lt=1, description="of the images of `fit` (a federation keeps none), to stop early and keep the best"
    )
    training: TrainingConfig = Field(
        TrainingConfig(steps=1500, batch_size=64, learning_rate=1e-3, ema=0.99),
        description="its training",
    )


def make_autoencoder(model: MAEModelConfig, image_shape: tuple[int, int, int], seed: int) -> MaskedAutoencoder:
    """A fresh autoencoder for square `(C, H, W)` images, in eval mode.

    Raises:
        ConfigError: images that are not square or no multiple of the patch size.
    """
    channels, height, width = image_shape
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


def fit_autoencoder(
    config: MAENetworkConfig, data: ImageDataset, *, context: FitContext | None, seed: int
) -> MaskedAutoencoder:
    """Train on benign images, on a part of them where `validation_share` keeps some back.

    Raises:
        DataError: too few groups for `validation_share`.
        ArtifactError: `context.checkpoint` holds another training.
    """
    validation = None
    network = make_autoencoder(config.model, data.image_shape, seed).to((context or FitContext()).device)
    if config.validation_share:
        shares = {"train": 1 - config.validation_share, "validation": config.validation_share}
        parts = data.split(shares, seed=derive_seed(seed, "validation"))
        data, validation = parts["train"], parts["validation"]
    train(
        network,
        MaskedReconstruction(config),
        data,
        config.training,
        seed=seed,
        description="masked autoencoder",
        validation=validation,
        checkpoint=None if context is None else context.checkpoint,
    )
    return network


def complementary_mask(place: Tensor, number: int, masks: int, ratio: float) -> Tensor:
    """Mask `number` of `masks`, `(N, L)` bool, from a random order of the patches `(N, L)`.

    The masks are equally spaced windows of one cyclic order, so every patch is hidden equally often
    (up to rounding) when number times ratio is whole; otherwise some patches are hidden once more than others.
    """
    patches = place.shape[1]
    hidden = min(max(round(ratio * patches), 1), patches - 1)
    start = round(number * patches / masks)
    return (place - start) % patches < hidden


class MaskedReconstruction(Task):
    """Squared error on masked patches, plus that of denoising visible ones."""

    def __init__(self, config: MAENetworkConfig) -> None:
        self.config = config

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """One ratio for the batch, one mask and one noise level for each image."""
        return self._loss(model, batch, streams, float(Streams.for_batch(streams.seed, 1).uniform((1,), stage="ratio")))

    def metrics(self, model: nn.Module, data: ImageDataset, *, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
        """The mean loss over ratios evenly spread between the smallest and the largest."""
        total = 0.0
        device = device_of(model)
        with torch.no_grad():
            for batch in data.batches(batch_size):
                streams = Streams(derive_seed(seed, "metrics"), batch.ids)
                losses = [
                    float(self._loss(model, batch.to(device), streams, share)) for share in (0.0, 0.33, 0.67, 1.0)
                ]
                total += sum(losses) / len(losses) * len(batch.ids)
        return {"loss": total / max(len(data), 1)}

    def recipe(self) -> dict[str, Any]:
        """The configuration of the network and its loss."""
        fields = set(MAENetworkConfig.model_fields) - {"training"}
        return self.config.model_dump(mode="json", include=fields)

    def _loss(self, model: nn.Module, batch: Batch, streams: Streams, share: float) -> Tensor:
        assert isinstance(model, MaskedAutoencoder)
        low, high = self.config.mask_ratios
        ratio = low + (high - low) * share
        place = streams.permutations(model.patches, stage="mask", device=batch.images.device)
        masked = complementary_mask(place, 0, 1, ratio)
        level = streams.uniform((1, 1, 1), stage="level", like=batch.images) * self.config.noise
        noisy = batch.images + level * streams.normal(batch.images.shape[1:], stage="noise", like=batch.images)
        target = model.to_patches(batch.images)
        error = (model(noisy, masked) - target).square().mean(2)
        if self.config.normalized_loss:
            error = error * _FLAT / (target.var(2, correction=0) + _FLAT)
        hidden = (error * masked).sum() / masked.sum()
        seen = (error * ~masked).sum() / (~masked).sum()
        total: Tensor = 10 * (hidden + self.config.visible_weight * seen)
        return total
