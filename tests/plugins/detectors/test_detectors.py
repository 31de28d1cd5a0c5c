"""The masked autoencoder and the disagreement score do what their formulas say."""

import math

import pytest
import torch

import medfedpure
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import ConfigError, InputError, MissingRequirementError, NotFittedError
from medfedpure.core.streams import Streams
from medfedpure.figures.divergences import jensen_shannon
from medfedpure.models.mae_training import complementary_mask

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


def brightness(images):
    """Two logits that turn on the mean of the left half."""
    level = 40 * (images[..., :8].mean((1, 2, 3)) - 0.5)
    return torch.stack((-level, level), 1)


COMBINED = {"kind": "combined", "masks": 2, "ratios": [0.5]}


def test_combined_is_a_smooth_maximum_of_standardized_logarithms():
    context, data = ScoreContext(classifier=brightness), stripes()
    options = {"model": MODEL, "training": {"steps": 40, "batch_size": 16}}
    detector = medfedpure.create("detector", "mae", score=COMBINED, **options).fit(data, context=context)
    rows = detector._statistics(data.images, context, Streams(0, data.ids))
    streams = Streams(0, data.ids)
    shift = medfedpure.create("detector", "mae", score={**COMBINED, "kind": "prediction_shift"}, **options)
    error = medfedpure.create("detector", "mae", score={**COMBINED, "kind": "reconstruction"}, **options)
    for place, other in ((0, shift), (2, error)):
        other.adopt(detector.network, data.image_shape)
        alone = torch.log(other(data.images, context=context, streams=streams) + 1e-8)
        assert torch.allclose(rows[:, place], alone, atol=1e-5), f"statistic {place} is not the score of its name"
    z = (rows.double() - detector.centre) / detector.spread
    scores = detector(data.images, context=context, streams=streams).double()
    assert torch.allclose(scores, 0.5 * torch.logsumexp(2 * z, 1), atol=1e-4)
    assert rows.shape == (32, 4)


def test_combined_sees_noise_of_any_kind():
    context, fresh = ScoreContext(classifier=brightness), stripes(16, seed=1).images
    options = {"model": MODEL, "training": {"steps": 150, "batch_size": 16}}
    detector = medfedpure.create("detector", "mae", score=COMBINED, **options).fit(stripes(), context=context)
    noise = 0.2 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))
    benign, noisy = (detector(x, context=context) for x in (fresh, (fresh + noise).clamp(0, 1)))
    assert int((noisy > benign).sum()) >= 14


def test_combined_is_not_fitted_by_a_network_alone(tmp_path):
    context, data = ScoreContext(classifier=brightness), stripes()
    detector = medfedpure.create("detector", "mae", model=MODEL, score=COMBINED)
    detector.adopt(detector.make_network(data.image_shape, seed=0), data.image_shape)
    with pytest.raises(NotFittedError):
        detector(data.images, context=context)
    detector.finish_fit(data, context=context).save(tmp_path / "mae")
    loaded = medfedpure.Detector.load(tmp_path / "mae")
    assert torch.equal(loaded(data.images, context=context), detector(data.images, context=context))
    with pytest.raises(MissingRequirementError, match="classifier"):
        medfedpure.create("detector", "mae", model=MODEL, score=COMBINED).fit(data)


def test_a_long_fit_goes_on_where_it_was_cut_off(tmp_path):
    options = {"model": MODEL, "validation_share": 0.25, "training": {"steps": 20, "batch_size": 8, "checks": 5}}
    folder, plain = tmp_path / "checkpoint", medfedpure.create("detector", "mae", **options).fit(stripes())
    again = medfedpure.create("detector", "mae", **options).fit(stripes(), context=ScoreContext(checkpoint=folder))
    third = medfedpure.create("detector", "mae", **options).fit(stripes(), context=ScoreContext(checkpoint=folder))
    for detector in (again, third):
        for key, value in detector.network.state_dict().items():
            assert torch.equal(value, plain.network.state_dict()[key]), key


def test_normalized_errors_are_relative_to_the_variance_of_a_patch():
    flat_and_wavy = stripes(8).images.clone()
    flat_and_wavy[..., :8] = 0.5
    batch = Batch(flat_and_wavy, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    part = medfedpure.create("detector", "mae", model=MODEL, normalized_loss=True, visible_weight=0)
    network, masks = part.make_network((1, 16, 16), seed=0), []
    network.register_forward_pre_hook(lambda _, given: masks.append(given))
    with torch.no_grad():
        loss = part.task().loss(network, batch, Streams(0, batch.ids))
        noisy, masked = masks[0]
        target = network.to_patches(batch.images)
        error = (network(noisy, masked) - target).square().mean(2)
    variance = target.var(2, correction=0)
    assert bool((variance < 1e-6).any())
    weighed = error * 1e-3 / (variance + 1e-3)
    assert torch.allclose(loss, 10 * weighed[masked].mean(), rtol=1e-4)


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
