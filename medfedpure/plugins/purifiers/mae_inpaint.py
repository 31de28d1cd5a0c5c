"""Every patch painted anew from the others by a masked autoencoder (Tsai et al. 2023, "Test-time defense").

    purified(x) = sum over masks m of m * r_m(x),

r_m the reconstruction from the patches that mask m leaves visible. The masks are complementary and
disjoint: every patch is hidden by exactly one of them, so no pixel of the input remains as it was.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import InputError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification, State
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.models.mae import MaskedAutoencoder
from medfedpure.models.mae_training import (
    MAENetworkConfig,
    MaskedReconstruction,
    fit_autoencoder,
    make_autoencoder,
)


class MAEInpaintConfig(MAENetworkConfig):
    """The autoencoder, and how many parts an image is painted in."""

    masks: int = Field(4, ge=2, description="each hides 1 / masks of the patches, and costs one network evaluation")


class MAEInpaint(Purifier):
    """The strength is not used: every patch is painted."""

    Config = MAEInpaintConfig
    differentiable = True
    needs_fit = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.network: MaskedAutoencoder | None = None
        self.shape = (0, 0, 0)

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh autoencoder for square `(C, H, W)` images; ConfigError for others."""
        return make_autoencoder(self.config.model, image_shape, seed)

    def task(self) -> Task:
        """Paint masked patches, denoise visible ones."""
        return MaskedReconstruction(self.config)

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained autoencoder."""
        assert isinstance(network, MaskedAutoencoder)
        self.network, self.shape = network.eval(), image_shape
        return self.mark_fitted()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train on benign images; goes on from `context.checkpoint` where there is one."""
        return self.adopt(fit_autoencoder(self.config, data, context=context, seed=seed), data.image_shape)

    def fitted_state(self) -> State:
        """The network's tensors and the image shape."""
        assert self.network is not None
        return State.of(self.network, shape=list(self.shape))

    def restore(self, state: State) -> None:
        """Rebuild the network and load it strictly."""
        channels, height, width = state.values["shape"]
        network = self.make_network((channels, height, width), seed=0)
        load_strictly(network, state.tensors, "the autoencoder of 'mae_inpaint'")
        self.adopt(network, (channels, height, width))

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)`, each patch painted from the others."""
        network, masks = self.network, self.config.masks
        assert network is not None
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"this purifier was fitted on images of shape {self.shape}; got {tuple(images.shape)}")
        place = streams.permutations(network.patches, stage="inpaint", device=images.device)
        own = images.to(network.position.dtype)
        painted = network.to_patches(own)
        for number in range(masks):
            hidden = place * masks // network.patches == number
            painted = torch.where(hidden[..., None], network(own, hidden), painted)
        cleaned = network.to_images(painted).clamp(0, 1).to(images.dtype)
        return Purification(cleaned, torch.full((len(images),), masks, device=images.device))
