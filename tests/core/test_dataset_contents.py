"""What a data set keeps of its images: the depth of their pixels, and all that is known of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from medfedpure.core.dataset import Attribute, Batch, ImageDataset, bits_of
from medfedpure.core.errors import DataError
from medfedpure.testing import tiny_classifier, tiny_dataset


def scans(images: int = 24) -> ImageDataset:
    """Twelve bits in 16, four images a patient and two a study, with all that a data set can carry."""
    order = torch.arange(images)
    pixels = (torch.arange(images * 4).reshape(images, 1, 2, 2) * 37 % 4096).to(torch.uint16)
    return ImageDataset(
        pixels=pixels,
        labels=order // 4 % 2,
        groups=order // 4,
        class_names=("a", "b"),
        ids=order * 2 + 1,
        sites=order // 4 % 3,
        masks=(order % 3 == 0)[:, None, None, None].expand(-1, 1, 2, 2),
        top=4095,
        levels={"patient": order // 4 + 100, "study": order // 2 + 7},
        attributes={
            "sex": Attribute(("F", "M"), order // 4 % 3 - 1),
            "age band": Attribute(("0-39", "40-79", "80-"), order // 4 % 3),
        },
    )


def rows(data: ImageDataset | Batch) -> dict[str, torch.Tensor]:
    """All that has a row for each image and stands both in a data set and in a batch."""
    assert data.masks is not None, "masks were lost"
    levels = {f"level {name}": level for name, level in data.levels.items()}
    attributes = {f"attribute {name}": attribute.values for name, attribute in data.attributes.items()}
    own = {"images": data.images, "labels": data.labels, "ids": data.ids, "masks": data.masks}
    return own | levels | attributes


def test_sixteen_bits_reach_the_floats() -> None:
    """Pixels that differ by one step are different floats; the top is 1.0."""
    ramp = torch.arange(65536, dtype=torch.int32).to(torch.uint16).reshape(4, 1, 128, 128)
    zeros = torch.zeros(4, dtype=torch.int64)
    data = ImageDataset(ramp, zeros, torch.arange(4), ("a",))
    assert data.top == 65535, "by default the largest value stands for 1.0"
    images = data.batch(torch.arange(4)).images
    assert images.unique().numel() == 65536, "steps of 16 bits fall together"
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert torch.equal(images, data.images), "a batch differs from the whole"
    part = ImageDataset(bits_of(ramp)[:1, :, :32].view(torch.uint16), zeros[:1], zeros[:1], ("a",), top=4095)
    assert part.images.unique().numel() == 4096, "steps of 12 bits fall together"
    assert float(part.images.max()) == 1.0, "the declared top stands for 1.0"


def test_eight_bits_are_what_they_were() -> None:
    data = tiny_dataset()
    assert data.top == 255
    assert torch.equal(data.images, data.pixels.float().div_(255.0)), "not bit-equal"


def test_logits_see_what_lies_below_eight_bits() -> None:
    pixels = torch.full((2, 1, 32, 32), 30000, dtype=torch.int32)
    pixels[1] += 40
    data = ImageDataset(pixels.to(torch.uint16), torch.tensor([0, 1]), torch.arange(2), ("a", "b"))
    assert (pixels[0] // 257).equal(pixels[1] // 257), "the images must be equal at 8 bits"
    logits = tiny_classifier(steps=1)(data.images)
    assert not torch.equal(logits[0], logits[1]), "the classifier sees no difference"


def test_everything_travels_along() -> None:
    data = scans()
    index = torch.tensor([5, 0, 17])
    part, batch = data.select(index), data.batch(index)
    assert (part.pixels.dtype, part.top) == (torch.uint16, 4095)
    for name, value in rows(data).items():
        assert torch.equal(rows(part)[name], value[index]), f"{name} did not travel into a subset"
        assert torch.equal(rows(batch)[name], value[index]), f"{name} did not travel into a batch"
    assert part.attributes["sex"].names == ("F", "M")
    parts = [*data.split({"one": 1, "two": 1}).values(), *data.partition(2), *data.partition(2, by="site")]
    for found in (*parts, data.one_per_group(), data.cap_groups(2)):
        own = torch.searchsorted(data.ids, found.ids)
        assert found.fingerprint() == data.select(own).fingerprint(), "something was lost on the way"
    joined = ImageDataset.concatenate([data.select(torch.arange(10)), data.select(torch.arange(10, 24))])
    assert joined.fingerprint() == data.fingerprint(), "joining the parts does not give the whole"


def test_a_batch_moves_what_a_model_takes() -> None:
    batch = scans().batch(torch.arange(3)).to("meta")
    assert batch.masks is not None
    assert {batch.images.device.type, batch.labels.device.type, batch.masks.device.type} == {"meta"}
    stay = [batch.ids, *batch.levels.values(), *(one.values for one in batch.attributes.values())]
    assert {one.device.type for one in stay} == {"cpu"}, "whole numbers stay on the CPU, as ids do"
    bare = Batch(torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.arange(2)).to("cpu")
    assert (bare.masks, bare.levels, bare.attributes) == (None, {}, {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"top": 60000}, "pixels differ: torch.uint16 up to 4095 and torch.uint16 up to 60000"),
        ({"pixels": torch.zeros(24, 1, 2, 2, dtype=torch.uint8), "top": 255}, "pixels differ.*uint8 up to 255"),
        ({"masks": None}, "masks differ: given and none"),
        ({"levels": {}}, r"levels differ: \['patient', 'study'\] and \[\]"),
        ({"attributes": {"sex": Attribute(("M", "F"), torch.zeros(24, dtype=torch.int64))}}, "attributes differ"),
    ],
    ids=["top", "depth", "masks", "levels", "attributes"],
)
def test_parts_that_do_not_fit_are_not_joined(change: dict, text: str) -> None:
    data = scans()
    with pytest.raises(DataError, match=text):
        ImageDataset.concatenate([data, replace(data, ids=data.ids + 100, **change)])


def test_a_fingerprint_covers_all_that_training_sees() -> None:
    data = scans()
    assert data.masks is not None
    others = {
        "the type": replace(data, pixels=data.pixels.int().clamp_max(255).to(torch.uint8), top=255),
        "the top": replace(data, top=60000),
        "the class names": replace(data, class_names=("b", "a")),
        "ids": replace(data, ids=data.ids + 1),
        "sites": replace(data, sites=data.sites + 1),
        "a mask": replace(data, masks=~data.masks),
        "no mask": replace(data, masks=None),
        "a level": replace(data, levels={**data.levels, "study": data.levels["study"] + 1}),
        "a level's name": replace(data, levels={"patient": data.levels["patient"], "visit": data.levels["study"]}),
        "an attribute": replace(data, attributes={**data.attributes, "sex": data.attributes["age band"]}),
        "no attribute": replace(data, attributes={}),
    }
    for what, other in others.items():
        assert other.fingerprint() != data.fingerprint(), f"{what} does not change the fingerprint"
    assert replace(data, name="other").fingerprint() == data.fingerprint(), "the name is for reports only"


def test_format_1_is_the_fingerprint_of_saved_runs() -> None:
    data = tiny_dataset()
    content = save({"pixels": data.pixels, "labels": data.labels, "groups": data.groups})
    assert data.fingerprint(format=1) == hashlib.sha256(content).hexdigest()
    assert replace(data, sites=data.sites + 1).fingerprint(format=1) == data.fingerprint(format=1)
    for wrong in (0, 99):
        with pytest.raises(DataError, match=f"got {wrong}"):
            data.fingerprint(format=wrong)


@pytest.mark.parametrize(
    ("names", "values", "text"),
    [
        (("F", "M"), torch.tensor([0, 2]), r"-1 \.\.\. 1, -1 = unknown; got 0 \.\.\. 2"),
        (("F", "M"), torch.tensor([-2, 0]), r"got -2 \.\.\. 0"),
        (("F", "F"), torch.tensor([0, 1]), "distinct; got F, F"),
        (("F", "M"), torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_wrong_attributes_are_refused(names: tuple[str, ...], values: torch.Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        Attribute(names, values)
    assert len(Attribute((), torch.empty(0, dtype=torch.int64)).values) == 0, "nothing is known of no image"


def test_a_data_set_goes_through_pickle_and_copies() -> None:
    """Workers that are spawned, and Ray, receive data sets so; torch alone cannot unpickle uint16."""
    import copy
    import pickle

    pixels = torch.arange(64).reshape(4, 1, 4, 4).to(torch.uint16)
    data = ImageDataset(pixels, torch.tensor([0, 1, 0, 1]), torch.arange(4), ("no", "yes"), top=4095)
    for again in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert again.fingerprint() == data.fingerprint()
        assert torch.equal(again.images, data.images)


def test_a_level_that_a_split_would_part_is_refused() -> None:
    pixels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    levels = {"patient": torch.arange(8) // 4}
    with pytest.raises(DataError, match="a patient lies in more than one group"):
        ImageDataset(pixels, torch.zeros(8, dtype=torch.int64), torch.arange(8), ("no", "yes"), levels=levels)
