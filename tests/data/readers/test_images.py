"""One image file of any kind becomes a square of uint8 or uint16."""

import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from medfedpure.core.errors import DataError
from medfedpure.data.readers.images import Decoder, is_image


def put(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def one(tmp_path: Path, image: Image.Image, name: str = "a.png", *, channels=1, bit_depth=None, save=None):
    """The pixels (C, 16, 16) of a picture that was written to a file."""
    return Decoder(16, channels, bit_depth).read(put(tmp_path / name, image, **(save or {})))


def test_padding_is_black_centred_and_does_not_stretch(tmp_path):
    pixels = one(tmp_path, Image.new("L", (40, 20), 200))[0]
    assert pixels[:3].max() <= 1
    assert pixels[13:].max() <= 1
    assert (pixels[5:11].int() - 200).abs().max() <= 4
    upright = one(tmp_path, Image.new("L", (20, 40), 200))[0]
    assert torch.equal(upright, pixels.T)


def test_shrinking_averages(tmp_path):
    stripes = Image.frombytes("L", (128, 128), bytes([0, 255]) * (64 * 128))
    assert (one(tmp_path, stripes).int() - 127).abs().max() <= 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".gif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats(tmp_path, suffix, channels):
    pixels = one(tmp_path, Image.new("L", (20, 20), 120), "a" + suffix, channels=channels)
    assert pixels.shape == (channels, 16, 16)
    assert (pixels.int() - 120).abs().max() <= 1


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (Image.new("RGB", (20, 20), (250, 100, 0)), "a.png", (250, 100, 0)),
        (Image.new("RGBA", (20, 20), (200, 100, 50, 255)), "a.png", (200, 100, 50)),
        (Image.new("RGBA", (20, 20), (200, 100, 50, 128)), "a.png", (100, 50, 25)),
        (Image.new("RGBA", (20, 20), (255, 255, 255, 0)), "a.tif", (0, 0, 0)),
        (Image.new("LA", (20, 20), (200, 128)), "a.png", (100, 100, 100)),
        (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "a.tif", (255, 0, 0)),
        (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "a.jpg", (255, 0, 0)),
        (Image.new("1", (20, 20), 1), "a.png", (255, 255, 255)),
        (Image.new("1", (20, 20), 1), "a.tif", (255, 255, 255)),
    ],
    ids=["RGB", "RGBA opaque", "RGBA half", "RGBA clear", "LA", "CMYK tiff", "CMYK jpeg", "1-bit png", "1-bit tiff"],
)
def test_modes(tmp_path, image, name, expected):
    pixels = one(tmp_path, image, name, channels=3)
    assert (pixels[:, 8, 8].int() - torch.tensor(expected)).abs().max() <= 2


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])], ids=["one colour", "table"])
def test_palette_with_transparency_lies_over_black(tmp_path, transparency):
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 255, 255, 10, 200, 30])
    image.paste(1, (16, 0, 32, 32))
    pixels = one(tmp_path, image, channels=3, save={"transparency": transparency})
    assert pixels[:, 8, 2].tolist() == [0, 0, 0]
    assert pixels[:, 8, 13].tolist() == [10, 200, 30]


def test_palette_without_transparency(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 255, 255, 10, 200, 30])
    assert one(tmp_path, image, channels=3)[:, 8, 8].tolist() == [10, 200, 30]


def sixteen(value: int, size: int = 20) -> Image.Image:
    return Image.frombytes("I;16", (size, size), struct.pack("<H", value) * size**2)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_by_their_range_not_by_their_extremes(tmp_path, name):
    for value, expected in ((65535, 255), (32768, 128), (6554, 26), (0, 0)):
        assert one(tmp_path, sixteen(value), name).unique().tolist() == [expected]


def test_big_endian_sixteen_bits(tmp_path):
    image = Image.frombytes("I;16B", (20, 20), struct.pack(">H", 32768) * 400)
    assert one(tmp_path, image, "a.tif").unique().tolist() == [128]


def test_sixteen_bits_where_white_is_zero(tmp_path):
    path = put(tmp_path / "a.tif", sixteen(65535), tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    assert Decoder(16, 1).read(path).unique().tolist() == [0]


def test_twelve_bits_stored_in_sixteen(tmp_path):
    decoder = Decoder(16, 1)
    path = put(tmp_path / "dark.png", sixteen(4095))
    assert decoder.read(path).max() == 16
    decoder.read(put(tmp_path / "black.png", sixteen(0)))
    decoder.read(put(tmp_path / "bright.png", sixteen(60000)))
    assert decoder.dim == [path]
    assert one(tmp_path, sixteen(4095), bit_depth=12).unique().tolist() == [255]
    with pytest.raises(DataError, match=r"5000, above 4095"):
        one(tmp_path, sixteen(5000), bit_depth=12)


def ramp(values: range, side: int) -> Image.Image:
    return Image.frombytes("I;16", (side, side), struct.pack(f"<{side * side}H", *values))


def test_sixteen_bits_are_kept(tmp_path):
    path = put(tmp_path / "a.png", ramp(range(65536), 256))
    kept = Decoder(256, 1, pixel_bits=16).read(path)
    assert kept.dtype == torch.uint16
    assert torch.equal(kept.int().flatten(), torch.arange(65536, dtype=torch.int32))
    colour = Decoder(256, 3, pixel_bits=16).read(path).int()
    assert torch.equal(colour, kept.int().expand(3, -1, -1))


def test_a_ramp_of_twelve_bits_keeps_its_steps_and_fills_the_range(tmp_path):
    kept = Decoder(64, 1, 12, 16).read(put(tmp_path / "a.png", ramp(range(4096), 64))).int().flatten()
    assert kept.unique().numel() == 4096
    assert (int(kept[0]), int(kept[-1])) == (0, 65535)


def test_sixteen_bits_are_resized_as_they_are(tmp_path):
    """Shrinking averages between steps of 8 bits, and what lies outside is black."""
    stripes = ramp([1000, 1021] * 2048, 64)
    kept = Decoder(16, 1, pixel_bits=16).read(put(tmp_path / "a.png", stripes)).int()
    assert (kept - 1010).abs().max() <= 1
    lying = sixteen(60000).crop((0, 0, 20, 10))
    padded = Decoder(16, 1, pixel_bits=16).read(put(tmp_path / "b.png", lying)).int()[0]
    assert padded[:3].max() <= 300
    assert (padded[6:10] - 60000).abs().max() <= 1500
    assert padded.max() <= 65535


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bit_files_among_sixteen_bits(tmp_path, channels):
    path = put(tmp_path / "a.png", Image.frombytes("L", (20, 20), bytes(range(200)) * 2))
    narrow, wide = Decoder(16, channels).read(path), Decoder(16, channels, pixel_bits=16).read(path)
    assert wide.dtype == torch.uint16
    assert torch.equal(wide.int(), narrow.int() * 257)


def test_white_is_zero_with_sixteen_bits(tmp_path):
    path = put(tmp_path / "a.tif", sixteen(65000), tiffinfo={262: 0})
    assert Decoder(16, 1, pixel_bits=16).read(path).int().unique().tolist() == [535]


def test_files_of_more_than_eight_bits_are_known_by_their_header(tmp_path):
    decoder = Decoder(16, 1)
    deep = [put(tmp_path / name, sixteen(7)) for name in ("a.png", "a.tif")]
    plain = [put(tmp_path / name, Image.new(mode, (20, 20))) for name, mode in (("b.png", "L"), ("b.jpg", "RGB"))]
    (tmp_path / "c.png").touch()
    assert [decoder.is_deep(path) for path in (*deep, *plain, tmp_path / "c.png")] == [True, True] + [False] * 3
    assert not Decoder(16, 1, 8).is_deep(deep[0])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_without_a_known_range_are_refused(tmp_path, mode):
    with pytest.raises(DataError, match="no known range"):
        one(tmp_path, Image.new(mode, (20, 20), 7), "a.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("size", [(32, 32), (32, 16)])
def test_exif_orientation_is_honoured(tmp_path, name, size):
    lying = Image.new("L", size, 40)
    lying.paste(220, (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    pixels = one(tmp_path, lying, name, save={"exif": exif})[0].int()
    assert (pixels[2, 8] - 220).abs() <= 4
    assert (pixels[13, 8] - 40).abs() <= 4


def test_a_flipped_file_gives_the_flipped_picture(tmp_path):
    values = torch.randint(0, 256, (61 * 40,), generator=torch.Generator().manual_seed(0)).tolist()
    image = Image.frombytes("L", (61, 40), bytes(values))
    straight = one(tmp_path, image)
    flipped = one(tmp_path, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert (straight.int() - flipped.flip(-1).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(200, 200), (3000, 2)], ids=["large", "long"])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, size):
    path = put(tmp_path / "bomb.png", Image.new("L", size))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DataError, match="pixels"):
        Decoder(16, 1).read(path)


def test_images_are_known_by_ending_or_content(tmp_path):
    picture = Image.new("L", (8, 8))
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF"):
        assert is_image(put(tmp_path / f"no_ending_{kind}", picture, format=kind))
    (tmp_path / "text.JPG").write_text("damaged, but it claims to be an image")
    assert is_image(tmp_path / "text.JPG")
    for name in ("Thumbs.db", "groups.csv"):
        (tmp_path / name).write_text("BMI of all patients")
        assert not is_image(tmp_path / name)
