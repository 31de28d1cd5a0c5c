"""Training images that a diffusion model draws, and what keeps them out of every test.

Images of a generator that are added to the training set raise robust accuracy (Gowal et al. 2021, "Improving
robustness using generated data", arXiv 2110.09468; Wang et al. 2023, "Better diffusion models further improve
adversarial training", arXiv 2302.04638): of small photographs, with far more images than a hospital has. A generator
may also remember what it saw (Carlini et al. 2023, "Extracting training data from diffusion models", arXiv
2301.13188). So every image that it draws is compared with all that is held out, and refused where it is a
near-duplicate of any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medfedpure.core.dataset import Attribute, ImageDataset, bits_of
from medfedpure.core.errors import DataError
from medfedpure.core.progress import track
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.data.copies import as_pixels
from medfedpure.data.near_duplicates import near_duplicate_groups, near_duplicates_in

ORIGIN = "origin"
"""The attribute that says which images were drawn by a model."""
RECORDED, SYNTHETIC = 0, 1
_ORIGINS = ("recorded", "synthetic")


@runtime_checkable
class ClassSampler(Protocol):
    """What draws images of a class, such as the purifier `class_ddpm`."""

    @property
    def classes(self) -> int:
        """K, how many classes it knows."""

    def sample(self, labels: Tensor, size: tuple[int, int], *, streams: Streams) -> Tensor:
        """Images `(N, C, H, W)` in [0, 1] of classes `(N,)` int64, each from its own stream; size is (H, W)."""


@dataclass(frozen=True)
class SamplesReport:
    """What became of the images that were drawn.

    Attributes:
        wanted: how many were asked for.
        added: how many the result holds.
        drawn: how many were drawn for that.
        refused: by part, how many were refused as near-duplicates of it; of several, the first counts.
        near_training: how many of those added are near-duplicates of a training image, and joined its group.
    """

    wanted: int
    added: int
    drawn: int
    refused: Mapping[str, int]
    near_training: int

    def describe(self) -> str:
        """In words, for a log."""
        refused = ", ".join(f"{count} like images of {part}" for part, count in self.refused.items() if count)
        return (
            f"{self.added} of {self.wanted} synthetic images added, {self.near_training} of them like a training "
            f"image; {self.drawn} drawn, refused: {refused or 'none'}"
        )


@torch.no_grad()
def augment_with_samples(
    data: ImageDataset,
    model: ClassSampler,
    *,
    share: float | None = None,
    count: int | None = None,
    against: Mapping[str, ImageDataset],
    seed: int = 0,
    tries: int = 5,
    min_correlation: float = 0.85,
    batch_size: int = 64,
) -> tuple[ImageDataset, SamplesReport]:
    """Training images, and after them images that a model draws, of the classes in the proportions of the data.

    A drawn image has a negative id, the value "synthetic" of the attribute "origin", no site, no other attribute, an
    empty mask and levels of its own. Its group is its own, or that of the training image whose near-duplicate it is;
    drawn images that are near-duplicates of each other share one. What is refused is drawn anew, `tries` times at most.

    Args:
        data: training images, `(N, C, H, W)`; they stay as they are, with the value "recorded".
        model: fitted; draws where it is.
        share: how many to add, as a share of the data; or
        count: how many. None of either leaves the data as they are.
        against: all that is held out, by name: validation, calibration and test parts.
        seed: of the draws.
        tries: how often an image is drawn at most.
        min_correlation: from where on two images are near-duplicates; see `near_duplicates_in`.
        batch_size: images drawn at once; it changes none of them beyond rounding.

    Raises:
        DataError: neither share nor count or both, less than none, no part to check against, no image, data that are
            augmented already, a part that shares a group with the data, or a model of other classes or of values
            outside of [0, 1].
    """
    wanted = _wanted(data, share, count, tries, batch_size)
    if not wanted:
        return data, SamplesReport(0, 0, 0, {}, 0)
    _check(data, against)
    check_classes(data, model)
    labels = _labels(data, wanted)
    place, done = torch.arange(wanted), torch.zeros(wanted, dtype=torch.bool)
    pixels = bits_of(torch.zeros(wanted, *data.image_shape, dtype=data.pixels.dtype))
    refused, drawn = dict.fromkeys(against, 0), 0
    for attempt in range(tries):
        missing = place[~done]
        if not len(missing):
            break
        made = _draw(data, model, labels, missing, derive_seed(seed, "synthetic", attempt), batch_size)
        drawn += len(missing)
        good = torch.ones(len(missing), dtype=torch.bool)
        for part, held_out in against.items():
            alike = near_duplicates_in(made, held_out.pixels, min_correlation=min_correlation) >= 0
            refused[part] += int((alike & good).sum())
            good &= ~alike
        pixels[missing[good]] = bits_of(made)[good]
        done[missing[good]] = True
    kept = place[done]
    new, near = _as_data(data, pixels[kept].view(data.pixels.dtype), labels[kept], against, min_correlation)
    marked = replace(data, attributes={**data.attributes, ORIGIN: _origin(len(data), RECORDED)})
    report = SamplesReport(wanted, len(kept), drawn, refused, near)
    return ImageDataset.concatenate([marked, new]), report


def synthetic(data: ImageDataset) -> Tensor:
    """`(N,)` bool, which images were drawn by a model."""
    if ORIGIN not in data.attributes or data.attributes[ORIGIN].names != _ORIGINS:
        return torch.zeros(len(data), dtype=torch.bool)
    return data.attributes[ORIGIN].values == SYNTHETIC


def check_recorded(data: ImageDataset, purpose: str) -> None:
    """Raise DataError where images that a model drew would be used for a purpose such as "test"."""
    if count := int(synthetic(data).sum()):
        raise DataError(
            f"{count} of the {len(data)} images of {data.name} were drawn by a model, and a {purpose} part holds "
            "recorded ones only: leave them out by data[~medfedpure.data.synthetic.synthetic(data)]"
        )


def check_classes(data: ImageDataset, model: ClassSampler) -> None:
    """Raise DataError where a model draws no images of classes, or of another number than the data have."""
    if not isinstance(model, ClassSampler):
        raise DataError(f"{type(model).__name__} draws no images of a class: take the purifier class_ddpm")
    if model.classes != data.num_classes:
        raise DataError(
            f"{data.name} has {data.num_classes} classes, and the model draws {model.classes}: train one of as many, "
            f"by generation.classes = {data.num_classes} of class_ddpm"
        )


def _wanted(data: ImageDataset, share: float | None, count: int | None, tries: int, batch_size: int) -> int:
    if (share is None) == (count is None):
        raise DataError(f"either a share or a count of synthetic images is wanted; got {share} and {count}")
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (count or 0, tries, batch_size))
    if not whole or not 0 <= (share or count or 0) < 2**31 or tries < 1 or batch_size < 1:
        raise DataError(
            "share or count from 0, tries from 1 and batch_size from 1 are wanted, all but share whole numbers; got "
            f"{share}, {count}, {tries} and {batch_size}"
        )
    return round(share * len(data)) if share is not None else count or 0


def _check(data: ImageDataset, against: Mapping[str, ImageDataset]) -> None:
    if not len(data):
        raise DataError(f"{data.name} holds no image, so that nothing says which classes to draw")
    if not isinstance(against, Mapping):
        raise DataError(f"against names the parts held out, as a mapping; got a {type(against).__name__}")
    if not against:
        raise DataError(
            "a synthetic image may be a copy of a held-out one that the model has seen: give all such parts as against"
        )
    if ORIGIN in data.attributes:
        raise DataError(f"{data.name} already has the attribute {ORIGIN!r}: add samples once, to recorded images")
    for part, held_out in against.items():
        check_recorded(held_out, part)
        if bool(torch.isin(data.groups, held_out.groups).any()):
            raise DataError(f"the training images share a group with {part}: split by group first")


def _labels(data: ImageDataset, wanted: int) -> Tensor:
    """`(wanted,)` int64, of each class as many as its share of the data says; largest remainders get the rest."""
    exact = data.labels.bincount(minlength=data.num_classes).double() * wanted / len(data)
    counts = exact.floor().long()
    rest = (exact - counts).argsort(descending=True, stable=True)[: wanted - int(counts.sum())]
    counts[rest] += 1
    return torch.arange(data.num_classes).repeat_interleave(counts)


def _draw(
    data: ImageDataset, model: ClassSampler, labels: Tensor, places: Tensor, seed: int, batch_size: int
) -> Tensor:
    """`(M, C, H, W)` of the data's type: the images at those places of the wanted ones, drawn by a seed."""
    made = []
    for some in track(places.split(batch_size), "drawing synthetic images", -(-len(places) // batch_size)):
        images = model.sample(labels[some], data.image_shape[1:], streams=Streams(seed, some))
        if images.shape != (len(some), *data.image_shape):
            raise DataError(
                f"the model draws images of shape {tuple(images.shape[1:])}; those of {data.name} have "
                f"{data.image_shape}: take a model of such images"
            )
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise DataError("the model draws values outside of [0, 1], or none at all (NaN): train it anew")
        made.append(as_pixels(images, data))
    return torch.cat(made).view(data.pixels.dtype)


def _as_data(
    data: ImageDataset, pixels: Tensor, labels: Tensor, against: Mapping[str, ImageDataset], min_correlation: float
) -> tuple[ImageDataset, int]:
    """The drawn images as a data set of the same form, and how many have a near-duplicate in the data."""
    size, everything = len(pixels), [data, *against.values()]

    def below(taken: list[Tensor], number: Tensor) -> Tensor:
        """Numbers that nothing has: from -1 down, or from below the lowest that is taken."""
        return min(0, *(int(some.min()) for some in taken if len(some))) - 1 - number

    like = near_duplicates_in(pixels, data.pixels, min_correlation=min_correlation)
    own = near_duplicate_groups(pixels, min_correlation=min_correlation)
    groups = below([part.groups for part in everything], own)
    groups = torch.where(like >= 0, data.groups[like.clamp_min(0)], groups)
    each, none = torch.arange(size), torch.full((size,), -1)
    levels = {}
    for name in data.levels:
        taken = [part.levels[name] for part in everything if name in part.levels]
        levels[name] = below(taken, each)
    made = replace(
        data,
        pixels=pixels,
        labels=labels,
        groups=groups,
        ids=below([part.ids for part in everything], each),
        sites=none,
        masks=None if data.masks is None else torch.zeros(size, 1, *data.image_shape[1:], dtype=torch.bool),
        levels=levels,
        attributes={
            **{name: Attribute(one.names, none.clone()) for name, one in data.attributes.items()},
            ORIGIN: _origin(size, SYNTHETIC),
        },
    )
    return made, int((like >= 0).sum())


def _origin(size: int, value: int) -> Attribute:
    return Attribute(_ORIGINS, torch.full((size,), value))
