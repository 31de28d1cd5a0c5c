"""Training data with purified copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, NotFittedError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.data.copies import with_purified


class Dimmer(Purifier):
    """Darkens by its strength, and adds noise of each image's own."""

    Config = medfedpure.Config

    def purify(self, images: torch.Tensor, strength: torch.Tensor, *, streams: Streams) -> Purification:
        noise = streams.uniform((1, 1, 1), stage="dim", like=images)
        dimmed = images * (1 - 0.5 * strength[:, None, None, None]) * (0.9 + 0.1 * noise)
        return Purification(dimmed, torch.ones(len(images), dtype=torch.int64), strength)


def bright(count: int = 5) -> ImageDataset:
    pixels = torch.full((count, 1, 8, 8), 200, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    ids = torch.arange(count) * 3 + 7
    return ImageDataset(pixels, labels, torch.arange(count) // 2, ("healthy", "lesion"), ids)


def dimmer() -> Purifier:
    return Dimmer().fit(bright())


def test_originals_come_first_and_copies_keep_what_their_image_is() -> None:
    data = bright()
    found = with_purified(data, dimmer(), copies=3, originals=2)
    assert len(found) == 25
    assert torch.equal(found.pixels[:10], data.pixels.repeat(2, 1, 1, 1))
    assert torch.equal(found.labels, data.labels.repeat(5))
    assert torch.equal(found.groups, data.groups.repeat(5))
    assert torch.equal(found.ids[:5], data.ids)
    assert found.ids.unique().numel() == 25


def test_every_copy_has_a_strength_of_its_own() -> None:
    copies = with_purified(bright(40), dimmer(), copies=2, originals=1).pixels[40:, 0, 0, 0].float() / 200
    assert copies.min() < 0.6
    assert copies.max() > 0.85
    assert copies[:40].sub(copies[40:]).abs().mean() > 0.05


def test_copies_do_not_depend_on_the_batch_and_follow_the_seed() -> None:
    one, other = (with_purified(bright(), dimmer(), copies=2, batch_size=size, seed=1) for size in (2, 64))
    assert torch.equal(one.pixels, other.pixels)
    assert not torch.equal(one.pixels, with_purified(bright(), dimmer(), copies=2, seed=2).pixels)


def test_masks_travel_along() -> None:
    masks = torch.zeros(5, 1, 8, 8, dtype=torch.bool)
    masks[3, 0, 2, 2] = True
    data = bright()
    marked = ImageDataset(data.pixels, data.labels, data.groups, data.class_names, data.ids, masks=masks)
    found = with_purified(marked, dimmer(), copies=1, originals=1).masks
    assert found is not None
    assert torch.equal(found, masks.repeat(2, 1, 1, 1))


def test_copies_keep_the_depth_of_their_originals():
    data = bright()
    deep = replace(data, pixels=torch.full((5, 1, 8, 8), 3001).to(torch.uint16), top=4095)
    found = with_purified(deep, dimmer(), copies=2, originals=1)
    assert (found.pixels.dtype, found.top) == (torch.uint16, 4095)
    assert torch.equal(found.images[:5], deep.images)
    narrow = with_purified(data, dimmer(), copies=2, originals=1)
    ratio = found.images[5:] / deep.images.repeat(2, 1, 1, 1) * narrow.images[:5].repeat(2, 1, 1, 1)
    assert (ratio - narrow.images[5:]).abs().max() < 1 / 255


def test_what_cannot_be_made_is_an_error() -> None:
    with pytest.raises(DataError, match=r"got 4 and 0"):
        with_purified(bright(), dimmer(), copies=0)
    with pytest.raises(DataError, match="holds no image"):
        with_purified(bright(0), dimmer())
    with pytest.raises(NotFittedError):
        with_purified(bright(), medfedpure.create("purifier", "ddpm"))


def test_the_diffusion_purifier_makes_copies_near_the_originals() -> None:
    data = medfedpure.create("dataset", "phantom", images=8, image_size=16).read()
    options = {"model": {"widths": [8, 8]}, "training": {"steps": 2}, "t_min": 5, "t_max": 20}
    purifier = medfedpure.create("purifier", "ddpm", sampling={"num_inference_steps": 2}, **options).fit(data)
    found = with_purified(data, purifier, copies=1, originals=1)
    assert found.pixels[8:].shape == data.pixels.shape
    assert not torch.equal(found.pixels[8:], data.pixels)
