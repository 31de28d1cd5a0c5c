"""Every image is varied by its own draws, by as much as is said."""

import pytest
import torch

from medfedpure.core.settings import Augmentation
from medfedpure.core.streams import Streams
from medfedpure.data.augmentation import augment, cut, rescan, robust_augmentation, turn
from medfedpure.testing.setting import tiny_dataset

DATA = tiny_dataset(64)
IMAGES, STREAMS = DATA.images[:6], Streams(0, DATA.ids[:6])
STILL = {"flip": False, "shift": 0}


@pytest.mark.parametrize(
    "chosen",
    [
        Augmentation(shift=3),
        Augmentation(**STILL, intensity=0.5, noise=0.02),
        Augmentation(**STILL, quarter_turns=True, rotation=15, stretch=0.2),
        Augmentation(**STILL, gamma=0.4, brightness=0.25, cut_out=0.5),
        robust_augmentation(),
    ],
)
def test_an_image_is_varied_alike_in_every_batch(chosen: Augmentation) -> None:
    whole = augment(IMAGES, chosen, STREAMS)
    alone = torch.cat([augment(IMAGES[i : i + 1], chosen, STREAMS.select(torch.tensor([i]))) for i in range(6)])
    assert torch.allclose(alone, whole, atol=1e-6), "augmentation depends on the batch"
    assert torch.equal(whole, whole.clamp(0, 1)), "augmentation leaves [0, 1]"
    assert not torch.equal(whole, IMAGES), "augmentation does nothing"


def test_nothing_is_done_where_nothing_is_asked() -> None:
    assert torch.equal(augment(IMAGES, Augmentation(**STILL), STREAMS), IMAGES)


def test_moving_keeps_every_pixel() -> None:
    whole = augment(IMAGES, Augmentation(shift=3), STREAMS)
    assert torch.equal(whole.flatten(1).sort().values, IMAGES.flatten(1).sort().values), "pixels must only move"


def test_quarter_turns_are_exact() -> None:
    found = augment(IMAGES, Augmentation(**STILL, quarter_turns=True), STREAMS)
    turned = torch.stack([torch.rot90(IMAGES, quarter, (2, 3)) for quarter in range(4)])
    distance = (found - turned).abs().amax((2, 3, 4)).min(0)
    assert float(distance.values.max()) < 1e-5, "a quarter turn is none of the four"
    assert len(distance.indices.unique()) > 1, "all images are turned alike"


def test_rotation_and_stretch_stay_within_what_is_asked() -> None:
    size = 65
    ramp = torch.linspace(-1, 1, size)[None, None, None, :].expand(40, 1, size, size) / 4 + 0.5
    streams = Streams(3, torch.arange(40))
    angles = _slope_angle(turn(ramp, Augmentation(**STILL, rotation=20), streams))
    assert float(angles.abs().max()) <= 20.5, "rotated further than asked"
    assert float(angles.amin()) < -10 < 10 < float(angles.amax()), "the angles do not fill their range"
    inner = turn(ramp, Augmentation(**STILL, stretch=0.2), streams)[:, 0, size // 2]
    scale = (inner[:, size // 2 + 8] - inner[:, size // 2 - 8]) / (ramp[0, 0, 0, 40] - ramp[0, 0, 0, 24])
    assert float(scale.log().abs().max()) <= 0.205, "stretched further than asked"
    assert float(scale.log().std()) > 0.05, "all images are stretched alike"


def _slope_angle(images: torch.Tensor) -> torch.Tensor:
    middle = images.shape[3] // 2
    across = images[:, 0, middle, middle + 5] - images[:, 0, middle, middle - 5]
    down = images[:, 0, middle + 5, middle] - images[:, 0, middle - 5, middle]
    return torch.rad2deg(torch.atan2(down, across))


def test_rescanning_varies_gain_and_noise_per_image() -> None:
    smooth, noisy = Augmentation(**STILL, intensity=0.5), Augmentation(**STILL, intensity=0.5, noise=0.02)
    noise = (augment(IMAGES, noisy, STREAMS) - augment(IMAGES, smooth, STREAMS)).flatten(1).std(1)
    assert bool(((noise > 0) & (noise < 0.021)).all()), "noise is above its largest standard deviation"
    gains = augment(torch.full((6, 1, 8, 8), 0.4), smooth, STREAMS).mean((1, 2, 3))
    assert len(gains.unique()) == 6, "every image has its own gain"


def test_rician_noise_has_the_moments_of_its_formula() -> None:
    level, signal = 0.1, 0.3
    images = torch.full((400, 1, 24, 24), signal)
    images[:, :, :, :12] = 0
    streams = Streams(0, torch.arange(400))
    drawn = level * streams.uniform((1, 1, 1), stage="rician level")
    found = augment(images, Augmentation(**STILL, rician=level), streams)
    square = found.square()
    floor = square[..., :12].mean((1, 2, 3)) / (2 * drawn.square().flatten())
    assert float((floor - 1).abs().mean()) < 0.1, "E x^2 of the dark is not 2 sigma^2"
    bright = square[..., 12:].mean() - (signal**2 + 2 * drawn.square().mean())
    assert abs(float(bright)) < 2e-3, "E x^2 of the bright is not its square + 2 sigma^2"


def test_gamma_bends_values_by_as_much_as_is_asked_and_keeps_black_and_white() -> None:
    ramp = torch.linspace(0, 1, 257)[None, None, None, :].expand(60, 1, 2, 257)
    found = rescan(ramp, Augmentation(**STILL, gamma=0.4), Streams(3, torch.arange(60)))[:, 0, 0]
    assert torch.equal(found[:, [0, -1]], ramp[:, 0, 0, [0, -1]])
    exponents = found[:, 128].log() / ramp[0, 0, 0, 128].log()
    torch.testing.assert_close(found[:, 1:], ramp[0, 0, 0, 1:] ** exponents[:, None])
    assert float(exponents.log().abs().max()) <= 0.4 + 1e-5
    assert float(exponents.log().min()) < -0.3 < 0.3 < float(exponents.log().max()), (
        "the exponents do not fill their range"
    )


def test_brightness_scales_by_as_much_as_is_asked() -> None:
    gray = torch.full((60, 1, 4, 4), 0.5)
    found = rescan(gray, Augmentation(**STILL, brightness=0.25), Streams(3, torch.arange(60)))
    factors = (found / 0.5).log()
    assert float(factors.abs().max()) <= 0.25 + 1e-5
    assert float(factors.std((1, 2, 3)).max()) < 1e-6, "not one factor for an image"
    assert float(factors.min()) < -0.2 < 0.2 < float(factors.max())


def test_a_square_is_cut_out_of_a_share_of_images() -> None:
    white = torch.ones(400, 1, 40, 40)
    found = cut(white, Augmentation(**STILL, cut_out=0.3, cut_size=0.18), Streams(3, torch.arange(400)))[:, 0] == 0
    area = found.float().mean((1, 2))
    hit = area > 0
    assert 0.24 < float(hit.float().mean()) < 0.36
    assert float(area.max()) <= 0.19
    rows, columns = found[hit].any(2).sum(1), found[hit].any(1).sum(1)
    assert torch.equal(rows * columns, found[hit].sum((1, 2))), "not a rectangle"
    inside = (rows == columns) & (rows >= 11)
    assert float(area[hit][inside].min()) > 0.07
    assert float(inside.float().mean()) > 0.3
    assert torch.equal(cut(white, Augmentation(**STILL), STREAMS), white)


def test_attacks_find_their_way_through_every_variation() -> None:
    how = Augmentation(rotation=10, intensity=0.3, gamma=0.4, brightness=0.2, cut_out=0.5)
    images = torch.zeros(6, 1, 16, 16, requires_grad=True)
    augment(images, how, STREAMS).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all()), "black has no slope"
    assert float(images.grad.abs().max()) < 50
