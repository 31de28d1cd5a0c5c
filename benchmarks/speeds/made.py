"""Classifiers, diffusion models, chains and phantoms that the sections time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

import medfedpure
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, FitContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import device_of
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.recipe import plan_of
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

Way = Literal["off", "auto"]
"""How a chain computes."""
SHARE = 0.05
"""Of benign traffic that is flagged."""
CLASSIFIERS: Mapping[str, tuple[str, Mapping[int, Mapping[str, Any]]]] = {
    "ResNet-18": ("resnet18", {32: {"stem": "medium"}, 64: {"stem": "medium"}, 224: {"stem": "large"}}),
    "EfficientNet-Lite0": ("efficientnet_lite0", {}),
}
"""Plugin, and configuration by size: from 96 px the plugin's own choice of a stem is the large one."""


def ways(device: str) -> list[Way]:
    """Those that differ on a device: where nothing is faster and answers the same, "auto" is "off"."""
    return ["off"] if Acceleration.auto(device) == Acceleration() else ["off", "auto"]


def phantoms(count: int, size: int, seed: int) -> ImageDataset:
    """So many, of one scanner and both classes."""
    data: ImageDataset = medfedpure.create(
        "dataset", "phantom", images=count, image_size=size, scanners=1, seed=seed
    ).read()
    return data


def traffic(count: int, fitted: int, size: int, seed: int, device: str) -> tuple[Tensor, ImageDataset]:
    """Images `(count, 1, size, size)` to be read, and others of the same scanner to fit a detector on."""
    data = phantoms(count + fitted, size, seed)
    return data.images[:count].to(device), data.select(torch.arange(count, count + fitted))


def classifier(name: str, size: int, device: str) -> ClassifierModel:
    """An untrained one for grey images: no slower and no faster than a trained one."""
    plugin, by_size = CLASSIFIERS[name]
    made: ClassifierModel = medfedpure.create("classifier", plugin, dict(by_size.get(size, {}))).create_model(
        in_channels=1, num_classes=2, image_size=size, seed=0, weights=None
    )
    return made.eval().requires_grad_(False).to(device)


def trained(name: str, data: ImageDataset, steps: int, device: str, **options: Any) -> ClassifierModel:
    """A classifier by plugin name, after so many steps of 32; its weights ask for gradients, as a user's do."""
    made: ClassifierModel = medfedpure.create("classifier", name, **options).create_model(
        in_channels=1, num_classes=2, image_size=data.image_shape[-1], class_names=data.class_names, seed=0
    )
    made.to(device)
    train(made, ClassificationTask(), data, TrainingConfig(steps=steps, batch_size=32, learning_rate=2e-3), seed=0)
    return made.eval()


def purifier(size: int, device: str, name: str = "ddpm", network: nn.Module | None = None, **options: Any) -> Any:
    """A diffusion purifier for grey images, its default network untrained unless one is given."""
    made: Any = medfedpure.create("purifier", name, **options)
    shape = (1, size, size)
    return made.adopt(network or made.make_network(shape, seed=0), shape).to(device).requires_grad_(False)


_TAUGHT = {"images": 16, "eps": (0.015,), "steps": 1, "training": {"steps": 2}}
"""`distilled` for a moment: what it costs does not depend on what it learned."""
DETECTORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "compose": ("compose", {}),
    "score_norm": ("score_norm", {}),
    "denoising_disagreement": ("denoising_disagreement", {}),
    "reduced": ("reduced", {}),
    "distilled": ("distilled", _TAUGHT),
    "staged": ("staged", {"first": {"plugin": "distilled", "config": _TAUGHT}}),
    "fast": (plan_of("fast").detector, plan_of("fast").detector_config),
}
"""Plugin and configuration; `fast` is the recipe, which purifies nothing."""


def gated(
    model: nn.Module,
    cleaner: Purifier | None,
    plugin: str,
    config: Mapping[str, Any],
    fit: ImageDataset,
    way: Way,
) -> DefendedClassifier:
    """A chain that purifies what its detector flags, or, without a purifier, refuses it; no threshold yet."""
    watcher: Detector = medfedpure.create("detector", plugin, dict(config))
    watcher.to(device_of(model))
    given = DefendedClassifier(model, purifier=cleaner, policy="none").context()
    if watcher.needs_fit:
        watcher.fit(fit, context=FitContext(given.classifier, given.features, given.denoiser), seed=0)
        watcher.to(device_of(model))
    policy: Any = "abstain" if cleaner is None else "purify_flagged"
    chain = DefendedClassifier(model, detector=watcher, purifier=cleaner, policy=policy)
    return chain.accelerate(way)


def flag(chain: DefendedClassifier, images: Tensor, count: int, batch_size: int) -> None:
    """Set the threshold so that so many of these images are flagged at noise seed 0; every part is warm after it."""
    # Any threshold serves to read the scores.
    chain.calibration = Calibration.fit(torch.zeros(1), SHARE, allow_never_flagging=True)
    scores = chain.predict(images, seed=0, batch_size=batch_size).scores
    assert scores is not None
    chain.calibration = Calibration.fit(scores, (count + 1.5) / (len(scores) + 1))


def clear(chain: DefendedClassifier, images: Tensor) -> None:
    """Let the first stage of `staged` clear exactly the share of these images that it aims at."""
    staged: Any = chain.detector
    with torch.no_grad(), chain.computing(images.device):
        streams = Streams.for_batch(0, len(images), chain.acceleration.noise)
        scores = staged.parts[0].score(images, context=chain.context(), streams=streams)
    staged.centre[0] = scores.double().quantile(staged.config.clear)


def bare(model: nn.Module, images: Tensor, batch_size: int, way: Way) -> Callable[[], object]:
    """The classifier alone, in batches, computing in the same way."""
    alone = DefendedClassifier(model, policy="none").accelerate(way)

    def work() -> object:
        with torch.no_grad(), alone.computing(images.device):
            return [alone.answering()(batch) for batch in images.split(batch_size)]

    return work
