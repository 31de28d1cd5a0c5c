"""The diffusion purifier agrees with diffusers, adapts its depth, and cleans."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.streams import Streams
from medfedpure.plugins.purifiers.ddpm import Depth, TuningRow, choose_depth
from medfedpure.testing import tiny_classifier, tiny_dataset

SMALL = {"widths": (8, 16), "unshuffle": 2}


def fitted(**options):
    purifier = medfedpure.create("purifier", "ddpm", model=SMALL, **options)
    return purifier.adopt(purifier.make_network((1, 16, 16), seed=0), (1, 16, 16))


def images(count=5):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_noising_equals_diffusers_at_integers(kind):
    purifier = fitted(schedule={"kind": kind})
    names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=names[kind])
    clean, noise = images(4) * 2 - 1, torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([1, 37, 140, 998])
    ours = purifier.diffusion.add_noise(clean, noise, timestep.float())
    assert torch.allclose(ours, scheduler.add_noise(clean, noise, timestep), atol=1e-6)


def test_reverse_step_equals_ddim_of_diffusers():
    purifier = fitted()
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, set_alpha_to_one=True, clip_sample=True)
    scheduler.set_timesteps(50)  # strides of 20
    noisy, predicted = (torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    for now in (980, 140, 40):
        theirs = scheduler.step(predicted, now, noisy, eta=0.0).prev_sample
        clean = purifier.diffusion.predict_clean(noisy, predicted, torch.full((3,), float(now)))
        ours = purifier.diffusion.ddim_step(clean, predicted, torch.full((3,), now - 20.0))
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_depth_follows_strength():
    purifier = fitted(t_min=20, t_max=100, sampling={"num_inference_steps": 2})
    with torch.no_grad():
        result = purifier(images(3), torch.tensor([0.0, 0.5, 1.0]))
    assert result.timestep.tolist() == [20.0, 60.0, 100.0]
    assert result.nfe.tolist() == [2, 2, 2]


def test_depth_zero_is_the_identity():
    purifier = fitted(t_min=0, t_max=100, sampling={"num_inference_steps": 5})
    with torch.no_grad():
        result = purifier(images(2), torch.tensor([0.0, 1.0]))
    assert torch.equal(result.images[0], images(2)[0])
    assert not torch.equal(result.images[1], images(2)[1])
    assert result.nfe.tolist() == [0, 5]


def test_fractional_depths_lie_between_integers():
    purifier = fitted()
    signal, noise = purifier.diffusion.coefficients(torch.tensor([40.0, 40.5, 41.0]))
    assert signal[0] > signal[1] > signal[2]
    assert torch.allclose(signal**2 + noise**2, torch.ones(3, dtype=torch.float64))


def test_mixed_depths_equal_each_image_alone():
    purifier, batch, strength = fitted(t_min=0), images(), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    streams = Streams(7, torch.tensor([4, 8, 15, 16, 23]))
    with torch.no_grad():
        together = purifier(batch, strength, streams=streams).images
        for place in range(5):
            index = torch.tensor([place])
            alone = purifier(batch[index], strength[index], streams=streams.select(index)).images
            assert torch.allclose(alone[0], together[place], atol=1e-5)


def test_depth_is_differentiable_in_the_strength():
    strength = torch.full((2,), 0.5, requires_grad=True)
    fitted()(images(2), strength).images.sum().backward()
    assert strength.grad is not None
    assert bool(strength.grad.abs().min() > 0)


def test_training_removes_noise():
    base = torch.linspace(0.2, 0.8, 16)
    shapes = torch.stack([base.roll(k)[None, :] * base.roll(2 * k)[:, None] for k in range(16)])
    pixels = (shapes * 255).round().to(torch.uint8)[:, None]
    zeros = torch.zeros(16, dtype=torch.int64)
    data = ImageDataset(pixels, zeros, torch.arange(16), ("benign",))
    purifier = medfedpure.create(
        "purifier",
        "ddpm",
        model=SMALL,
        t_min=10,
        t_max=60,
        training={"steps": 250, "batch_size": 16, "learning_rate": 5e-3},
    ).fit(data)
    noisy = (data.images + 0.1 * torch.randn(data.images.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
    with torch.no_grad():
        cleaned = purifier(noisy, 1.0).images
    before, after = ((image - data.images).square().mean() for image in (noisy, cleaned))
    assert after < 0.7 * before, f"mean squared error {before:.4f} -> {after:.4f}"


def test_any_image_size_works():
    purifier = fitted()
    odd = torch.rand(2, 1, 19, 23, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert purifier(odd, 1.0).images.shape == odd.shape


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="t_min <= t_max"):
        medfedpure.create("purifier", "ddpm", t_min=200, t_max=100)
    with pytest.raises(ConfigError, match="multiples of 8"):
        medfedpure.create("purifier", "ddpm", model={"widths": (10,)})
    with pytest.raises(ConfigError, match=r"num_inference_steps is now sampling\.num_inference_steps; schedule is now"):
        medfedpure.create("purifier", "ddpm", num_inference_steps=3, schedule="cosine")
    with pytest.raises(ConfigError, match=r"sampler: unknown key"):
        medfedpure.create("purifier", "diffpure", sampler="ddim")
    with pytest.raises(InputError, match="fitted on 1 channels"):
        fitted()(torch.rand(1, 3, 16, 16))


def test_the_cheapest_depth_within_the_margins_is_chosen():
    rows = [
        TuningRow(20, 1, 0.90, 0.40),
        TuningRow(60, 2, 0.89, 0.72),
        TuningRow(80, 2, 0.89, 0.79),
        TuningRow(80, 5, 0.89, 0.80),
        TuningRow(140, 5, 0.80, 0.88),
    ]
    assert choose_depth(rows, 0.88, 0.02, 0.1) == Depth(60, 80, 2), "140 costs too much on benign images"
    assert choose_depth(rows, 0.70, 0.0, 0.0) == Depth(140, 140, 5)
    with pytest.raises(InputError, match=r"the best keeps 0\.900"):
        choose_depth(rows, 0.98, 0.02, 0.1)
    mixed = [TuningRow(20, 2, 0.9, 0.5), TuningRow(20, 5, 0.9, 0.8), TuningRow(80, 2, 0.9, 0.8)]
    assert choose_depth(mixed, 0.88, 0.02, 0.1) == Depth(80, 80, 2), "in two steps, 20 restores too little"
    one = [TuningRow(40, 1, 0.9, 0.75), TuningRow(80, 2, 0.9, 0.8)]
    assert choose_depth(one, 0.88, 0.02, 0.1, adaptive=True) == Depth(40, 80, 2), "at half the depth it gets one step"


def test_tuning_is_saved(tmp_path):
    data = tiny_dataset(24, size=16)
    classifier = tiny_classifier(16, 1)
    purifier = fitted(t_min=10, t_max=100)
    rows = purifier.tune(data, Flip(), classifier=classifier, depths=(20, 50), steps=(1, 2), clean_drop=1.0)
    assert [(row.depth, row.steps) for row in rows] == [(20, 1), (20, 2), (50, 1), (50, 2)]
    assert all(0 <= row.restored <= 1 for row in rows)
    purifier.save(tmp_path / "ddpm")
    loaded = medfedpure.Purifier.load(tmp_path / "ddpm")
    assert loaded.depth == purifier.depth
    with torch.no_grad():
        assert float(loaded(images(1), 1.0).timestep) == purifier.depth.t_max
    for wrong, text in (
        ({"depths": (200,)}, "above 0 and up to 100 are wanted"),
        ({"steps": (0,)}, "steps >= 1"),
        ({"margin": 0.3}, "margin <= mild_margin"),
    ):
        with pytest.raises(InputError, match=text):
            purifier.tune(data, Flip(), classifier=classifier, **{"depths": (20,), **wrong})
    with pytest.raises(InputError, match="tune chooses few steps"):
        fitted(sampling={"sampler": "ddpm"}).tune(data, Flip(), classifier=classifier)


FLAT = {
    "schedule": "cosine",
    "beta_start": 2e-4,
    "beta_end": 0.03,
    "timesteps": 500,
    "keep_low": 1.0,
    "timestep_sampling": "log_snr",
    "loss_weighting": "min_snr",
    "save_memory": False,
}
"""As format 1 wrote it, nothing at its default."""


@pytest.mark.parametrize(
    ("name", "own", "sampling"),
    [
        (
            "ddpm",
            {"t_max": 120.0, "sampler": "ddim", "num_inference_steps": 3, "adaptive_steps": True},
            {"keep_low": 1.0, "sampler": "ddim", "num_inference_steps": 3, "adaptive_steps": True},
        ),
        ("diffpure", {"timestep": 40.0}, {"keep_low": 1.0}),
    ],
)
def test_configurations_of_format_1_become_sections(name, own, sampling):
    cls = medfedpure.registry().load("purifier", name)
    found = cls.Config.parse(cls.upgrade({**FLAT, **own}, 1)).model_dump()
    assert found["schedule"] == {"kind": "cosine", "beta_start": 2e-4, "beta_end": 0.03, "timesteps": 500}
    assert found["objective"] == {"timestep_sampling": "log_snr", "weighting": "min_snr"}
    assert found["sampling"] == sampling
    assert found["save_memory"] is False
    assert all(found[key] == value for key, value in own.items() if key in found), "what has no section stays"
    assert cls.Config.parse(cls.upgrade(found, 2)).model_dump() == found, "the present format is taken as it is"


class Flip(medfedpure.Attack):
    """Inverts a little."""

    def generate(self, view, images, labels, *, mask=None, targets=None, streams):
        return (images + 0.01 * (0.5 - images).sign()).clamp(0, 1)


def test_a_long_fit_goes_on_and_shows_samples(tmp_path):
    data = tiny_dataset(12, size=16)
    options = {
        "model": SMALL,
        "t_min": 20,
        "t_max": 60,
        "training": {"steps": 6, "batch_size": 4, "checks": 3, "ema": 0.9},
    }
    folder = tmp_path / "new" / "progress"
    plain = medfedpure.create("purifier", "ddpm", **options).fit(data)
    kept = medfedpure.create("purifier", "ddpm", **options).fit(data, context=FitContext(checkpoint=folder))
    for key, value in kept.network.state_dict().items():
        assert torch.equal(value, plain.network.state_dict()[key]), f"looking at samples changed {key}"
    with Image.open(tmp_path / "new" / "progress_samples.png") as picture:
        assert picture.size == (8 * 16, 3 * 16)
        top = (
            torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(3, 16, 8, 16)[0].permute(1, 0, 2)
        )
    assert torch.equal(top, data.pixels[:8, 0])
