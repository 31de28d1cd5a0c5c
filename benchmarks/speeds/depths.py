"""What mixed depths save, beside diffusers' own loops; and a chain at 5 % attacked traffic beside `diffpure`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import medfedpure
from benchmarks.speeds.made import SHARE, classifier, flag, gated, phantoms, purifier, traffic, ways
from benchmarks.speeds.timing import Setting, in_turns, ratio
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier

STEPS, DEEPEST, STRIDE = 7, 140, 20
ATTACKED = 0.05
"""Of the traffic."""


def mixed(setting: Setting) -> dict[str, Any]:
    """A batch of depths from 20 to 140 against diffusers image by image, and one of equal depth against its batches."""
    size, count, device = setting.sizes[0], setting.of(16, 64, 7), setting.device
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, set_alpha_to_one=True)
    scheduler.set_timesteps(1000 // STRIDE)
    sampling = {"sampler": "ddim", "num_inference_steps": STEPS, "adaptive_steps": True}
    cleaner = purifier(size, device, t_min=0, t_max=DEEPEST, sampling=sampling)
    images = phantoms(count, size, seed=1).images.to(device)
    depths = torch.tensor([STRIDE * (1 + place % STEPS) for place in range(count)])
    strength, streams = (depths / DEEPEST).to(device), Streams.for_batch(0, count)
    everything = torch.ones_like(strength)

    def theirs(some: Tensor, depth: int) -> Tensor:
        return _diffusers_loop(cleaner.network, scheduler, some, depth)

    works = {
        "mixed": lambda: cleaner.purify(images, strength, streams=streams),
        "one by one": lambda: [theirs(images[k][None], int(depths[k])) for k in range(count)],
        "equal": lambda: cleaner.purify(images, everything, streams=streams),
        "batched": lambda: theirs(images, DEEPEST),
    }
    with torch.no_grad():
        evaluations = int(cleaner.purify(images, strength, streams=streams).nfe.sum())
        found = in_turns(works, setting, 5)
    wanted = int((depths // STRIDE).sum())
    assert evaluations == wanted, f"{evaluations} evaluations, not {wanted}"
    of_equal = count * STEPS / evaluations
    return {
        "size": size,
        "images": count,
        "evaluations": evaluations,
        "image_by_image_to_mixed": ratio(found["one by one"], found["mixed"]),
        "mixed_to_sum": ratio([of_equal * taken for taken in found["mixed"]], found["equal"]),
        "batched_to_equal": ratio(found["batched"], found["equal"]),
        "memory_of_20_steps_to_2": round(_kept(20, setting) / _kept(2, setting), 4),
    }


def _diffusers_loop(network: nn.Module, scheduler: DDIMScheduler, images: Tensor, depth: int) -> Tensor:
    """Noise to an integer depth, and back with diffusers' DDIM scheduler at strides of 20."""
    noise = torch.randn_like(images)
    current = scheduler.add_noise(images * 2 - 1, noise, torch.full((len(images),), depth, device=images.device))
    for now in range(depth, 0, -STRIDE):
        predicted = network(current, torch.full((len(images),), float(now), device=images.device))
        current = scheduler.step(predicted, now, current, eta=0.0).prev_sample
    return ((current + 1) / 2).clamp(0, 1)


def _kept(steps: int, setting: Setting) -> float:
    """Most bytes held while a gradient through the purifier is computed, beyond those before."""
    size, count = setting.sizes[0], setting.of(8, 16, 2)
    sampling = {"sampler": "ddim", "num_inference_steps": steps}
    cleaner = purifier(size, setting.device, t_min=100, t_max=100, sampling=sampling)
    images = phantoms(count, size, seed=1).images.to(setting.device).requires_grad_(True)

    def gradient() -> None:
        cleaned = cleaner.purify(images, images.new_ones(count), streams=Streams.for_batch(0, count)).images
        torch.autograd.grad(cleaned.sum(), images)

    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient()
        return float(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        gradient()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return float(most)


def attacked_traffic(setting: Setting) -> dict[str, Any]:
    """The default chain that flags as many as are attacked, and a twentieth, beside `diffpure` for every image."""
    size, count, device = setting.sizes[0], setting.of(40, 640, 20), setting.device
    images, fit = traffic(count, 30, size, 1, device)
    attacked = round(ATTACKED * count)
    moved = medfedpure.create("attack", "pgd_eot", eps=8 / 255, step=2 / 255, steps=7, early_stop=False)
    model = classifier("ResNet-18", size, device)
    some = images[:attacked]
    images = torch.cat(
        (moved(model, some, torch.zeros(attacked, dtype=torch.int64, device=device)).images, images[attacked:])
    )
    network = purifier(size, device).network
    all_of_it = purifier(size, device, "diffpure", network)
    few = images[: max(count // 10, 1)]
    rows = []
    for way in ways(setting.device):
        everything = DefendedClassifier(model, purifier=all_of_it, policy="purify_all").accelerate(way)
        cleaner = purifier(size, device, "ddpm", network)
        chain = gated(model, cleaner, "compose", {}, fit, way)
        wanted = attacked + round(SHARE * (count - attacked))
        flag(chain, images, wanted, 64)
        works = {
            # On a tenth of the images, ten times: an image costs the same, and it takes minutes.
            "all": lambda everything=everything: everything.predict(few, seed=0),
            "chain": lambda chain=chain: chain.predict(images, seed=0),
        }
        found = in_turns(works, setting, 2)
        whole = [taken * count / len(few) for taken in found["all"]]
        flagged = int(chain.predict(images, seed=0).flagged.sum())
        rows.append({"way": way, "flagged": flagged / count, "all_to_chain": ratio(whole, found["chain"])})
    nfe = everything.predict(few[:1], seed=0).trace.nfe
    assert nfe is not None
    return {"size": size, "images": count, "attacked": attacked / count, "evaluations": int(nfe[0]), "rows": rows}
