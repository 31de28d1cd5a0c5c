"""A detector lent a smaller diffusion model: what the model sees, and what the classifier goes on seeing."""

import pytest
import torch
from torch.nn import functional

import medfedpure
from medfedpure.core.detector import NoisePredictor, ScoreContext
from medfedpure.core.errors import ConfigError, MissingRequirementError
from medfedpure.core.streams import Streams
from medfedpure.figures.divergences import jensen_shannon
from medfedpure.testing import SmoothingDenoiser, tiny_context, tiny_dataset

IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
STREAMS = Streams.for_batch(0, 4)


class Watched(SmoothingDenoiser):
    """Says which images it was shown."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def denoise(self, images, timestep, *, steps, streams):
        self.shapes.append(tuple(images.shape))
        return super().denoise(images, timestep, steps=steps, streams=streams)

    def predict_noise(self, images, timestep):
        self.shapes.append(tuple(images.shape))
        return super().predict_noise(images, timestep)


def test_it_is_the_inner_score_of_averaged_pixels():
    context = ScoreContext(denoiser=SmoothingDenoiser())
    reduced = medfedpure.create("detector", "reduced", factor=2, inner={"plugin": "score_norm", "config": {"block": 4}})
    plain = medfedpure.create("detector", "score_norm", block=2)
    wanted = plain(functional.avg_pool2d(IMAGES, 2), context=context, streams=STREAMS)
    assert torch.allclose(reduced(IMAGES, context=context, streams=STREAMS), wanted, atol=1e-6)


@pytest.mark.parametrize(("factor", "size", "side"), [(2, 16, 8), (4, 16, 4), (4, 18, 5)])
def test_the_diffusion_model_works_on_fewer_pixels(factor, size, side):
    seen, images = Watched(), functional.interpolate(IMAGES, size=(size, size))
    detector = medfedpure.create("detector", "reduced", factor=factor)
    context = ScoreContext(denoiser=seen)
    assert detector(images, context=context, streams=STREAMS).shape == (4,)
    assert detector.suspicion_map(images, context=context, streams=STREAMS).shape == images.shape
    assert set(seen.shapes) == {(4, 1, side, side)}


def test_a_classifier_reads_whole_images_with_the_small_change_in_them():
    denoiser, flat = Watched(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2)).requires_grad_(False)
    inner = {"plugin": "denoising_disagreement"}
    detector = medfedpure.create("detector", "reduced", inner=inner)
    found = detector(IMAGES, context=ScoreContext(classifier=flat, denoiser=denoiser), streams=STREAMS)
    small = functional.avg_pool2d(IMAGES, 2)
    cleaned = SmoothingDenoiser().denoise(
        small, torch.full((4,), 20.0), steps=1, streams=STREAMS.child("disagreement0")
    )
    change = functional.interpolate(cleaned - small, scale_factor=2, mode="nearest")
    assert torch.allclose(found, jensen_shannon(flat(IMAGES), flat((IMAGES + change).clamp(0, 1))), atol=1e-6)
    assert denoiser.shapes == [(4, 1, 8, 8)]


def test_only_a_detector_that_borrows_the_diffusion_model_can_be_reduced():
    with pytest.raises(ConfigError, match=r"feature_squeezing.*borrows none.*score_norm"):
        medfedpure.create("detector", "reduced", inner={"plugin": "feature_squeezing"})
    with pytest.raises(ConfigError, match="factor"):
        medfedpure.create("detector", "reduced", factor=1)


def test_a_model_that_predicts_no_noise_is_not_made_to():
    class Old:
        def denoise(self, images, timestep, *, steps, streams):
            return images

    detector = medfedpure.create("detector", "reduced")
    with pytest.raises(MissingRequirementError, match="predict_noise"):
        detector(IMAGES, context=ScoreContext(denoiser=Old()), streams=STREAMS)
    assert not isinstance(detector._lent(ScoreContext(denoiser=Old())).denoiser, NoisePredictor)


def test_a_timestep_beyond_the_models_training_is_still_refused():
    class Shallow(SmoothingDenoiser):
        def deepest(self):
            return 10.0

    context = ScoreContext(tiny_context(16).classifier, denoiser=Shallow())
    detector = medfedpure.create("detector", "reduced", inner={"plugin": "denoising_disagreement"})
    with pytest.raises(ConfigError, match="trained up to 10"):
        detector(IMAGES, context=context, streams=STREAMS)


def test_an_inner_one_that_is_fitted_comes_back(tmp_path):
    data, context = tiny_dataset(), tiny_context()
    detector = medfedpure.create("detector", "reduced", inner={"plugin": "compose"})
    assert detector.needs_fit
    assert not detector.deterministic
    assert detector.requires == {"classifier", "denoiser"}
    detector.fit(data, context=context).save(tmp_path / "reduced")
    loaded = medfedpure.Detector.load(tmp_path / "reduced")
    streams = Streams(3, data.ids)
    found = [part(data.images, context=context, streams=streams) for part in (loaded, detector)]
    assert torch.equal(*found)
    assert loaded.config.inner.config["parts"][0]["config"]["block"] == 4, "defaults are spelled out"
