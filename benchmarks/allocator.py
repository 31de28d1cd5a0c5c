"""What kept memory saves on the CPU: `python -m benchmarks.allocator`.

Ratios of interleaved pairs of fresh processes, one as it comes and one after `medfedpure.keep_freed_memory()`, medians:
one step of training, and the gradient with respect to the images, of an EfficientNet-Lite0 at 128 px, a ResNet-18
with a medium stem at 64 px and the small CNN at 64 px, 48 images at once, on one thread. One below 1.2 for the
EfficientNet's gradient fails.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import medfedpure

PAIRS, REPEATS, BATCH, LEAST = 3, 4, 48, 1.2
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "EfficientNet-Lite0, 128 px": ("efficientnet_lite0", 128, {}),
    "ResNet-18, 64 px": ("resnet18", 64, {"stem": "medium"}),
    "small CNN, 64 px": ("small_cnn", 64, {}),
}


def seconds(work: Callable[[], object]) -> float:
    """Of one call, the third and later ones."""
    for _ in range(2):
        work()
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - start) / REPEATS


def measure(network: str) -> tuple[float, float]:
    """Seconds of a training step and of a gradient of the images, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, size, config = NETWORKS[network]
    made: Any = medfedpure.create("classifier", name, config)
    model: nn.Module = made.create_model(
        in_channels=1, num_classes=2, image_size=size, class_names=("no", "yes"), seed=0, weights=None
    )
    images, labels = torch.rand(BATCH, 1, size, size), torch.arange(BATCH) % 2

    def trained() -> None:
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()

    def attacked() -> None:
        leaf = images.clone().requires_grad_(True)
        torch.autograd.grad(functional.cross_entropy(model(leaf), labels), leaf)

    first = seconds(trained)
    model.eval().requires_grad_(False)
    return first, seconds(attacked)


def main() -> None:
    """Measure in processes of their own, and print."""
    if len(sys.argv) == 3:
        if sys.argv[2] == "kept" and not medfedpure.keep_freed_memory():
            raise SystemExit("nothing to compare: the allocator is not glibc's, or set by the environment already")
        print(*measure(sys.argv[1]))
        return
    for network in NETWORKS:
        ratios: list[list[float]] = [[], []]
        for _ in range(PAIRS):
            found = {}
            for how in ("as it comes", "kept"):
                command = [sys.executable, "-m", "benchmarks.allocator", network, how]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[how] = [float(word) for word in done.stdout.split()]
            for place, (slow, fast) in enumerate(zip(found["as it comes"], found["kept"], strict=True)):
                ratios[place].append(slow / fast)
        training, gradient = (statistics.median(values) for values in ratios)
        print(f"{network}: training {training:.2f} times as fast, gradient of the images {gradient:.2f}", flush=True)
        if network.startswith("EfficientNet") and gradient < LEAST:
            raise SystemExit(f"the gradient is only {gradient:.2f} times as fast; at least {LEAST} was promised")


if __name__ == "__main__":
    main()
