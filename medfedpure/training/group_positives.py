"""Images of one group as positives of each other: near-duplicates, or the images of one patient.

Which images show one patient is known here anyway, because no split may part them. After HSAT (Malik et al. 2025,
"Hierarchical self-supervised adversarial training for robust vision models in histopathology", arXiv 2503.10629),
which takes patches of one slide and slides of one patient for positives under attack, a term is added to a task's
loss: with z the classifier's features, scaled to length 1, and t the temperature

    mean over i, and over p in P(i), of   log(1 + sum_{n in N(i)} exp((z_i . z_n - z_i . z_p) / t))

P(i) are the other images of its group and class, N(i) those of other groups; of its own class only where asked for. An
image without a partner in the batch is no i. The supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362) has
the other positives in the denominator as well, and then pushes away the positive that is already nearest; they are left
out here (Barbano et al. 2023, "Unbiased supervised contrastive learning", arXiv 2211.05568, with epsilon = 0).

Inside adversarial training the term sees what the attack left of a batch, so that plain and attacked images of a
group are pulled together. The attack itself raises the plain task's loss. With two sets of BatchNorm attacked and clean
images pass apart, and each is pulled to its own kind; trades shows the term clean images alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import PartnersWarning, TrainingError
from medfedpure.core.settings import GroupPositives
from medfedpure.core.streams import Streams
from medfedpure.core.task import BatchSampler, Task, WrappedTask
from medfedpure.training.group_sampling import Partnered, units_of
from medfedpure.training.second_set import statistics_untouched

_FAR = -1e9


def with_group_positives(task: Task, settings: GroupPositives, data: ImageDataset, *, balanced: bool = False) -> Task:
    """A classifier's task that also pulls images of one group together; the task itself where the weight is 0.

    Args:
        task: what is learned.
        settings: weight, temperature, and what belongs together.
        data: the images to be trained on, `(N, C, H, W)`, whose groups count.
        balanced: its batches hold every class equally often, as `TrainingConfig.sampling` would.

    Raises:
        DataError: the data have no such level.
    """
    if not settings.weight:
        return task
    made = GroupPositivesTask(task, settings, data, balanced=balanced)
    if not made.has_partners:
        warnings.warn(
            f"no two of the {len(data)} images of {data.name} share a {settings.unit} and a class, so that "
            "group_positives changes nothing but the order of images: set its weight to 0, or read data with groups",
            PartnersWarning,
            stacklevel=2,
        )
    return made


class GroupPositivesTask(WrappedTask):
    """The inner loss + weight * the contrastive loss of the batch; it costs one more pass there and back.

    That pass moves no running statistics.

    Args:
        inner: what is learned; the images that it shows to the model are compared.
        settings: weight, temperature, and what belongs together.
        data: the images to be trained on, `(N, C, H, W)`, whose groups count.
        balanced: see `Partnered`.

    Attributes:
        has_partners: whether two images at all belong together.
    """

    def __init__(self, inner: Task, settings: GroupPositives, data: ImageDataset, *, balanced: bool = False) -> None:
        super().__init__(inner)
        self.settings, self.balanced = settings, balanced
        self.ids, order = data.ids.sort()
        self.units = units_of(data, settings.unit)[order]
        own = torch.stack((self.units, data.labels[order]), 1)
        self.has_partners = len(own.unique(dim=0)) < len(own)

    def recipe(self) -> dict[str, Any]:
        """With the settings."""
        return {**super().recipe(), "group_positives": self.settings.model_dump(mode="json")}

    def sampler(self) -> BatchSampler | None:
        """Batches that hold several images of a group; the inner task's where the weight is 0."""
        if not self.settings.weight:
            return super().sampler()
        return Partnered(self.settings.unit, self.settings.images, balanced=self.balanced)

    def around(
        self, model: nn.Module, parameters: Sequence[nn.Parameter]
    ) -> AbstractContextManager[Sequence[nn.Parameter]]:
        """The inner task's, of a model that has features.

        Raises:
            TrainingError: it has none.
        """
        if self.settings.weight and not callable(getattr(model, "features", None)):
            raise TrainingError(
                f"group_positives compare the features of a classifier, and {type(model).__name__} has no "
                "features(images): build the model by a classifier plugin, or set group_positives.weight to 0"
            )
        return super().around(model, parameters)

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The inner loss and the term, scalar.

        Raises:
            TrainingError: an image that is not among the data.
        """
        loss = super().loss(model, batch, streams)
        if not self.settings.weight:
            return loss
        place = torch.searchsorted(self.ids, batch.ids).clamp_max(len(self.ids) - 1)
        if not torch.equal(self.ids[place], batch.ids):
            raise TrainingError("a batch holds images that group_positives was not told of: give it the training data")
        with statistics_untouched(model):
            features: Tensor = model.features(self.inputs(model, batch, streams))  # type: ignore[operator]
        term = contrastive_loss(
            features,
            self.units[place].to(features.device),
            batch.labels,
            batch.ids.to(features.device),
            temperature=self.settings.temperature,
            same_class=self.settings.same_class,
        )
        return loss + self.settings.weight * term


def contrastive_loss(
    features: Tensor, units: Tensor, labels: Tensor, ids: Tensor, *, temperature: float, same_class: bool = False
) -> Tensor:
    """The term of the module's formula, scalar, from 0; 0 where no image has a partner.

    Args:
        features: `(N, F)` of any length.
        units: `(N,)` int64, equal where images belong together.
        labels: `(N,)` int64.
        ids: `(N,)` int64; an image that stands in the batch twice is no partner of itself.
        temperature: above 0.
        same_class: whether images of the same class in other units are pushed away.
    """
    together, alike = units[:, None] == units, labels[:, None] == labels
    positive = together & alike & (ids[:, None] != ids)
    negative = ~together if same_class else ~together & ~alike
    with torch.autocast(features.device.type, enabled=False):
        direction = nn.functional.normalize(features.float(), dim=1)
        similar = direction @ direction.T / temperature
        others = similar.masked_fill(~negative, _FAR).logsumexp(1, keepdim=True)
        terms = nn.functional.softplus(others - similar) * positive
    partners = positive.sum(1)
    means = terms.sum(1) / partners.clamp_min(1)
    return means.sum() / (partners > 0).sum().clamp_min(1)
