"""Near-duplicates are found under flips, turns and brightness, and different pictures stay apart."""

import pytest
import torch
from torch.nn import functional

from medfedpure.core.errors import InputError
from medfedpure.data.near_duplicates import near_duplicate_groups, near_duplicates_in


def pictures(count: int, *, size: int = 48, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures `(count, channels, size, size)` uint8 in 60 ... 160, not symmetric."""
    coarse = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    fine = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return (60 + 100 * fine).byte().expand(-1, channels, -1, -1).contiguous()


def versions(image: torch.Tensor) -> torch.Tensor:
    """The 8 flips and rotations of one picture `(C, S, S)`."""
    return torch.stack([torch.rot90(side, turns, (-2, -1)) for side in (image, image.flip(-1)) for turns in range(4)])


def test_the_eight_versions_of_each_picture_form_one_group():
    images = pictures(20)
    mixed = torch.cat([versions(image) for image in images])
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(20).repeat_interleave(8)[order]
    groups = near_duplicate_groups(mixed[order])
    assert torch.equal(groups[:, None] == groups[None], truth[:, None] == truth[None])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 60,
        lambda x: x * 0.5,
        lambda x: (x * 1.8).clamp(0, 255),
        lambda x: 255 * (x / 255) ** 0.6,
        lambda x: x + 4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)),
        lambda x: (x * 1.3).rot90(1, (-2, -1)).flip(-1),
    ],
    ids=["brighter", "darker", "clipped", "gamma", "noise", "turned and brighter"],
)
def test_a_copy_of_another_brightness_joins_its_original(change):
    images = pictures(30)
    copies = change(images.float()).clamp(0, 255).byte()
    groups = near_duplicate_groups(torch.cat([images, copies]))
    assert torch.equal(groups[:30], groups[30:])
    assert groups.unique().numel() == 30


def test_different_pictures_on_the_same_bright_oval_stay_apart():
    axis = torch.linspace(-1, 1, 48)
    oval = ((axis[:, None] ** 2 + (1.2 * axis[None, :]) ** 2) < 0.8).float()
    images = (oval * (1.5 * pictures(40).float())).byte()
    assert near_duplicate_groups(images).tolist() == list(range(40))


def test_groups_of_sixteen_bits_are_those_of_eight():
    images = pictures(12)
    flat = torch.full_like(images[:1], 90)
    mixed = torch.cat([images, images[:6].rot90(1, (-2, -1)), flat, flat + 20])
    deep = (mixed.int() * 257).clamp_max(65535).to(torch.uint16)
    assert torch.equal(near_duplicate_groups(deep), near_duplicate_groups(mixed))


def test_groups_are_joined_transitively_and_numbered_by_their_first_image():
    a, b = pictures(2)
    blend = [((1 - share) * a.float() + share * b.float()).byte() for share in (0.0, 0.3, 0.6, 1.0)]
    other = pictures(1, seed=9)[0]
    assert near_duplicate_groups(torch.stack([other, blend[0], blend[3]])).tolist() == [0, 1, 2]
    chain = torch.stack([blend[3], other, blend[0], blend[2], blend[1]])
    assert near_duplicate_groups(chain, min_correlation=0.8).tolist() == [0, 1, 0, 0, 0]


def test_any_size_and_channels():
    for size, channels in ((28, 1), (64, 3), (225, 1)):
        images = pictures(6, size=size, channels=channels)
        both = torch.cat([images, images.rot90(3, (-2, -1))])
        assert near_duplicate_groups(both).tolist() == [*range(6), *range(6)]


def test_pictures_without_detail_form_one_group():
    flat = torch.stack([torch.full((1, 32, 32), value, dtype=torch.uint8) for value in (0, 90, 255)])
    groups = near_duplicate_groups(torch.cat([flat[:1], pictures(2, size=32), flat[1:]]))
    assert groups.tolist() == [0, 1, 2, 0, 0]


def test_small_chunks_change_nothing(monkeypatch):
    images = torch.cat([pictures(30), pictures(30).flip(-2)])
    whole = near_duplicate_groups(images)
    monkeypatch.setattr("medfedpure.data.near_duplicates._ELEMENTS", 2**12)
    assert torch.equal(near_duplicate_groups(images), whole)


def test_the_hash_does_not_lose_what_correlation_finds():
    images = torch.cat([pictures(30), pictures(30).rot90(1, (-2, -1))])
    assert torch.equal(near_duplicate_groups(images), near_duplicate_groups(images, max_distance=255))


def test_a_stricter_correlation_joins_less():
    images = pictures(20).float()
    noisy = images + 12 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    both = torch.cat([images, noisy.clamp(0, 255)]).byte()
    assert near_duplicate_groups(both, min_correlation=0.999).unique().numel() == 40
    assert near_duplicate_groups(both, min_correlation=0.5).unique().numel() == 20


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count):
    groups = near_duplicate_groups(torch.zeros(count, 1, 16, 16, dtype=torch.uint8))
    assert groups.dtype == torch.int64
    assert groups.tolist() == [0] * count


@pytest.mark.parametrize(
    ("images", "options", "text"),
    [
        (torch.zeros(2, 1, 8, 8), {}, "uint8"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), {}, r"\(N, C, H, W\)"),
        (torch.zeros(2, 1, 0, 8, dtype=torch.uint8), {}, "pixels"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {"hash_size": 1}, "hash_size"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {"max_distance": -1}, "max_distance"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {"min_correlation": 0.0}, "min_correlation"),
    ],
)
def test_wrong_input_is_named(images, options, text):
    with pytest.raises(InputError, match=text):
        near_duplicate_groups(images, **options)


def test_a_copy_is_found_among_others_in_each_of_its_eight_versions():
    images, strangers = pictures(20), pictures(5, seed=7)
    for place in (0, 11, 19):
        given = torch.cat([versions(images[place]), strangers])
        assert near_duplicates_in(given, images).tolist() == [place] * 8 + [-1] * 5


def test_pairs_are_those_of_the_groups():
    images = pictures(30)
    copies = (images[:12].float() * 0.7 + 20).byte()
    given = torch.cat([copies, pictures(8, seed=3)])
    groups = near_duplicate_groups(torch.cat([given, images]))
    joined = (groups[:20, None] == groups[None, 20:]).any(1)
    assert (near_duplicates_in(given, images) >= 0).tolist() == joined.tolist()
    assert near_duplicates_in(given, images)[:12].tolist() == list(range(12))
    assert near_duplicates_in(given, images, min_correlation=1.0).max() == -1, "noise of rounding is no equality"


def test_images_of_another_size_depth_or_none_are_compared_too():
    images = pictures(6)
    deep = (images.int() * 257).to(torch.uint16)
    large = functional.interpolate(images.float(), size=96, mode="bilinear").byte()
    assert near_duplicates_in(deep, images).tolist() == list(range(6))
    assert near_duplicates_in(large, images).tolist() == list(range(6))
    assert near_duplicates_in(images, images[:0]).tolist() == [-1] * 6
    assert near_duplicates_in(images[:0], images).tolist() == []
    flat = torch.full((2, 1, 48, 48), 90, dtype=torch.uint8)
    assert near_duplicates_in(flat, images).tolist() == [-1, -1]
    assert near_duplicates_in(flat, torch.cat([images, flat])).tolist() == [6, 6]


def test_what_is_no_image_or_no_correlation_is_refused_among_others():
    images = pictures(2)
    with pytest.raises(InputError, match="pixels must be uint8 or uint16"):
        near_duplicates_in(images, images.float())
    with pytest.raises(InputError, match=r"min_correlation must lie in \(0, 1\]; got 0"):
        near_duplicates_in(images, images, min_correlation=0)
