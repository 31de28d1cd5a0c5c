"""The reverse process: diffusers' steps at integers, one dense batch for mixed depths, exact gradients."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

import medfedpure
from medfedpure.core.streams import Streams
from medfedpure.models.diffusion import Diffusion, low_frequencies, sample_timesteps

SMALL = {"widths": (8, 16), "unshuffle": 2}


def diffusion():
    return Diffusion("linear", 1e-4, 0.02, 1000)


def fitted(name="ddpm", **options):
    purifier = medfedpure.create("purifier", name, model=SMALL, **options)
    return purifier.adopt(purifier.make_network((1, 16, 16), seed=0), (1, 16, 16))


def normals(count, seed, side=16):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def images(count=5):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def column(value, count):
    return torch.full((count,), float(value))


@pytest.mark.parametrize("stride", [1, 10, 20])
def test_ancestral_steps_equal_ddpm_of_diffusers(stride, monkeypatch):
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=True, variance_type="fixed_small")
    scheduler.set_timesteps(1000 // stride)
    # In float32 diffusers' 1 - a_t / a_prev has an error of 6e-5 relative: the scheduler's, not the formula's.
    scheduler.alphas_cumprod, scheduler.one = scheduler.alphas_cumprod.double(), scheduler.one.double()
    noisy, predicted, noise = normals(3, 1), normals(3, 2), normals(3, 3)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)
    ours = diffusion()
    for now in (980, 140, 40):
        theirs = scheduler.step(predicted, now, noisy).prev_sample
        clean = ours.predict_clean(noisy, predicted, column(now, 3))
        found = ours.ddpm_step(noisy, clean, column(now, 3), column(now - stride, 3), noise)
        assert float((found - theirs).abs().max()) <= 1e-6, f"{now} to {now - stride}"


def test_the_last_steps_equal_diffusers():
    noisy, predicted = normals(3, 1), normals(3, 2)
    ours = diffusion()
    ddim = DDIMScheduler(beta_start=1e-4, beta_end=0.02, set_alpha_to_one=True, clip_sample=True)
    ddim.set_timesteps(50)
    theirs = ddim.step(predicted, 10, noisy, eta=0.0).prev_sample
    clean = ours.predict_clean(noisy, predicted, column(10, 3))
    assert float((ours.ddim_step(clean, predicted, column(0, 3)) - theirs).abs().max()) <= 1e-6
    drawn = ours.ddpm_step(noisy, clean, column(10, 3), column(0, 3), normals(3, 3))
    assert torch.allclose(drawn, clean, atol=1e-6), "nothing is random in the last step"


def test_log_snr_and_its_inverse():
    ours, timestep = diffusion(), torch.tensor([1.0, 20.0, 37.4, 500.0, 998.9])
    assert torch.allclose(ours.at_log_snr(ours.log_snr(timestep)), timestep.double(), atol=1e-6)
    share = torch.linspace(0, 0.999, 200)
    uniform = sample_timesteps(ours, share, 140.0, "uniform")
    by_level = sample_timesteps(ours, share, 140.0, "log_snr")
    for found in (uniform, by_level):
        assert 0 < float(found.min()) <= float(found.max()) <= 140.0 + 1e-3
    assert by_level.median() < 0.5 * uniform.median(), "uniform in log-SNR dwells on shallow depths"


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "one_step"])
def test_mixed_depths_are_each_image_alone(sampler):
    sampling = {"sampler": sampler, "num_inference_steps": 4, "adaptive_steps": True}
    purifier = fitted(t_min=0, t_max=12, sampling=sampling)
    strength, streams = torch.tensor([0.0, 0.3, 1.0, 0.55, 0.1]), Streams(7, torch.tensor([4, 8, 15, 16, 23]))
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        together = purifier(images(), strength, streams=streams)
        shuffled = purifier(images()[order], strength[order], streams=streams.select(order))
        for place in range(5):
            index = torch.tensor([place])
            alone = purifier(images()[index], strength[index], streams=streams.select(index))
            assert torch.allclose(alone.images[0], together.images[place], atol=1e-5)
            assert int(alone.nfe) == int(together.nfe[place])
    assert torch.allclose(shuffled.images, together.images[order], atol=1e-5)
    assert torch.equal(together.images[0], images()[0]), "depth 0 is the identity"
    wanted = {"ddim": [0, 2, 4, 3, 1], "ddpm": [0, 4, 12, 7, 2], "one_step": [0, 1, 1, 1, 1]}
    assert together.nfe.tolist() == wanted[sampler]


class Rows(nn.Module):
    """Counts the rows that a network is asked for."""

    def __init__(self, network):
        super().__init__()
        self.network, self.batches = network, []

    def forward(self, noisy, timestep):
        self.batches.append(len(noisy))
        return self.network(noisy, timestep)


def test_the_cost_is_the_sum_of_each_images_own_evaluations():
    purifier = fitted(t_min=0, t_max=100, sampling={"num_inference_steps": 5, "adaptive_steps": True})
    purifier.network = Rows(purifier.network)
    with torch.no_grad():
        found = purifier(images(), torch.tensor([0.2, 1.0, 0.0, 0.6, 1.0]))
    assert found.nfe.tolist() == [1, 5, 0, 3, 5]
    assert purifier.network.batches == [4, 3, 3, 2, 2], "one dense batch a step, rows leave as they finish"


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_saving_memory_changes_no_gradient(sampler):
    strength = torch.tensor([0.2, 0.9, 0.5])
    gradients = []
    for saved in (True, False):
        sampling = {"sampler": sampler, "num_inference_steps": 6}
        purifier = fitted(t_min=5, t_max=20, sampling=sampling, save_memory=saved).double()
        inputs, depth = images(3).double().requires_grad_(True), strength.double().requires_grad_(True)
        cleaned = purifier(inputs, depth, streams=Streams.for_batch(3, 3)).images
        gradients.append(torch.autograd.grad(cleaned.square().sum(), (inputs, depth)))
    for checkpointed, direct in zip(*gradients, strict=True):
        assert torch.allclose(checkpointed, direct, atol=1e-10)
        assert bool(checkpointed.abs().sum() > 0)


def kept_for_backward(steps, **options):
    """Bytes of tensors that the forward pass keeps."""
    purifier = fitted(t_min=20, t_max=20, sampling={"num_inference_steps": steps}, **options)
    inputs, held = images(4).requires_grad_(True), {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        purifier(inputs, 1.0)
    return sum(held.values())


def test_memory_does_not_grow_with_the_steps():
    one = fitted(t_min=20, t_max=20, sampling={"num_inference_steps": 1})
    held = []
    noisy = images(4).requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: held.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        one.network(noisy, torch.ones(4))
    of_one_evaluation = sum(held)
    growth = (kept_for_backward(20) - kept_for_backward(2)) / 18
    assert growth < 0.05 * of_one_evaluation, f"{growth:.0f} bytes a step, one evaluation holds {of_one_evaluation}"
    assert kept_for_backward(4, save_memory=False) > kept_for_backward(4) + 2 * of_one_evaluation


def test_low_frequencies_are_kept_where_asked():
    with torch.no_grad():
        plain, guided = (fitted(sampling={"keep_low": sigma})(images(3), 1.0).images for sigma in (0.0, 3.0))
    gaps = [(low_frequencies(cleaned - images(3), 3.0)).square().mean() for cleaned in (plain, guided)]
    assert gaps[1] < 0.5 * gaps[0], f"low frequencies moved by {gaps[0]:.2e} without and {gaps[1]:.2e} with guidance"


def test_low_frequencies_of_a_constant_are_the_constant():
    flat = torch.full((1, 2, 9, 7), 0.3)
    assert torch.allclose(low_frequencies(flat, 2.0), flat, atol=1e-6)
    spike = torch.zeros(1, 1, 21, 21)
    spike[0, 0, 10, 10] = 1
    blurred = low_frequencies(spike, 2.0)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(blurred[0, 0, 10, 10] / blurred[0, 0, 10, 12]) == pytest.approx(2.71828**0.5, rel=1e-3)


def test_diffpure_is_ancestral_sampling_at_one_depth():
    anchor = fitted("diffpure", timestep=6)
    adaptive = fitted(t_min=6, t_max=6, sampling={"sampler": "ddpm"})
    with torch.no_grad():
        one, other = (part(images(3), torch.tensor([0.0, 0.5, 1.0])) for part in (anchor, adaptive))
    assert torch.equal(one.images, other.images)
    assert one.nfe.tolist() == [6, 6, 6]


@pytest.mark.parametrize("plugin", ["ddpm", "diffpure", "class_ddpm", "one_step"])
@pytest.mark.parametrize(("side", "unshuffle"), [(64, 2), (128, 4)])
def test_an_open_size_follows_the_images_and_is_kept(plugin, side, unshuffle, tmp_path):
    purifier = medfedpure.create("purifier", plugin)
    assert purifier.config.model.unshuffle is None
    network = purifier.make_network((1, side, side), seed=0)
    assert network.unshuffle == unshuffle
    purifier.adopt(network, (1, side, side))
    assert purifier.config.model.unshuffle == unshuffle
    assert purifier.config.model.widths is not None
    if plugin != "one_step":
        purifier.save(tmp_path / "kept")
        again = medfedpure.core.purifier.Purifier.load(tmp_path / "kept")
        assert again.config == purifier.config
        assert again.network.unshuffle == unshuffle


def test_a_given_size_stays_and_attention_is_learned_with():
    purifier = medfedpure.create("purifier", "ddpm", model={"widths": (8, 16), "attention": True})
    network = purifier.make_network((1, 128, 128), seed=0)
    assert network.unshuffle == 4
    assert network.widest == 16
    plain = medfedpure.create("purifier", "ddpm", model={"widths": (8, 16)}).make_network((1, 128, 128), seed=0)
    attending = [name for name, module in network.named_modules() if type(module).__name__ == "Attention"]
    assert attending
    assert not [module for module in plain.modules() if type(module).__name__ == "Attention"]
    images, at = torch.rand(1, 1, 16, 16), torch.ones(1)
    assert network(images, at).shape == images.shape
