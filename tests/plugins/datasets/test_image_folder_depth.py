"""ImageFolder keeps what files of more than 8 bits hold."""

import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from medfedpure.plugins.datasets.image_folder import ImageFolder


def noise(seed: int) -> Image.Image:
    """A blocky random grey picture."""
    values = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Image.frombytes("L", (8, 8), bytes(values)).resize((40, 40), Image.Resampling.BICUBIC)


def put(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three pictures of 8 bits of each of two classes."""
    for place in range(3):
        put(tmp_path / "scans" / "no" / f"n{place}.png", noise(place))
        put(tmp_path / "scans" / "yes" / f"y{place}.png", noise(10 + place))
    return tmp_path / "scans"


def sixteen(seed: int) -> Image.Image:
    """The picture of `noise` in 16 bits, with less than half a step of 8 bits added."""
    values = [min(257 * value + place % 128, 65535) for place, value in enumerate(noise(seed).tobytes())]
    return Image.frombytes("I;16", (40, 40), struct.pack("<1600H", *values))


def test_one_deep_file_makes_the_folder_sixteen_bits(root):
    plain = ImageFolder(root=root, image_size=40).read()
    put(root / "no" / "n3.png", sixteen(20))
    data = ImageFolder(root=root, image_size=40).read()
    assert (data.pixels.dtype, data.top) == (torch.uint16, 65535)
    deep = data.select(data.ids == 3)
    assert len(deep.images.unique()) > len(plain.images.unique()), "steps below 8 bits were lost"
    assert torch.equal(data.select(data.ids != 3).images, plain.images), "files of 8 bits look as before"


def test_the_depth_can_be_chosen(root):
    put(root / "no" / "n3.png", sixteen(20))
    narrow = ImageFolder(root=root, image_size=16, pixel_bits=8).read()
    assert (narrow.pixels.dtype, narrow.top) == (torch.uint8, 255)
    wide = ImageFolder(root=root, image_size=16).read()
    assert (wide.images - narrow.images).abs().max() <= 2 / 255
    assert torch.equal(wide.groups, narrow.groups)
    (root / "no" / "n3.png").unlink()
    assert ImageFolder(root=root, image_size=16, pixel_bits=16).read().pixels.dtype == torch.uint16
    assert ImageFolder(root=root, image_size=16).read().pixels.dtype == torch.uint8


def test_a_step_of_sixteen_bits_reaches_the_batch(root):
    for name, value in (("n3", 30000), ("n4", 30001)):
        put(root / "no" / f"{name}.png", Image.frombytes("I;16", (40, 40), struct.pack("<H", value) * 1600))
    images = ImageFolder(root=root, image_size=16).read().batch(torch.tensor([3, 4])).images
    assert torch.equal(images[0], torch.full((1, 16, 16), 30000 / 65535))
    assert torch.equal(images[1], torch.full((1, 16, 16), 30001 / 65535))


def test_twelve_bits_keep_their_steps(root):
    ramp = Image.frombytes("I;16", (64, 64), struct.pack("<4096H", *range(4096)))
    put(root / "no" / "n3.png", ramp)
    data = ImageFolder(root=root, image_size=64, bit_depth=12).read()
    assert data.batch(torch.tensor([3])).images.unique().numel() == 4096


def test_the_cache_keeps_sixteen_bits_and_knows_the_depth(root, tmp_path):
    put(root / "no" / "n3.png", sixteen(20))
    options = {"root": root, "image_size": 16, "cache": tmp_path / "kept"}
    first = ImageFolder(options).read()
    again = ImageFolder(options).read()
    assert again.pixels.dtype == torch.uint16
    assert again.fingerprint() == first.fingerprint()
    assert ImageFolder({**options, "pixel_bits": 8}).read().pixels.dtype == torch.uint8


def test_skipped_sixteen_bit_files_leave_the_others(root):
    (root / "no" / "cut.png").write_bytes((root / "no" / "n0.png").read_bytes()[:90])
    put(root / "yes" / "y3.png", sixteen(20))
    data = ImageFolder(root=root, image_size=16, on_error="skip").read()
    assert data.pixels.dtype == torch.uint16
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
