"""Cost of purification beside diffusers' own loops: `python -m benchmarks.diffusion_speed [--device cuda]`.

Ratios of interleaved pairs in one run, medians: a mixed-depth batch against diffusers' scheduler image by
image, against the sum of each image's own evaluations at the batched rate, and a batch of equal depth
against diffusers' batched loop; and what the exact gradient keeps in memory at 2 and at 20 steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import Tensor

import medfedpure
from medfedpure.core.streams import Streams

BATCH, SIDE, STEPS, DEEPEST = 16, 64, 5, 140
STRIDE = 20
PAIRS = 9


def seconds(work: Callable[[], object], device: str) -> float:
    """Of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(one: Callable[[], object], other: Callable[[], object], device: str) -> float:
    """Median over interleaved pairs of time(one) / time(other)."""
    for work in (one, other):
        work()
    return statistics.median(seconds(one, device) / seconds(other, device) for _ in range(PAIRS))


def diffusers_loop(network: torch.nn.Module, scheduler: DDIMScheduler, images: Tensor, depth: int) -> Tensor:
    """Noise to an integer depth, and back with diffusers' DDIM scheduler at strides of 20."""
    noise = torch.randn_like(images)
    current = scheduler.add_noise(images * 2 - 1, noise, torch.full((len(images),), depth, device=images.device))
    for now in range(depth, 0, -STRIDE):
        predicted = network(current, torch.full((len(images),), float(now), device=images.device))
        current = scheduler.step(predicted, now, current, eta=0.0).prev_sample
    return ((current + 1) / 2).clamp(0, 1)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    device = parser.parse_args().device
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, set_alpha_to_one=True)
    scheduler.set_timesteps(1000 // STRIDE)
    sampling = {"sampler": "ddim", "num_inference_steps": DEEPEST // STRIDE, "adaptive_steps": True}
    purifier = medfedpure.create("purifier", "ddpm", t_min=0, t_max=DEEPEST, sampling=sampling)
    purifier.adopt(purifier.make_network((1, SIDE, SIDE), seed=0), (1, SIDE, SIDE)).to(device)
    network = purifier.network
    images = torch.rand(BATCH, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    depths = torch.tensor([STRIDE * (1 + place % (DEEPEST // STRIDE)) for place in range(BATCH)])
    strength = (depths / DEEPEST).to(device)
    streams = Streams.for_batch(0, BATCH)
    evaluations = int((depths // STRIDE).sum())

    def mixed() -> Tensor:
        return purifier.purify(images, strength, streams=streams).images  # type: ignore[no-any-return]

    def one_by_one() -> list[Tensor]:
        return [diffusers_loop(network, scheduler, images[k][None], int(depths[k])) for k in range(BATCH)]

    def equal() -> Tensor:
        return purifier.purify(images, torch.ones_like(strength), streams=streams).images  # type: ignore[no-any-return]

    def batched() -> Tensor:
        return diffusers_loop(network, scheduler, images, DEEPEST)

    with torch.no_grad():
        found = int(purifier.purify(images, strength, streams=streams).nfe.sum())
        assert found == evaluations, f"{found} evaluations, not {evaluations}"
        alone = ratio(one_by_one, mixed, device)
        whole = ratio(batched, equal, device)
        per_evaluation = BATCH * DEEPEST // STRIDE
        sums = ratio(mixed, equal, device) * per_evaluation / evaluations
    print(f"batch of {BATCH}, {SIDE} px, {device}, medians of {PAIRS} interleaved pairs")
    print(f"- mixed depths, {evaluations} evaluations: {alone:.2f}x as fast as diffusers image by image")
    print(f"- mixed depths: {sums:.2f} of the sum of each image's evaluations at the rate of the full batch")
    print(f"- equal depth: {whole:.2f}x as fast as diffusers' batched loop")
    print(f"- gradient through 20 steps keeps {kept(20, device) / kept(2, device):.2f}x the memory of 2 steps")


def kept(steps: int, device: str) -> float:
    """Most bytes held while a gradient through the purifier is computed, beyond those before."""
    sampling = {"sampler": "ddim", "num_inference_steps": steps}
    purifier = medfedpure.create("purifier", "ddpm", t_min=100, t_max=100, sampling=sampling)
    purifier.adopt(purifier.make_network((1, SIDE, SIDE), seed=0), (1, SIDE, SIDE)).to(device)
    images = torch.rand(BATCH, 1, SIDE, SIDE, device=device).requires_grad_(True)

    def gradient() -> None:
        cleaned = purifier.purify(images, images.new_ones(BATCH), streams=Streams.for_batch(0, BATCH)).images
        torch.autograd.grad(cleaned.sum(), images)

    if device == "cuda":
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


if __name__ == "__main__":
    main()
