"""The norm of the diffusion model's score: what its formula says, and what it sees."""

import pytest
import torch

import medfedpure
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.streams import Streams
from medfedpure.testing import SmoothingDenoiser

STREAMS = Streams.for_batch(0, 4)


class Sees:
    """A noise predictor that sees what it is told to."""

    def __init__(self, noise):
        self.noise, self.asked = noise, None

    def denoise(self, images, timestep, *, steps, streams):
        raise NotImplementedError

    def predict_noise(self, images, timestep):
        self.asked = timestep
        return self.noise.to(images)


def score(noise, **options):
    detector = medfedpure.create("detector", "score_norm", **options)
    images = torch.full_like(noise[:, :1], 0.5).expand_as(noise)
    return detector(images, context=ScoreContext(denoiser=Sees(noise)), streams=Streams.for_batch(0, len(noise)))


def test_the_score_is_the_log_of_a_quantile_of_block_means():
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blocks = noise.square().mean(1).reshape(4, 4, 4, 4, 4).mean((2, 4)).flatten(1)
    expected = torch.quantile(blocks, 0.75, dim=1).log()
    assert torch.allclose(score(noise), expected, atol=1e-6)
    assert torch.allclose(score(noise, block=16), noise.square().mean((1, 2, 3)).log(), atol=1e-6)


def test_blocks_at_the_edge_are_means_of_what_they_hold():
    noise = torch.full((1, 1, 6, 6), 2.0)
    assert torch.allclose(score(noise, quantile=0.0), torch.tensor([4.0]).log())
    assert torch.allclose(score(noise, block=50), torch.tensor([4.0]).log())


def test_a_few_textured_blocks_do_not_count():
    noise = torch.ones(2, 1, 16, 16)
    noise[1, :, :4, :12] = 30.0
    quiet, textured = score(noise).tolist()
    assert quiet == textured


def test_the_network_is_asked_once_and_at_the_timestep():
    sees = Sees(torch.ones(4, 1, 8, 8))
    detector = medfedpure.create("detector", "score_norm", timestep=2.5)
    detector(torch.rand(4, 1, 8, 8), context=ScoreContext(denoiser=sees), streams=STREAMS)
    assert sees.asked.tolist() == [2.5] * 4


def test_noise_is_seen_by_a_trained_diffusion_model():
    data = medfedpure.create("dataset", "phantom", images=64, image_size=32).read()
    training = {"steps": 60, "batch_size": 32, "learning_rate": 2e-3}
    purifier = medfedpure.create("purifier", "ddpm", model={"widths": [16, 32]}, training=training).fit(data)
    context = ScoreContext(denoiser=purifier)
    detector = medfedpure.create("detector", "score_norm", timestep=20)
    streams = Streams.for_batch(1, len(data))
    noise = 0.1 * (2 * streams.uniform(data.image_shape, stage="test") - 1)
    benign = detector(data.images, context=context, streams=streams)
    noisy = detector((data.images + noise).clamp(0, 1), context=context, streams=streams)
    assert (noisy > benign).double().mean() > 0.9


def test_a_denoiser_that_predicts_no_noise_is_refused():
    class Old:
        def denoise(self, images, timestep, *, steps, streams):
            return images

    detector = medfedpure.create("detector", "score_norm")
    with pytest.raises(MissingRequirementError, match=r"predict_noise.*got Old"):
        detector(torch.rand(4, 1, 8, 8), context=ScoreContext(denoiser=Old()), streams=STREAMS)
    context = ScoreContext(denoiser=SmoothingDenoiser())
    assert detector(torch.rand(4, 1, 8, 8), context=context, streams=STREAMS).shape == (4,)
