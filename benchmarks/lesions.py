"""Does purification paint lesions away, or new ones in? `python -m benchmarks.lesions --out DIR`.

On phantoms, where every lesion's mask is known, and where the same image without scanner noise can be drawn.
All images are purified, at full strength. The contrast of a lesion is its mean minus that of a ring around
it; a healthy image gains a spurious region where a 3x3 window changes by more than half the median contrast.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

import medfedpure
from benchmarks.folds import InBfloat16, progress
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.streams import Streams
from medfedpure.figures.intervals import cluster_bootstrap

RING = 3
TRAINED = 2000
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {}),
    "ddpm, 3 DDIM steps": ("ddpm", {"sampling": {"sampler": "ddim", "num_inference_steps": 3}}),
    "ddpm, t* = 100": ("ddpm", {"t_max": 100}),
    "ddpm, t* = 60": ("ddpm", {"t_min": 60, "t_max": 60}),
    "ddpm, t* = 40": ("ddpm", {"t_min": 40, "t_max": 40}),
    "ddpm, low frequencies kept (1 px)": ("ddpm", {"sampling": {"keep_low": 1.0}}),
    "ddpm, low frequencies kept (2 px)": ("ddpm", {"sampling": {"keep_low": 2.0}}),
    "ddpm, low frequencies kept (4 px)": ("ddpm", {"sampling": {"keep_low": 4.0}}),
    "ddpm one step": ("ddpm", {"sampling": {"sampler": "one_step"}}),
    "diffpure t* = 100": ("diffpure", {"timestep": 100}),
    "diffpure t* = 150": ("diffpure", {"timestep": 150}),
    "median": ("median", {}),
}


def contrasts(images: Tensor, masks: Tensor) -> Tensor:
    """Mean of every lesion (connected region of a mask) minus that of the ring around it, `(L,)`, grey."""
    found = []
    for image, mask in zip(images.mean(1).double().numpy(), masks[:, 0].numpy(), strict=True):
        found += [float(image[inside].mean() - image[ring_of(inside, mask)].mean()) for inside in lesions(mask)]
    return torch.tensor(found, dtype=torch.float64)


def lesions(mask: Any) -> list[Any]:
    """The connected regions of a mask `(H, W)` that have a ring."""
    regions, count = ndimage.label(mask)
    found = [regions == number for number in range(1, count + 1)]
    return [inside for inside in found if ring_of(inside, mask).any()]


def ring_of(inside: Any, mask: Any) -> Any:
    """Pixels around a lesion that belong to none."""
    return ndimage.binary_dilation(inside, iterations=RING + 1) & ~ndimage.binary_dilation(mask)


def owners(masks: Tensor) -> Tensor:
    """Of every lesion, the image that it lies in, `(L,)`."""
    counts = [len(lesions(mask)) for mask in masks[:, 0].numpy()]
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def spurious(before: Tensor, after: Tensor, bound: float) -> Tensor:
    """`(N,)` bool: some 3x3 window changes by more than `bound` in the mean."""
    change = functional.avg_pool2d((after - before).mean(1, keepdim=True), 3, stride=1)
    return change.abs().flatten(1).amax(1) > bound


def purified(purifier: Purifier, data: ImageDataset, seed: int) -> Tensor:
    """Every image at full strength."""
    parts = []
    with torch.no_grad():
        for batch in data.batches(64):
            parts.append(purifier(batch.images, 1.0, streams=Streams(seed, batch.ids)).images)
    return torch.cat(parts)


def row(name: str, after: Tensor, data: ImageDataset, truth: ImageDataset) -> str:
    """One line of the table."""
    ill, well = data.labels == 1, data.labels == 0
    assert data.masks is not None
    before, real = contrasts(data.images[ill], data.masks[ill]), contrasts(truth.images[ill], data.masks[ill])
    now = contrasts(after[ill], data.masks[ill])
    change, error = (now - before).abs() / before.abs(), (now - real).abs() / real.abs()
    kept = (now * before.sign() >= 0.5 * before.abs()).double()
    low, high = cluster_bootstrap(lambda drawn: float(kept[drawn].mean()), owners(data.masks[ill]))
    gained = spurious(data.images[well], after[well], 0.5 * float(before.abs().median()))
    return (
        f"| {name} | {change.mean():.1%} | {change.median():.1%} | {error.median():.1%} | {kept.mean():.1%} "
        f"({low:.1%} to {high:.1%}) | {float(gained.double().mean()):.1%} |"
    )


def main() -> None:
    """Train one diffusion model, purify with every arm, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the diffusion model")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=600, help="phantoms that are purified")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the diffusion model")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    say = progress()
    total = TRAINED + given.images
    options = {"images": total, "image_size": given.size, "seed": given.seed}
    everything = medfedpure.create("dataset", "phantom", **options).read()
    noiseless = medfedpure.create("dataset", "phantom", noise=0.0, **options).read()
    place = torch.arange(TRAINED, total)
    data, truth = everything.select(place), noiseless.select(place)
    say(f"{given.images} phantoms of {given.size} px")
    training = {"steps": given.steps, "batch_size": 32, "learning_rate": 2e-3, "ema": 0.995, "precision": "bfloat16"}
    fitted: Any = medfedpure.create("purifier", "ddpm", t_max=150, training=training)
    checkpoint = FitContext(checkpoint=given.out / "checkpoint")
    fitted.fit(everything.select(torch.arange(TRAINED)), context=checkpoint, seed=given.seed)
    heads = (
        "contrast changes by, mean | median | contrast is off by, median | lesions kept (95 %) | healthy with a spot"
    )
    print(f"| purifier | {heads} |\n|---|---|---|---|---|---|")
    print(row("none", data.images, data, truth), flush=True)
    for name, (plugin, chosen) in ARMS.items():
        purifier: Any = medfedpure.create("purifier", plugin, **chosen)
        if hasattr(purifier, "adopt"):
            network = InBfloat16(fitted.network) if plugin == "diffpure" else fitted.network
            purifier.adopt(network, data.image_shape)
        print(row(name, purified(purifier, data, given.seed), data, truth), flush=True)
    assert data.masks is not None
    sizes = [int(one.sum()) for mask in data.masks[data.labels == 1, 0].numpy() for one in lesions(mask)]
    print(
        f"\n{given.images} phantoms, {given.size} px, {len(sizes)} lesions of {min(sizes)} "
        f"to {max(sizes)} pixels; all purified, strength 1. Changes: |contrast after - before| / |before| of a lesion; "
        "off: the same against the image without scanner noise; kept: at least half its contrast; intervals: bootstrap "
        "over images; diffpure computes in bfloat16; a spot: some 3x3 window of a healthy image changes by more than "
        "half the median contrast."
    )


if __name__ == "__main__":
    main()
