"""Fine-tune a classifier on what a purifier leaves of its training images.

It is trained for some more steps on three kinds of every training image x with label y:

    x,    P(x, s),    P(x + d, s)        d = argmax of L(f; x + d) over ||d|| <= eps, by PGD; s uniform in [0, 1]

P is the fitted purifier, which stays as it is, at strength s; f is the classifier as it was given, and L its
cross-entropy. Why purified copies are learned from, `data.copies` says; attacked ones among them show what is left of a
perturbation. All copies are made once, before the first step, because a purifier costs far more than a step.

A copy stays in the group of its image, and none outlives the training: nothing is calibrated or tested on one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_logits
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError, DataError, InputError, TrainingError
from medfedpure.core.progress import track
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import device_of
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.data.copies import as_pixels, with_purified
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.crafting import lent, perturb
from medfedpure.training.loop import train

FINE_TUNING = TrainingConfig(
    steps=400, batch_size=48, learning_rate=3e-4, weight_decay=0.02, ema=0.99, sampling="balanced", checks=10
)
_Classifier = TypeVar("_Classifier", bound=nn.Module)


def fine_tune_on_purified(
    classifier: _Classifier,
    purifier: Purifier,
    data: ImageDataset,
    *,
    eps: float | str = 0.015,
    training: TrainingConfig = FINE_TUNING,
    augmentation: Augmentation | None = None,
    label_smoothing: float = 0.1,
    seed: int = 0,
    batch_size: int = 64,
    checkpoint: Path | None = None,
) -> _Classifier:
    """A copy of a classifier that was trained further, on images as they are, purified, and attacked and purified.

    What is made around the copy, a detector, a calibration, a defence, is made anew: its answers and features differ.

    Args:
        classifier: images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; it stays as it is.
        purifier: fitted; where it learns of a classifier, of this one or of one like it.
        data: labelled images that the classifier was trained on, or others that nothing is calibrated or tested on.
        eps: how far images are attacked, linf, in [0, 1] units of a pixel; "8/255" is accepted; 0 = no attacked ones.
        training: budget and optimizer; the default is what benchmarks/study measured at 128 px.
        augmentation: of the images and their copies, after purification.
        label_smoothing: of the cross-entropy, in [0, 1).
        seed: of the attack, of strengths and noise, and of the training.
        batch_size: of attack and purification; it changes no image beyond rounding.
        checkpoint: a folder from which an interrupted training goes on, with the same images, purifier, seed and
            batch_size, on the same kind of device; the copies are made anew.

    Returns:
        The copy, in eval mode, on the classifier's device.

    Raises:
        DataError: no image.
        InputError: other logits than one for each class of the data, or another kind of thing than is wanted.
        NotFittedError: the purifier is not fitted.
        TrainingError: no parameter may be updated, or a training with patience.
        ArtifactError: the checkpoint is of another training, which shows once the copies are made.
        ConfigError: a value outside of its range, or an eps of less than half a step of a pixel.
    """
    _check_kinds(classifier, purifier, data)
    training = TrainingConfig.parse(training)
    if len(data) == 0:
        raise DataError("there is no image to fine-tune on")
    if training.patience:
        raise TrainingError(f"patience = {training.patience} needs validation images, and here are none: set it to 0")
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise TrainingError("no parameter of the classifier requires a gradient: call requires_grad_(True) on some")
    purifier.check_fitted()
    task = ClassificationTask(augmentation, label_smoothing=label_smoothing)
    settings = AdversarialTraining.parse(share=1.0, eps=eps, step=None, steps=7)
    if 0 < settings.eps * data.top < 0.5:
        raise ConfigError(
            f"eps = {settings.eps:g} rounds to nothing in pixels of 0 to {data.top}: let it be {1 / data.top:.4g} or "
            "more, or 0 for no attacked copies"
        )
    _check(classifier, data.batch(torch.arange(1)).images.to(device_of(classifier)), data)
    seen = with_purified(data, purifier, copies=1, originals=1, seed=derive_seed(seed, "clean"), batch_size=batch_size)
    if settings.eps:
        attacked = replace(data, pixels=_attacked(classifier, data, settings, seed, batch_size))
        both = with_purified(
            attacked, purifier, copies=1, originals=1, seed=derive_seed(seed, "attacked"), batch_size=batch_size
        )
        cleaned = both.select(torch.arange(len(data), len(both)))
        spread = int(seen.ids.max()) - int(seen.ids.min()) + 1
        seen = ImageDataset.concatenate([seen, replace(cleaned, ids=cleaned.ids + spread)])
    reader = copy.deepcopy(classifier)
    train(
        reader,
        task,
        seen,
        training,
        seed=derive_seed(seed, "fine-tuning"),
        description="fine-tuning on purified images",
        checkpoint=checkpoint,
    )
    return reader


def _attacked(
    classifier: nn.Module, data: ImageDataset, settings: AdversarialTraining, seed: int, batch_size: int
) -> Tensor:
    """Pixels as the data's, of images that fool the classifier as far as the settings allow."""
    device, pixels = device_of(classifier), []
    for batch in track(data.batches(batch_size), "attacking training images", -(-len(data) // batch_size)):
        streams = Streams(derive_seed(seed, "attack"), batch.ids)
        moved = perturb(classifier, batch.to(device), streams, settings, ClassificationTask())
        pixels.append(as_pixels(moved, data))
    return torch.cat(pixels).view(data.pixels.dtype)


def _check_kinds(classifier: object, purifier: object, data: object) -> None:
    if hasattr(classifier, "calibrate") or not isinstance(classifier, nn.Module):  # a whole defence calibrates itself
        raise InputError(f"a bare classifier, a torch module, is wanted; got a {type(classifier).__name__}")
    if not isinstance(purifier, Purifier):
        raise InputError(f"a fitted purifier is wanted, not its name; got a {type(purifier).__name__}")
    if not isinstance(data, ImageDataset):
        raise InputError(f"a labelled ImageDataset is wanted; got a {type(data).__name__}")


def _check(classifier: nn.Module, image: Tensor, data: ImageDataset) -> None:
    with lent(classifier), torch.no_grad():
        logits = classifier(image)
    check_logits(logits, 1, values=True)
    if logits.shape[1] != data.num_classes:
        raise InputError(
            f"the classifier has {logits.shape[1]} logits, and {data.name} has {data.num_classes} classes "
            f"({', '.join(data.class_names)}): one logit for each class is wanted"
        )
