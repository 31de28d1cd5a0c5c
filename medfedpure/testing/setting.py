"""Small inputs on which contracts are tested: images, a data set, and what surrounds a part."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medfedpure.core.classifier import Classifier, ClassifierModel
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Backend, Streams
from medfedpure.data.stored import read_images, write_images
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

SIZE = 32


def tiny_dataset(images: int = 48, *, size: int = SIZE, channels: int = 1, seed: int = 0) -> ImageDataset:
    """Smooth grey images in groups of two; the positive class carries a bright disc."""
    ids = torch.arange(images) * 7 + 3
    groups = torch.arange(images) // 2
    labels = groups % 2
    streams = Streams(seed, ids)
    coarse = streams.uniform((1, 4, 4), stage="background")
    pixels = 0.2 + 0.4 * nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    place = 0.25 + 0.5 * streams.uniform((2, 1, 1), stage="place")
    axis = (torch.arange(size) + 0.5) / size
    distance = ((axis[:, None] - place[:, 0]) ** 2 + (axis[None, :] - place[:, 1]) ** 2).sqrt()
    pixels = pixels + 0.35 * labels[:, None, None, None] * torch.sigmoid((0.15 - distance) * 40)[:, None]
    pixels = pixels + 0.02 * streams.normal((1, size, size), stage="noise")
    return ImageDataset(
        pixels=(pixels.clamp(0, 1) * 255).round().to(torch.uint8).repeat(1, channels, 1, 1),
        labels=labels,
        groups=groups,
        class_names=("plain", "disc"),
        ids=ids,
        sites=groups % 3,
        name="tiny",
    )


def tiny_classifier(size: int = SIZE, channels: int = 1, *, steps: int = 40) -> ClassifierModel:
    """A small_cnn of a few thousand weights, trained for some steps on `tiny_dataset`."""
    return copy.deepcopy(_tiny_classifier(size, channels, steps))


@cache
def _tiny_classifier(size: int, channels: int, steps: int) -> ClassifierModel:
    architecture: Classifier = create("classifier", "small_cnn", widths=(8, 16))
    model = architecture.create_model(
        in_channels=channels, num_classes=2, image_size=size, class_names=("plain", "disc")
    )
    if steps:
        budget = TrainingConfig(steps=steps, batch_size=16, learning_rate=1e-2)
        train(model, ClassificationTask(), tiny_dataset(size=size, channels=channels), budget, seed=0)
    return model.requires_grad_(False)


class SmoothingDenoiser(nn.Module):
    """Stands in for a diffusion model: adds noise by depth, then averages neighbours `steps` times."""

    def denoise(self, images: Tensor, timestep: Tensor, *, steps: int, streams: Streams) -> Tensor:
        """`(N, C, H, W)`; the noise has standard deviation timestep / 1000."""
        noise = streams.normal(images.shape[1:], stage="denoise", like=images)
        noisy = images + timestep.to(images)[:, None, None, None] / 1000 * noise
        for _ in range(steps):
            noisy = nn.functional.avg_pool2d(nn.functional.pad(noisy, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return noisy.clamp(0, 1)

    def predict_noise(self, images: Tensor, timestep: Tensor) -> Tensor:
        """`(N, C, H, W)`: what averaging neighbours takes away, relative to a deviation of 0.01 + timestep / 1000."""
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        residue = images - nn.functional.avg_pool2d(padded, 3, stride=1)
        return residue / (0.01 + timestep.to(images)[:, None, None, None] / 1000)


def tiny_context(size: int = SIZE, channels: int = 1, denoiser: Any = None) -> ScoreContext:
    """A context that meets every requirement."""
    classifier = tiny_classifier(size, channels)
    return ScoreContext(classifier, classifier.features, denoiser or SmoothingDenoiser())


@dataclass(frozen=True)
class Setting:
    """What a contract shows to a part.

    Attributes:
        images, labels, ids: `(N, C, H, W)` in [0, 1], `(N,)`, `(N,)`.
        strength: `(N,)` in [0, 1], for purifiers.
        train: what a part is fitted on.
        context: classifier, features and denoiser.
        seed: of the noise.
        noise: who draws it, "reference" or "device".
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    strength: Tensor
    train: ImageDataset
    context: ScoreContext
    seed: int = 7
    noise: Backend = "reference"

    @classmethod
    def of(cls, train: ImageDataset, context: ScoreContext, *, images: int = 6) -> Setting:
        """A setting whose images come from the data set, with ids that are not their places."""
        batch = train.batch(torch.arange(images) * max(1, len(train) // images) % len(train))
        return cls(batch.images, batch.labels, batch.ids, torch.linspace(0, 1, images), train, context)

    @property
    def streams(self) -> Streams:
        """The streams of these images."""
        return Streams(self.seed, self.ids, self.noise)

    def select(self, index: Tensor) -> Setting:
        """The same setting with some of the images; ids and strengths travel along."""
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            ids=self.ids[index],
            strength=self.strength[index],
        )

    def double(self) -> Setting:
        """The same setting in float64, its context copied."""
        classifier = copy.deepcopy(self.context.classifier)
        denoiser = copy.deepcopy(self.context.denoiser)
        for part in (classifier, denoiser):
            if isinstance(part, nn.Module):
                part.double()
        features = None if self.context.features is None else getattr(classifier, "features", self.context.features)
        return replace(
            self,
            images=self.images.double(),
            strength=self.strength.double(),
            context=ScoreContext(classifier, features, denoiser),
        )

    def to(self, device: torch.device | str) -> Setting:
        """The same setting with images, labels and context on a device, its context copied; ids stay on the CPU."""
        classifier = copy.deepcopy(self.context.classifier)
        denoiser = copy.deepcopy(self.context.denoiser)
        for part in (classifier, denoiser):
            if isinstance(part, nn.Module):
                part.to(device)
        features = None if self.context.features is None else getattr(classifier, "features", self.context.features)
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            strength=self.strength.to(device),
            context=ScoreContext(classifier, features, denoiser),
        )

    def save(self, folder: Path) -> None:
        """Write everything, for another process."""
        (folder / "train").mkdir()
        write_images(folder / "train", self.train)
        content = {key: getattr(self, key) for key in ("images", "labels", "ids", "strength")}
        save_file({key: value.contiguous().clone() for key, value in content.items()}, folder / "setting.safetensors")
        if self.context.classifier is not None:
            if not isinstance(self.context.classifier, ClassifierModel):
                raise TypeError("the classifier of a contract's context must be a ClassifierModel, to be saved")
            self.context.classifier.save(folder / "classifier")
        if isinstance(self.context.denoiser, Component):
            self.context.denoiser.save(folder / "denoiser")

    @classmethod
    def load(cls, folder: Path) -> Setting:
        """Read what `save` wrote."""
        content = load_file(folder / "setting.safetensors")
        classifier = ClassifierModel.load(folder / "classifier").requires_grad_(False)
        denoiser: Any = SmoothingDenoiser()
        if (folder / "denoiser").is_dir():
            denoiser = Component.load(folder / "denoiser")
        return cls(
            **{key: content[key] for key in ("images", "labels", "ids", "strength")},
            train=read_images(folder / "train"),
            context=ScoreContext(classifier, classifier.features, denoiser),
        )
