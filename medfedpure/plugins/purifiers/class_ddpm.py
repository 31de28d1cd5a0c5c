"""A diffusion purifier that also draws images of a class, from noise alone.

Class-conditional diffusion with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): the noise predictor
learns with the class of each image, hidden from it now and then, at all timesteps. Then

    draw:    x_T ~ N(0, I);  DDIM back to t = 0 with   eps(x_t, t, none) + g (eps(x_t, t, class) - eps(x_t, t, none))
    purify:  as `ddpm`, with eps(x_t, t, none): it is told no label

g = 1 is the plain conditional model, in one network evaluation a step; above 1 the class is drawn more clearly and with
less variety, in two. `augment_with_samples` (medfedpure.data.synthetic) makes training images of it.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import DataError, InputError
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.plugins.purifiers.ddpm import DDPM, DDPMConfig
from medfedpure.plugins.purifiers.diffusion_base import DiffusionTask


class GenerationConfig(Config):
    """What is learned of classes, and how their images are drawn."""

    classes: int = Field(2, ge=2, le=1000, description="how many classes the training images have")
    hidden: float = Field(0.1, gt=0, lt=1, description="share of training images whose class is hidden")
    steps: int = Field(50, ge=1, description="DDIM steps from noise to an image")
    guidance: float = Field(1.0, ge=1, description="g: how strongly the class is drawn; above 1 costs twice")


class ClassDDPMConfig(DDPMConfig):
    """As `ddpm`, and classes; training covers all timesteps, so that it needs more of it."""

    generation: GenerationConfig = Field(default_factory=GenerationConfig, description="classes, and drawing of them")

    def deepest(self) -> float:
        """The last timestep."""
        return float(self.schedule.timesteps - 1)


class ClassDDPM(DDPM):
    """Purifies as `ddpm` does, told no label; `sample` draws images of a class."""

    Config = ClassDDPMConfig

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh noise predictor for `(C, H, W)` images of the configured classes."""
        return self._built(image_shape, seed, self.config.generation.classes)

    @property
    def classes(self) -> int:
        """K."""
        known: int = self.config.generation.classes
        return known

    def task(self) -> Task:
        """Predict the noise at all timesteps, mostly knowing the class."""
        return ClassDiffusionTask(self)

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train the noise predictor on benign images and their labels.

        Raises:
            DataError: the data have another number of classes than `generation.classes`.
        """
        if data.num_classes != self.config.generation.classes:
            raise DataError(
                f"{data.name} has {data.num_classes} classes, and generation.classes is "
                f"{self.config.generation.classes}: set it to {data.num_classes}"
            )
        return super().fit(data, context=context, seed=seed)

    @torch.no_grad()
    def sample(self, labels: Tensor, size: tuple[int, int], *, streams: Streams) -> Tensor:
        """Images `(N, C, H, W)` float32 in [0, 1] of classes `(N,)` int64, drawn from the streams' noise.

        Args:
            labels: in 0 ... K - 1.
            size: (H, W).
            streams: of the images.

        Raises:
            NotFittedError: it was not trained.
            InputError: a label of no class that it knows.
        """
        self.check_fitted()
        network, generation, classes = self.network, self.config.generation, self.config.generation.classes
        assert network is not None
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise InputError(
                f"this model draws classes 0 ... {classes - 1}; got {int(labels.min())} ... {int(labels.max())}: train "
                "one with as many generation.classes"
            )
        weight = next(network.parameters())
        wanted = labels.to(weight.device)

        def guided(noisy: Tensor, timestep: Tensor) -> Tensor:
            predicted: Tensor = network(noisy, timestep, wanted)
            if generation.guidance > 1:
                unknown = network(noisy, timestep)
                predicted = unknown + generation.guidance * (predicted - unknown)
            return predicted

        blank = weight.new_zeros(len(labels), self.channels, *size)
        last = blank.new_full((len(labels),), self.deepest())
        drawn = self.diffusion.reverse(guided, blank, last, generation.steps, streams=streams, stage="sample")
        images: Tensor = ((drawn.float() + 1) / 2).clamp(0, 1)
        return images


class ClassDiffusionTask(DiffusionTask):
    """The loss of `ddpm` over all timesteps, of a network that knows the class of all but the hidden share."""

    def recipe(self) -> dict[str, Any]:
        """With the classes and the hidden share."""
        generation = self.purifier.config.generation
        return {**super().recipe(), "classes": generation.classes, "hidden": generation.hidden}

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, batch: Batch, streams: Streams) -> Tensor:
        """The noise in images `(N, C, H, W)` at timesteps `(N,)`; of a class that it does not know as if hidden."""
        generation = self.purifier.config.generation
        hidden = streams.uniform((), stage="hidden class").to(batch.labels.device) < generation.hidden
        labels = torch.where(hidden, generation.classes, batch.labels.clamp(max=generation.classes))
        predicted: Tensor = model(noisy, timestep, labels)
        return predicted
