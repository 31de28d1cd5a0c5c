"""The masked autoencoder and the disagreement score do what their formulas say."""

import math

import pytest
import torch

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.divergence import jensen_shannon
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.streams import Streams
from medfedpure.plugins.detectors.mae import complementary_mask

MODEL = {"patch_size": 4, "width": 32, "depth": 1, "heads": 2, "decoder_width": 32, "decoder_depth": 1}


def stripes(count=32, seed=0):
    """Smooth stripes of random direction: easy to learn, so that noise stands out."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(count, 1, 1, generator=generator) * math.pi
    grid = torch.linspace(-1, 1, 16)
    wave = torch.sin(3 * (grid[None, :] * angle.cos() + grid[:, None] * angle.sin()))
    pixels = ((0.5 + 0.4 * wave) * 255).round().to(torch.uint8)[:, None]
    return ImageDataset(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count), ("benign",))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_masks_are_complementary(ratio):
    place = Streams.for_batch(0, 3).permutations(16, stage="mask")
    times = sum(complementary_mask(place, number, 4, ratio).long() for number in range(4))
    assert times.unique().tolist() == [round(4 * ratio)]


def test_masks_belong_to_the_image_not_to_its_place():
    ids = torch.tensor([5, 9])
    first = Streams(1, ids).permutations(16, stage="mask")
    assert torch.equal(Streams(1, ids.flip(0)).permutations(16, stage="mask"), first.flip(0))


def test_reconstruction_error_rises_with_noise():
    detector = medfedpure.create(
        "detector", "mae", model=MODEL, score={"kind": "reconstruction"}, training={"steps": 150, "batch_size": 16}
    ).fit(stripes())
    fresh = stripes(16, seed=1)
    noise = 0.2 * torch.randn(fresh.images.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        benign = detector(fresh.images)
        noisy = detector((fresh.images + noise).clamp(0, 1))
    assert bool((noisy > benign).all())


def test_autoencoder_learns_to_remove_noise_from_visible_patches():
    detector = medfedpure.create("detector", "mae", model=MODEL, training={"steps": 150, "batch_size": 16}).fit(
        stripes()
    )
    fresh = stripes(16, seed=1).images
    noisy = (fresh + 0.03 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    with torch.no_grad():
        visible_only = detector.network(noisy, torch.zeros(16, 16, dtype=torch.bool))
    before = (noisy - fresh).square().mean()
    after = (detector.network.to_images(visible_only) - fresh).square().mean()
    assert after < before


def test_patches_and_images_are_inverse():
    network = medfedpure.create("detector", "mae", model=MODEL).make_network((3, 16, 16), seed=0)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(network.to_images(network.to_patches(images)), images)


def test_autoencoder_refuses_images_it_cannot_tile():
    detector = medfedpure.create("detector", "mae", model=MODEL)
    with pytest.raises(ConfigError, match="multiple of patch_size"):
        detector.make_network((1, 18, 18), seed=0)
    detector.adopt(detector.make_network((1, 16, 16), seed=0), (1, 16, 16))
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(400, 2))
    with pytest.raises(InputError, match="fitted on images"):
        detector(torch.rand(1, 1, 20, 20), context=ScoreContext(classifier=linear))


def test_divergence_is_zero_symmetric_and_bounded():
    first, second = torch.tensor([[50.0, -50.0], [1.0, 2.0]]), torch.tensor([[-50.0, 50.0], [2.0, 1.0]])
    assert jensen_shannon(first, first).abs().max() < 1e-7
    assert torch.equal(jensen_shannon(first, second), jensen_shannon(second, first))
    assert abs(float(jensen_shannon(first, second)[0]) - math.log(2)) < 1e-6


class HalfDenoiser:
    """Brings every pixel half-way to grey."""

    def denoise(self, images, timestep, *, steps, streams):
        assert timestep.shape == (len(images),)
        return (images + 0.5) / 2


def test_disagreement_is_the_divergence_across_the_cleaning():
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    detector = medfedpure.create("detector", "denoising_disagreement", draws=2)
    context = ScoreContext(classifier=classifier, denoiser=HalfDenoiser())
    expected = jensen_shannon(classifier(images), classifier((images + 0.5) / 2))
    assert torch.allclose(detector(images, context=context), expected)
    shown = detector.suspicion_map(images, context=context, streams=Streams.for_batch(0, 3))
    assert torch.allclose(shown, (images - 0.5).abs() / 2, atol=1e-6)
