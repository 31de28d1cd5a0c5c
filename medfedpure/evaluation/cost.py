"""What an evaluation takes: told before it starts, and after it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Norm, ThreatView, without_parameter_gradients
from medfedpure.core.errors import MedFedPureError
from medfedpure.core.results import device_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.ladder import Preset, checks, rungs
from medfedpure.evaluation.views import exact_view, static_view

TIMED = 8
"""Images whose gradient is timed, after a first time that is not."""


@dataclass(frozen=True)
class Cost:
    """What attacks take at the most: less where images fall early or attacks are finished.

    Attributes:
        gradients: evaluations of the gradient of a whole defence for one image.
        seconds: that they take here.
    """

    gradients: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.gradients + other.gradients, self.seconds + other.seconds)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.gradients * times, self.seconds * times)

    def __str__(self) -> str:
        return (
            f"{self.gradients:,} gradient evaluations of whole defences, at most {in_words(self.seconds)} here: "
            "less where images fall early or attacks are finished"
        )


def foresee(
    chains: Iterable[DefendedClassifier],
    images: Tensor,
    preset: Preset,
    norm: Norm,
    eps: Sequence[float],
    attackers: Mapping[str, nn.Module],
    *,
    seed: int,
) -> Cost:
    """What an evaluation takes at the most; a few gradients of every defence are timed.

    Args:
        chains: the defences, calibrated.
        images: `(N, C, H, W)` in [0, 1], all that are attacked.
        preset: how hard the attackers try.
        norm: "linf" or "l2".
        eps: perturbation sizes, the first one that of the self-checks.
        attackers: other models by name, for transfer attacks.
        seed: of the noise.
    """
    cost, few = Cost(), min(preset.checked, len(images))
    for chain in chains:
        plan = [rung for size in eps for rung in rungs(chain, preset, norm, size, attackers)]
        each = sum(rung.gradients for rung in plan if rung.kind != "replayed")
        count = each * len(images) + few * sum(rung.gradients for rung in checks(chain, preset, norm, eps[0]))
        cost += Cost(count, count * seconds_per_gradient(chain, images, seed=seed))
    return cost


def seconds_per_gradient(chain: DefendedClassifier, images: Tensor, *, seed: int) -> float:
    """Wall-clock seconds that the gradient of a whole chain takes here, for each image and look.

    Of the bare classifier where the chain has no gradient of its own.

    Args:
        chain: ready to predict.
        images: `(N, C, H, W)` in [0, 1], on any device; a few are taken.
        seed: of the noise; the chain's own counter does not move.
    """
    some = images[:TIMED].to(device_of(chain))
    try:
        view: ThreatView = exact_view(chain)
    except MedFedPureError:
        view = static_view(chain)
    start = 0.0
    with chain.noise_sequence(seed), without_parameter_gradients(chain):
        for _ in range(2):
            start = time.perf_counter()
            leaf = some.clone().requires_grad_(True)
            logits = view(leaf)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf)
            if some.is_cuda:
                torch.cuda.synchronize(some.device)
    return (time.perf_counter() - start) / len(some)


def in_words(seconds: float) -> str:
    """A duration, roughly."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def peak_memory_mb(modules: Iterable[nn.Module]) -> float | None:
    """The most that was held at once: by tensors on the GPU, or on the CPU by this process since it started."""
    if any(device_of(module).type == "cuda" for module in modules):
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # not on this platform
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
