"""The task of every classifier: cross-entropy on augmented images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import ConfigError
from medfedpure.core.results import device_of
from medfedpure.core.settings import Augmentation
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.core.verdict import verdicts
from medfedpure.data.augmentation import augment
from medfedpure.figures.balanced import balanced, balanced_interval, chance_level
from medfedpure.figures.metrics import auroc, classification_figures


class ClassificationTask(Task):
    """Cross-entropy on augmented images.

    Args:
        augmentation: how training images are varied; by default mirrored and shifted by up to two pixels.
        label_smoothing: of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: another label_smoothing.
    """

    def __init__(self, augmentation: Augmentation | None = None, *, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is a share of each label, in [0, 1); got {label_smoothing}")
        self.augmentation = augmentation or Augmentation()
        self.label_smoothing = label_smoothing

    def recipe(self) -> dict[str, Any]:
        """The augmentation and the smoothing."""
        return {**self.augmentation.model_dump(mode="json"), "label_smoothing": self.label_smoothing}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """Mean cross-entropy of one augmented batch."""
        logits = model(self.inputs(model, batch, streams))
        return nn.functional.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)

    @property
    def classifies(self) -> bool:
        """Yes."""
        return True

    def inputs(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The images `(N, C, H, W)`, augmented where the model trains."""
        return augment(batch.images, self.augmentation, streams) if model.training else batch.images

    def metrics(self, model: nn.Module, data: ImageDataset, *, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
        """Mean cross-entropy, accuracy, balanced accuracy and whether it beats chance level; of two classes AUROC."""
        del seed
        device = device_of(model)
        with torch.no_grad():
            logits = torch.cat([model(batch.images.to(device)).cpu() for batch in data.batches(batch_size)])
        answers = verdicts(logits)
        counted = classification_figures(answers, data.labels, data.num_classes)
        figures = {
            "loss": float(nn.functional.cross_entropy(logits, data.labels)),
            "accuracy": counted.accuracy,
            "balanced_accuracy": counted.balanced_accuracy,
            "above_chance": float(_beats_guessing(answers == data.labels, data)),
        }
        if data.num_classes == 2 and 0 < int(data.labels.sum()) < len(data):
            margins = logits[:, 1] - logits[:, 0]
            figures["auroc"] = auroc(margins[data.labels == 0], margins[data.labels == 1])
        return figures


def _beats_guessing(right: Tensor, data: ImageDataset) -> bool:
    """Whether a balanced accuracy is clearly above chance level, by the first image of each group."""
    _, group = data.groups.unique(return_inverse=True)
    places = torch.arange(len(group))
    first = places.new_full((int(group.max()) + 1,), len(group)).scatter_reduce_(0, group, places, "amin")
    right, labels = right[first], data.labels[first]
    interval = balanced_interval(right, labels, group[first])
    return not chance_level(balanced(right, labels), interval, 1 / len(labels.unique()))
