"""MedMNIST files as they are published: read whole, refused when they are something else."""

import numpy
import pytest
import torch

import medfedpure
from medfedpure.core.errors import DataError


def write(path, *, images=None, labels=None, parts=("train", "val", "test"), count=4):
    arrays = {}
    for place, part in enumerate(parts):
        generator = numpy.random.default_rng(place)
        default = generator.integers(0, 256, (count, 8, 8), dtype=numpy.uint8)
        arrays[f"{part}_images"] = default if images is None else images
        arrays[f"{part}_labels"] = (numpy.arange(count)[:, None] % 2) if labels is None else labels
    numpy.savez(path, **arrays)
    return path


def read(path, **options):
    if "class_names" not in options:
        options["positive"] = "class 1"
    return medfedpure.create("dataset", "medmnist", path=path, **options).read()


def test_parts_are_joined_in_order(tmp_path):
    path = write(tmp_path / "tinymnist.npz")
    data = read(path, class_names=("normal", "pneumonia"))
    with numpy.load(path) as archive:
        wanted = numpy.concatenate([archive[f"{part}_images"] for part in ("train", "val", "test")])
    assert data.pixels.dtype == torch.uint8
    assert torch.equal(data.pixels[:, 0], torch.from_numpy(wanted))
    assert data.labels.tolist() == [0, 1, 0, 1] * 3
    assert (data.class_names, data.name) == (("normal", "pneumonia"), "tinymnist")
    assert len(read(path, parts=("test",))) == 4


def test_colour_images_come_channels_first(tmp_path):
    images = numpy.zeros((4, 8, 8, 3), numpy.uint8)
    images[..., 1] = 200
    data = read(write(tmp_path / "pathmnist.npz", images=images))
    assert data.image_shape == (3, 8, 8)
    assert data.pixels[:, 1].unique().tolist() == [200]


def test_copies_are_one_group(tmp_path):
    path = write(tmp_path / "tinymnist.npz", count=6)
    with numpy.load(path) as archive:
        arrays = dict(archive)
    arrays["test_images"][0] = arrays["train_images"][0][::-1]
    numpy.savez(path, **arrays)
    data = read(path)
    assert int(data.groups[12]) == int(data.groups[0]), "a flipped copy in another part was not found"
    assert read(path, groups="none").num_groups == 18


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": numpy.zeros((4, 8, 8, 8), numpy.uint8)}, "slice by slice"),
        ({"images": numpy.zeros((4, 8, 8), numpy.float32)}, "float32"),
        ({"labels": numpy.zeros((4, 14), numpy.int64)}, "several labels"),
        ({"labels": numpy.full((4, 1), -1)}, "whole number >= 0"),
        ({"parts": ("train",)}, "val_images"),
    ],
)
def test_other_files_are_refused(tmp_path, change, text):
    with pytest.raises(DataError, match=text):
        read(write(tmp_path / "other.npz", **change))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npz cannot be read"):
        read(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.npz cannot be read"):
        read(tmp_path / "text.npz")
    with pytest.raises(DataError, match="1 class_names"):
        read(write(tmp_path / "tiny.npz"), class_names=("only",))
