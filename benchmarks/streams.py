"""How fast noise is drawn: `python -m benchmarks.streams`.

For 64 images of 64 px, one thread, medians of interleaved runs: the reference backend beside what version 0.1 did (a
generator for each image, seeded with 32 bits), which may be faster by a tenth at most, and the device backend where it
draws. The exit status says whether the ratio holds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from medfedpure import Streams
from medfedpure.core.streams import derive_seed

IMAGES, SHAPE, ROUNDS = 64, (1, 64, 64), 200
LEAST = 0.9


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall clock of one call, device work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def drawing(backend: str, device: str) -> Callable[[], object]:
    """One draw as an attack or a purifier asks for it: new streams each time, so that keys are hashed anew."""
    like = torch.empty(0, device=device)
    return lambda: Streams.for_batch(0, IMAGES, backend).normal(SHAPE, stage="noise", like=like)


def as_before() -> torch.Tensor:
    """What version 0.1 did."""
    noise = torch.empty(IMAGES, *SHAPE)
    for image, row in enumerate(noise):
        generator = torch.Generator()
        generator.manual_seed(derive_seed(0, image, "noise", 0))
        torch.randn(SHAPE, generator=generator, out=row)
    return noise


def main() -> int:
    """Measure, print, and say whether the reference keeps its speed."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = "0.1"
    taken: dict[str, list[float]] = {before: [], "reference": [], "device": []}
    pair = {before: lambda: as_before().to(device), "reference": drawing("reference", device)}
    for calls in (pair, {"device": drawing("device", device)}):
        for _ in range(ROUNDS):
            for name, call in calls.items():
                taken[name].append(seconds(call, device))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    ratio = statistics.median(old / new for old, new in zip(taken[before], taken["reference"], strict=True))
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{IMAGES} images of {SHAPE}, {name}, one CPU thread, median of {ROUNDS} interleaved draws, ms:")
    for backend, median in medians.items():
        print(f"  {backend:<10} {1000 * median:.3f}")
    print(f"reference / 0.1 speed: {ratio:.3f} (at least {LEAST} is wanted)")
    return int(ratio < LEAST)


if __name__ == "__main__":
    sys.exit(main())
