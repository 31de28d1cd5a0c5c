"""A data set goes through a folder unchanged."""

import pytest
import torch

from medfedpure import ImageDataset
from medfedpure.core.dataset import Attribute
from medfedpure.core.errors import ArtifactError
from medfedpure.data.stored import read_images, write_images
from medfedpure.testing import tiny_dataset


def deep() -> ImageDataset:
    """Twelve bits, masks, two levels, an attribute."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 4096, (6, 1, 4, 4), generator=generator).to(torch.uint16)
    return ImageDataset(
        pixels,
        torch.tensor([0, 1] * 3),
        torch.arange(6) // 4,
        ("no", "yes"),
        top=4095,
        masks=pixels.int() > 2000,
        levels={"patient": torch.arange(6) // 4, "study": torch.arange(6) // 2},
        attributes={"sex": Attribute(("f", "m"), torch.tensor([0, 1, -1, 0, 1, 1]))},
        name="deep",
    )


@pytest.mark.parametrize("data", [deep(), tiny_dataset(8)], ids=["16 bits", "8 bits"])
def test_it_comes_back_equal(data, tmp_path):
    write_images(tmp_path, data)
    again = read_images(tmp_path)
    assert again.fingerprint() == data.fingerprint()
    assert again.name == data.name
    assert torch.equal(again.images, data.images)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no"):
        read_images(tmp_path)
