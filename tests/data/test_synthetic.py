"""Synthetic training images: what is refused, what they carry, and that they never reach a test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medfedpure.core.dataset import Attribute, ImageDataset, check_disjoint
from medfedpure.core.errors import DataError
from medfedpure.core.streams import Streams
from medfedpure.data.synthetic import augment_with_samples, check_recorded, synthetic
from medfedpure.testing.checking import global_rng_untouched


def made(seed: int, size: int) -> ImageDataset:
    """Images that are near-duplicates of nothing: coarse noise."""
    streams = Streams(seed, torch.arange(size))
    coarse = streams.uniform((1, 16, 16), stage="image")
    pixels = (torch.nn.functional.interpolate(coarse, size=32, mode="nearest") * 255).to(torch.uint8)
    return ImageDataset(pixels, torch.arange(size) % 3 // 2, torch.arange(size), ("no", "yes"), torch.arange(size) + 9)


ALL = made(0, 40)
TRAIN, TEST, CALIBRATE = (ALL.select(torch.arange(*ends)) for ends in ((0, 20), (20, 30), (30, 40)))
HELD_OUT = {"calibrate": CALIBRATE, "test": TEST}


class Sampler:
    """Coarse noise by the streams; where `remembered` is given, every second image is one of those, altered."""

    classes = 2

    def __init__(self, remembered: Tensor | None = None, how=lambda image: image) -> None:
        self.remembered, self.how, self.asked = remembered, how, []

    def sample(self, labels: Tensor, size: tuple[int, int], *, streams: Streams) -> Tensor:
        self.asked += labels.tolist()
        coarse = streams.uniform((1, size[0] // 2, size[1] // 2), stage="sample")
        images = torch.nn.functional.interpolate(coarse, size=size, mode="nearest")
        if self.remembered is not None:
            copies = streams.ids % 2 == 0
            images[copies] = self.how(self.remembered[streams.ids[copies] % len(self.remembered)])
        return images


def same(one: ImageDataset, other: ImageDataset) -> bool:
    return one.fingerprint() == other.fingerprint()


def test_none_wanted_is_the_same_data() -> None:
    for amount in ({"share": 0.0}, {"count": 0}):
        found, report = augment_with_samples(TRAIN, Sampler(), against=HELD_OUT, **amount)
        assert found is TRAIN
        assert (report.added, report.drawn) == (0, 0)


@pytest.mark.parametrize(("amount", "wanted"), [({"share": 0.5}, 10), ({"count": 7}, 7), ({"share": 3.0}, 60)])
def test_so_many_are_added_in_the_proportions_of_the_data(amount: dict[str, float], wanted: int) -> None:
    found, report = augment_with_samples(TRAIN, Sampler(), against=HELD_OUT, **amount)
    assert len(found) == 20 + wanted
    assert (report.wanted, report.added, report.drawn, sum(report.refused.values())) == (wanted, wanted, wanted, 0)
    new = found.labels[20:].bincount(minlength=2).double()
    assert int((new - TRAIN.labels.bincount().double() * wanted / 20).abs().max().ceil()) <= 1
    assert int(new.sum()) == wanted


def test_a_sample_has_the_class_that_was_asked_for() -> None:
    model = Sampler()
    found, _ = augment_with_samples(TRAIN, model, count=12, against=HELD_OUT)
    assert found.labels[20:].tolist() == model.asked


def test_recorded_images_stay_as_they_are_and_samples_are_marked() -> None:
    sex = Attribute(("f", "m"), torch.arange(20) % 2)
    data = replace(
        TRAIN, attributes={"sex": sex}, levels={"patient": TRAIN.groups + 100}, masks=torch.ones(20, 1, 32, 32) > 0
    )
    found, _ = augment_with_samples(data, Sampler(), share=0.5, against=HELD_OUT)
    first, new = found.select(torch.arange(20)), found.select(torch.arange(20, 30))
    assert same(replace(first, attributes={"sex": first.attributes["sex"]}), data)
    assert synthetic(found).tolist() == [False] * 20 + [True] * 10
    assert found.columns()["origin"] == ["recorded"] * 20 + ["synthetic"] * 10
    assert int(new.ids.max()) < 0
    assert int(new.sites.max()) == -1
    assert int(new.attributes["sex"].values.max()) == -1
    assert new.masks is not None
    assert not bool(new.masks.any())
    assert not set(new.levels["patient"].tolist()) & set(data.levels["patient"].tolist())
    assert synthetic(found.select(torch.tensor([3, 25]))).tolist() == [False, True], "the mark survives select"


def test_no_group_crosses_parts_and_no_id_is_taken() -> None:
    below = replace(TEST, groups=TEST.groups - 45, ids=TEST.ids - 90)
    found, _ = augment_with_samples(TRAIN, Sampler(), share=1.0, against={"test": below})
    check_disjoint({"train": found, "test": below})
    assert found.groups[20:].unique().numel() == 20
    assert not set(found.ids.tolist()) & set(below.ids.tolist())


FLIPS_AND_TURNS = [
    (lambda image, k=turns, mirrored=mirrored: torch.rot90(image.flip(3) if mirrored else image, k, (2, 3)))
    for mirrored in (False, True)
    for turns in range(4)
]


@pytest.mark.parametrize("how", FLIPS_AND_TURNS, ids=[f"{m}{k * 90}" for m in ("", "mirrored ") for k in range(4)])
@pytest.mark.parametrize("part", ["test", "calibrate"])
def test_a_copy_of_a_held_out_image_is_refused(how, part: str) -> None:
    model = Sampler(HELD_OUT[part].images, how)
    found, report = augment_with_samples(TRAIN, model, count=10, against=HELD_OUT, tries=3)
    assert report.refused == {"calibrate": 0, "test": 0, part: 15}, "5 of 10, three times: this model never forgets"
    assert (report.added, report.drawn) == (5, 20)
    assert len(found) == 25
    for held_out in HELD_OUT.values():
        difference = (found.images[20:, None] - held_out.images[None]).abs().flatten(2).amax(2)
        assert float(difference.min()) > 0.1


@pytest.mark.parametrize(
    "how",
    [lambda image: image * 0.7 + 0.1, lambda image: image**1.3, lambda image: (image + 0.03).clamp(0, 1)],
    ids=["contrast", "gamma", "brightness"],
)
def test_a_copy_in_another_brightness_is_refused(how) -> None:
    _, report = augment_with_samples(TRAIN, Sampler(TEST.images, how), count=10, against=HELD_OUT, tries=1)
    assert report.refused["test"] == 5


def test_what_is_refused_is_drawn_anew() -> None:
    class ForgetsSoon(Sampler):
        def sample(self, labels: Tensor, size: tuple[int, int], *, streams: Streams) -> Tensor:
            images = super().sample(labels, size, streams=streams)
            self.remembered = None
            return images

    found, report = augment_with_samples(TRAIN, ForgetsSoon(TEST.images), count=10, against=HELD_OUT, batch_size=10)
    assert (report.added, report.drawn, report.refused["test"]) == (10, 15, 5)
    assert (
        found.labels[20:].bincount().tolist()
        == augment_with_samples(TRAIN, Sampler(), count=10, against=HELD_OUT)[0].labels[20:].bincount().tolist()
    ), "the classes are those that were wanted"
    assert "10 of 10 synthetic images added" in report.describe()
    assert "5 like images of test" in report.describe()


def test_a_copy_of_a_training_image_joins_its_group() -> None:
    found, report = augment_with_samples(TRAIN, Sampler(TRAIN.images), count=10, against=HELD_OUT)
    assert (report.added, report.near_training) == (10, 5)
    copied = found.groups[20:][torch.arange(0, 10, 2)]
    assert copied.tolist() == TRAIN.groups[torch.arange(0, 10, 2)].tolist()


def test_equal_arguments_give_equal_images_whatever_the_batch() -> None:
    with global_rng_untouched("augment_with_samples"):
        first, _ = augment_with_samples(TRAIN, Sampler(), share=1.0, against=HELD_OUT, batch_size=3)
    again, _ = augment_with_samples(TRAIN, Sampler(), share=1.0, against=HELD_OUT, batch_size=64)
    other, _ = augment_with_samples(TRAIN, Sampler(), share=1.0, against=HELD_OUT, seed=1)
    assert same(first, again)
    assert not torch.equal(first.pixels, other.pixels)


def test_deep_pixels_stay_deep() -> None:
    deep = replace(TRAIN, pixels=(TRAIN.pixels.int() * 16).to(torch.uint16), top=4095)
    found, report = augment_with_samples(deep, Sampler(TEST.images), count=10, against=HELD_OUT, tries=1)
    assert (found.pixels.dtype, found.top) == (torch.uint16, 4095)
    assert 3500 < int(found.pixels[20:].int().max()) <= 4095
    assert report.refused["test"] == 5, "copies are found whatever the depth of pixels"


def test_nobody_tests_on_synthetic_images() -> None:
    found, _ = augment_with_samples(TRAIN, Sampler(), share=0.5, against=HELD_OUT)
    check_recorded(TEST, "test")
    with pytest.raises(DataError, match="10 of the 30 images of images were drawn by a model, and a test part holds"):
        check_recorded(found, "test")
    with pytest.raises(DataError, match="attributes differ"):
        ImageDataset.concatenate([TEST, found])
    with pytest.raises(DataError, match="a validation part holds recorded ones"):
        augment_with_samples(
            TRAIN, Sampler(), share=0.5, against={"validation": replace(found, groups=found.groups + 90)}
        )


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("either a share or a count", {}),
        ("either a share or a count", {"share": 0.1, "count": 2}),
        ("share or count from 0", {"share": -0.1}),
        ("share or count from 0", {"count": -1}),
        ("share or count from 0", {"share": float("nan")}),
        ("tries from 1", {"count": 1, "tries": 0}),
        ("give all such parts as against", {"count": 1, "against": {}}),
        ("share a group with test", {"count": 1, "against": {"test": TRAIN}}),
    ],
)
def test_what_makes_no_sense_is_refused(words: str, given: dict) -> None:
    with pytest.raises(DataError, match=words):
        augment_with_samples(TRAIN, Sampler(), **{"against": HELD_OUT, **given})


def test_augmented_and_empty_data_and_models_of_other_images_are_refused() -> None:
    found, _ = augment_with_samples(TRAIN, Sampler(), share=0.5, against=HELD_OUT)
    with pytest.raises(DataError, match="add samples once"):
        augment_with_samples(found, Sampler(), share=0.5, against=HELD_OUT)
    with pytest.raises(DataError, match="holds no image"):
        augment_with_samples(TRAIN.select(torch.arange(0)), Sampler(), count=2, against=HELD_OUT)
    colour = replace(TRAIN, pixels=TRAIN.pixels.repeat(1, 3, 1, 1))
    with pytest.raises(DataError, match=r"draws images of shape \(1, 32, 32\)"):
        augment_with_samples(colour, Sampler(), count=2, against=HELD_OUT)


@pytest.mark.parametrize("value", [float("nan"), 1.2, -0.1])
def test_values_that_are_none_of_an_image_are_refused_and_not_wrapped(value: float) -> None:
    model = Sampler(torch.full((1, 1, 32, 32), value))
    with pytest.raises(DataError, match=r"outside of \[0, 1\]"):
        augment_with_samples(TRAIN, model, count=4, against=HELD_OUT)


def test_arguments_of_another_kind_are_refused() -> None:
    for wrong in ({"count": 2.5}, {"count": True}, {"count": "3"}, {"count": 2, "batch_size": 0}):
        with pytest.raises(DataError, match="whole"):
            augment_with_samples(TRAIN, Sampler(), against=HELD_OUT, **wrong)
    with pytest.raises(DataError, match="as a mapping; got a ImageDataset"):
        augment_with_samples(TRAIN, Sampler(), count=2, against=TEST)
    with pytest.raises(DataError, match="object draws no images of a class"):
        augment_with_samples(TRAIN, object(), count=2, against=HELD_OUT)
