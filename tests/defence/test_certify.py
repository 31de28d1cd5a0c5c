"""Certificates: the bound is Clopper and Pearson's, the radius that of a classifier where it is known exactly."""

import pytest
import torch
from scipy.stats import beta, norm
from torch import nn

import medfedpure
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.figures.binomial import clopper_pearson_lower


@pytest.mark.parametrize(("successes", "trials"), [(0, 50), (1, 50), (37, 50), (50, 50), (990, 1000)])
def test_the_bound_is_that_of_scipy(successes, trials):
    wanted = beta.ppf(0.001, successes, trials - successes + 1) if successes else 0.0
    assert clopper_pearson_lower(successes, trials, 0.001) == pytest.approx(wanted, abs=1e-9)


class Half(nn.Module):
    """Class 1 above the plane sum(x) / sqrt(d) = 2: the margin of an image is its distance to the plane."""

    def forward(self, images):
        level = images.flatten(1).sum(1) / images[0].numel() ** 0.5 - 2
        return torch.stack((-level, level), 1)


def test_a_linear_classifier_is_certified_up_to_its_margin():
    levels = torch.tensor([0.2, 0.45, 0.55, 0.9])  # distances 1.2, 0.2, 0.2, 1.6 to the plane in 16 dimensions
    images = levels[:, None, None, None].expand(4, 1, 4, 4)
    found = medfedpure.certify(Half().eval(), images, sigma=0.5, n=2000, seed=1)
    distance = (4 * levels - 2).abs().double()
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert bool((found.radius <= distance + 1e-9).all()), "a certificate larger than the true margin is wrong"
    share = torch.tensor([norm.cdf(d / 0.5) for d in distance.tolist()]).clamp(max=1 - 1e-12)
    bound = torch.tensor([clopper_pearson_lower(round(2000 * float(p)), 2000, 0.001) for p in share])
    assert torch.allclose(found.radius, torch.tensor([0.5 * norm.ppf(float(b)) for b in bound]).double(), atol=0.1)
    assert found.accuracy(torch.tensor([0, 0, 1, 0])) == 0.75
    assert found.accuracy(torch.tensor([0, 0, 1, 1]), radius=0.5) == 0.5


def test_what_is_uncertain_abstains():
    images = torch.full((1, 1, 4, 4), 0.5)
    found = medfedpure.certify(Half().eval(), images, sigma=0.5, seed=1)
    assert found.labels.tolist() == [-1]
    assert found.radius.tolist() == [0.0]
    assert found.accuracy(torch.tensor([1])) == 0.0, "an abstention is not certified"
    assert "n 1000" in found.describe()


class Negative:
    """Answers with the negative, so that every verdict turns."""

    def denoise_once(self, noisy, sigma):
        return 1 - noisy


def test_the_denoiser_stands_before_the_classifier():
    images = torch.full((1, 1, 4, 4), 0.7)
    plain = medfedpure.certify(Half().eval(), images, sigma=0.2, seed=1)
    turned = medfedpure.certify(Half().eval(), images, sigma=0.2, denoiser=Negative(), seed=1)
    assert (plain.labels.tolist(), turned.labels.tolist()) == ([1], [0])
    assert torch.equal(plain.radius, turned.radius), "the negative has the same margin"
    assert "denoised in one step by Negative" in turned.describe()


def test_nothing_depends_on_the_batch_or_on_other_images():
    images = torch.linspace(0.3, 0.7, 3)[:, None, None, None].expand(3, 1, 4, 4)
    whole = medfedpure.certify(Half().eval(), images, sigma=0.5, n=200, seed=1)
    small = medfedpure.certify(Half().eval(), images, sigma=0.5, n=200, seed=1, batch_size=7)
    part = medfedpure.certify(Half().eval(), images[2:], torch.tensor([2]), sigma=0.5, n=200, seed=1)
    assert torch.equal(whole.radius, small.radius)
    assert torch.equal(whole.radius[2:], part.radius)


def test_a_diffusion_model_removes_noise_in_one_evaluation():
    purifier = medfedpure.create("purifier", "ddpm", model={"widths": (8, 16)})
    purifier.adopt(purifier.make_network((1, 16, 16), seed=0), (1, 16, 16))
    noisy = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = purifier.denoise_once(noisy, 0.1)
    assert clean.shape == noisy.shape
    assert 0 <= float(clean.min()) <= float(clean.max()) <= 1
    with pytest.raises(InputError, match="train it deeper"):
        purifier.denoise_once(noisy, 1.0)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="sigma > 0"):
        medfedpure.certify(Half().eval(), torch.rand(1, 1, 4, 4), sigma=0)
    with pytest.raises(InputError, match="training mode"):
        medfedpure.certify(Half().train(), torch.rand(1, 1, 4, 4), sigma=0.5)
    with pytest.raises(InputError, match="ids must have shape"):
        medfedpure.certify(Half().eval(), torch.rand(1, 1, 4, 4), torch.arange(2), sigma=0.5)
    with pytest.raises(InputError, match="labels must have shape"):
        medfedpure.certify(Half().eval(), torch.rand(1, 1, 4, 4), sigma=0.5, n=10).accuracy(torch.zeros(3))
