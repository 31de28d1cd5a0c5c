"""The phantom: reproducible, balanced, with lesions that can be seen and scanners that differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError
from medfedpure.plugins.datasets.phantom import Phantom


def draw(**options: object) -> ImageDataset:
    return Phantom(**{"images": 60, "image_size": 48, **options}).read()


@pytest.fixture(scope="module")
def phantom() -> ImageDataset:
    return draw(images=120)


def grow(masks: Tensor, by: int) -> Tensor:
    """Masks `(N, 1, H, W)` as floats, widened by some pixels."""
    return F.max_pool2d(masks.float(), 2 * by + 1, stride=1, padding=by)


def means(images: Tensor, where: Tensor) -> Tensor:
    """Mean of each image `(N,)` under weights `(N, 1, H, W)`."""
    return (images * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp_min(1.0)


def test_equal_seeds_give_equal_images_and_others_do_not(phantom):
    again, other = draw(images=120), draw(images=120, seed=1)
    assert again.fingerprint() == phantom.fingerprint(), "the same configuration must give the same data"
    assert torch.equal(again.masks, phantom.masks), "masks must be reproducible too"
    assert (other.pixels != phantom.pixels).flatten(1).any(1).all(), "another seed must change every image"


@pytest.mark.parametrize("images", [1, 7, 45])
def test_an_image_does_not_depend_on_how_many_are_drawn(phantom, images):
    fewer = draw(images=images)
    for what in ("pixels", "labels", "sites", "masks", "ids"):
        assert torch.equal(getattr(fewer, what), getattr(phantom, what)[:images]), f"{what} of a prefix differ"


def test_every_image_is_a_patient_of_its_own(phantom):
    assert torch.equal(phantom.groups, torch.arange(120)), "groups must be 0 ... N - 1"
    assert phantom.class_names == ("healthy", "lesion"), "the positive class comes last"


def test_short_prefixes_hold_all_classes_and_scanners(phantom):
    for seed in range(5):
        prefix = draw(images=12, image_size=16, seed=seed)
        assert set(prefix.labels.tolist()) == {0, 1}, f"a class is missing among the first 12 of seed {seed}"
        assert set(prefix.sites.tolist()) == {0, 1, 2}, f"a scanner is missing among the first 12 of seed {seed}"
    for site in range(3):
        share = phantom.labels[phantom.sites == site].float().mean()
        assert 0.35 < share < 0.65, f"scanner {site} shows lesions in {share:.0%}: the scanner must not tell the class"


@pytest.mark.parametrize(("fraction", "low", "high"), [(0.0, 0.0, 0.0), (0.2, 0.15, 0.25), (1.0, 1.0, 1.0)])
def test_lesion_fraction_is_kept(fraction, low, high):
    share = draw(lesion_fraction=fraction, image_size=16).labels.float().mean()
    assert low <= share <= high, f"asked for {fraction}, got {share:.3f}"


@pytest.mark.parametrize("size", [16, 28, 48, 65])
def test_masks_mark_lesions_inside_the_brain(size):
    data = draw(image_size=size)
    marked = data.masks.flatten(1).any(1)
    assert torch.equal(marked, data.labels == 1), "a mask must be non-empty exactly where the label is 1"
    assert data.masks.float().mean((1, 2, 3)).max() < 0.1, "a lesion covers more than a tenth of an image"


@pytest.mark.parametrize("lesion_size", [1.0, 3.0])
def test_a_lesion_changes_the_brain_and_nothing_else(lesion_size):
    options = {"images": 40, "noise": 0.0, "lesion_size": lesion_size}
    healthy, ill = draw(lesion_fraction=0.0, **options), draw(lesion_fraction=1.0, **options)
    change = (ill.images - healthy.images).abs()
    assert (means(change, ill.masks.float()) > 0.04).float().mean() > 0.9, "the mask must lie where the image changed"
    # The oedema around a lesion is as wide as the lesion at most; a scalp or an air pixel never changes.
    assert means(change, 1.0 - grow(ill.masks, int(4 * lesion_size))).max() < 0.005, (
        "the image changed far from the mask"
    )
    rows = torch.arange(48)
    edge = torch.minimum(rows, 47 - rows)
    border = torch.minimum(edge.view(-1, 1), edge) < 3
    assert not change[..., border].any(), "a lesion reached the border of the image"
    assert healthy.images[ill.masks].min() > 0.1, "a mask reaches into air or bone"


def test_lesions_stand_out_from_their_surroundings(phantom):
    ill = phantom.select(phantom.labels == 1)
    ring = grow(ill.masks, 3) - grow(ill.masks, 1)
    step = (means(ill.images, ill.masks.float()) - means(ill.images, ring)).abs()
    assert (step > 0.05).float().mean() > 0.75, f"most lesions must be visible; median step {step.median():.3f}"
    assert step.min() < 0.1, "some lesions must be faint, or the task is trivial"


def test_lesion_options_act_on_lesions(phantom):
    larger, fainter = draw(images=120, lesion_size=1.5), draw(images=120, lesion_contrast=0.3)
    growth = larger.masks.sum() / phantom.masks.sum()
    assert 1.6 < growth < 2.6, f"1.5 times the radius must give about 2.25 times the area; got {growth:.2f}"
    assert torch.equal(fainter.masks, phantom.masks), "contrast must not move lesions"
    ill = phantom.labels == 1
    ring = (grow(phantom.masks, 3) - grow(phantom.masks, 1))[ill]
    steps = [
        (means(d.images[ill], d.masks[ill].float()) - means(d.images[ill], ring)).abs() for d in (phantom, fainter)
    ]
    assert steps[1].median() < 0.6 * steps[0].median(), "a third of the contrast must make lesions fainter"


def test_healthy_images_hold_bright_and_dark_spots_too():
    quiet = draw(noise=0.0, image_size=96, scanner_shift=0.0)
    healthy = quiet.select(quiet.labels == 0).images
    smooth = F.avg_pool2d(F.pad(healthy, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    detail = (healthy - smooth)[..., 32:64, 32:64].abs().amax((1, 2, 3))
    assert detail.median() > 0.05, "without benign clutter any spot would be a lesion"


def test_scanners_differ_and_shift_zero_makes_them_alike():
    def spread(shift: float) -> float:
        data = draw(images=150, image_size=32, scanner_shift=shift)
        air = data.images[..., :3, :3].mean((1, 2, 3))
        return torch.stack([air[data.sites == site].mean() for site in range(3)]).std().item()

    assert spread(1.0) > 3.0 * spread(0.0), "the noise in the air must tell the scanner, unless scanner_shift is 0"


def test_anatomy_is_the_same_at_every_size():
    small, large = (draw(image_size=size, noise=0.0).images for size in (32, 96))
    shrunk = F.avg_pool2d(large, 3)
    assert (shrunk - small).abs().mean() < 0.03, "image i must show the same head at 32 and 96 pixels"
    assert (shrunk.roll(1, 0) - small).abs().mean() > 0.06, "the comparison must tell different heads apart"


def test_three_channels_are_equal_and_show_the_same_picture(phantom):
    colour = draw(channels=3, images=10)
    assert colour.image_shape == (3, 48, 48), "three channels were asked for"
    assert torch.equal(colour.pixels, phantom.pixels[:10].expand(-1, 3, -1, -1)), "channels must be equal"


@pytest.mark.parametrize("size", [28, 65])
def test_images_use_the_range_of_pixels(size):
    data = draw(image_size=size, images=20)
    assert data.image_shape == (1, size, size), "the size was asked for"
    assert data.images.amax((1, 2, 3)).min() > 0.3, "an image is nearly black"
    assert data.images[..., 0, 0].max() < 0.25, "air must be dark"


@pytest.mark.parametrize(
    "options", [{"size": 48}, {"channels": 2}, {"image_size": 8}, {"images": 0}, {"lesion_fraction": 1.5}]
)
def test_wrong_configuration_is_refused(options):
    with pytest.raises(ConfigError):
        Phantom(**options)


def test_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    draw(images=4)
    assert torch.equal(before, torch.random.get_rng_state()), "read() drew from the global generator"
