"""The purifiers to compare with: ART's preprocessors, inpainting, smoothing."""

import numpy as np
import pytest
import torch

import medfedpure
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.streams import Streams

IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
STREAMS = Streams(3, torch.tensor([9, 2, 5, 7]))
MODEL = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1}


def cleaned(name, **options):
    with torch.no_grad():
        return medfedpure.create("purifier", name, **options)(IMAGES, 0.5, streams=STREAMS).images


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("JpegCompression", {"quality": 30}),
        ("SpatialSmoothing", {"window_size": 3}),
        ("FeatureSqueezing", {"bit_depth": 3}),
    ],
)
def test_preprocessors_do_what_art_does(name, options):
    from art.defences import preprocessor

    given = {} if name == "FeatureSqueezing" else {"channels_first": True}
    own = getattr(preprocessor, name)(clip_values=(0.0, 1.0), **given, **options)
    wanted, _ = own(IMAGES.numpy())
    assert np.allclose(cleaned("art", preprocessor=name, options=options).numpy(), wanted, atol=1e-6)


def test_total_variation_draws_from_the_image_alone():
    options = {"preprocessor": "TotalVarMin", "options": {"max_iter": 2}}
    together = cleaned("art", **options)
    part = medfedpure.create("purifier", "art", **options)
    alone = part(IMAGES[2:3], 0.5, streams=STREAMS.select(torch.tensor([2]))).images
    assert torch.equal(alone[0], together[2])
    assert not part.deterministic


def test_total_variation_smooths_along_both_axes():
    """A noisy square: minimized in two dimensions its flat parts lose noise along rows and along columns."""
    square = torch.zeros(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 0.8
    noisy = (square + 0.1 * torch.randn(square.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    options = {"prob": 1.0, "lamb": 0.3, "max_iter": 20}
    part = medfedpure.create("purifier", "art", preprocessor="TotalVarMin", options=options)
    found = part(noisy, 0.5).images
    inside, before = found[0, 0, 5:11, 5:11], noisy[0, 0, 5:11, 5:11]
    for axis in (0, 1):
        assert inside.diff(dim=axis).abs().mean() < 0.6 * before.diff(dim=axis).abs().mean()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preprocessor": "Mixup"}, "does not clean images"),
        ({"options": {"grade": 3}}, "takes no grade"),
        ({"options": {"quality": 1000}}, "ART refuses"),
    ],
)
def test_impossible_preprocessors_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        medfedpure.create("purifier", "art", **options)


def test_inpainting_paints_every_patch_once():
    purifier = medfedpure.create("purifier", "mae_inpaint", model=MODEL, masks=4)
    network = purifier.make_network((1, 16, 16), seed=0)
    purifier.adopt(network, (1, 16, 16))
    hidden = []
    network.register_forward_pre_hook(lambda _, given: hidden.append(given[1]))
    with torch.no_grad():
        found = purifier(IMAGES, 0.0, streams=STREAMS)
    times = torch.stack(hidden).long().sum(0)
    assert times.unique().tolist() == [1], "every patch is hidden by exactly one mask"
    assert found.nfe.tolist() == [4] * 4
    with torch.no_grad():
        painted = network.to_images(network(IMAGES, hidden[1])).clamp(0, 1)
    patches, wanted = network.to_patches(found.images), network.to_patches(painted)
    assert torch.allclose(patches[hidden[1]], wanted[hidden[1]], atol=1e-5), "a patch is what its own mask painted"
    with pytest.raises(InputError, match="fitted on images"):
        purifier(torch.rand(1, 1, 20, 20))


def test_smoothing_is_noise_and_a_median():
    plain = cleaned("smoothing", sigma=0.1, window=1)
    noise = STREAMS.normal((1, 16, 16), stage="smoothing")
    assert torch.allclose(plain, (IMAGES + 0.1 * noise).clamp(0, 1))
    smooth = cleaned("smoothing", sigma=0.1, window=3)
    assert torch.equal(smooth, medfedpure.create("purifier", "median")(plain).images)
