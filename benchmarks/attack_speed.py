"""Cost of our PGD beside a bare torch loop and ART's: `python -m benchmarks.attack_speed`.

Ratios of interleaved pairs in one run, medians, at batch 32 and equal steps, with a small CNN and a ResNet-18 with
its usual stem; and once more where most images fall early, with the early stop that is the default. ART's PGD runs
as ART is used, on a classifier of its own, and through our adapter, which spares it the gradients of the weights. On
phantoms, classifiers trained here for a few steps; success rates of ours and ART's on 500 of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

import medfedpure
from medfedpure.core.settings import TrainingConfig
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

PAIRS, BATCH, STEPS, EPS, STEP = 7, 32, 10, 0.03, 0.0075
CONFIG = {"eps": EPS, "step": STEP, "steps": STEPS}
EARLY = {"eps": 0.1, "step": 0.025, "steps": 20}


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Median over interleaved pairs of time(one) / time(other)."""
    for work in (one, other):
        work()
    return statistics.median(seconds(one) / seconds(other) for _ in range(PAIRS))


def bare_loop(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """What nobody can do with less: gradient, sign, clamp; and the verdict of the result."""
    low, high = images - EPS, images + EPS
    current = images
    for _ in range(STEPS):
        leaf = current.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
        current = torch.minimum(torch.maximum(current + STEP * gradient.sign(), low), high).clamp(0, 1)
    with torch.no_grad():
        model(current)
    return current


def as_art_comes(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """ART's attack on ART's estimator."""
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), nb_classes=2, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        estimator, eps=EPS, eps_step=STEP, max_iter=STEPS, batch_size=BATCH, verbose=False
    )
    pixels, truth = images.numpy(), labels.numpy()
    return lambda: attack.generate(pixels, truth)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    size = parser.parse_args().size
    data = medfedpure.create("dataset", "phantom", images=1200, image_size=size, seed=0).read()
    tested = data.select(torch.arange(500))
    for name, steps, options in (("small_cnn", 200, {}), ("resnet18", 40, {"stem": "large"})):
        architecture = medfedpure.create("classifier", name, **options)
        model = architecture.create_model(in_channels=1, num_classes=2, image_size=size)
        budget = TrainingConfig(steps=steps, batch_size=32, learning_rate=2e-3, precision="bfloat16")
        train(model, ClassificationTask(), data.select(torch.arange(500, 1200)), budget, seed=0)
        model.eval()
        report(name, model, tested.images, tested.labels)


def report(name: str, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """All figures of one classifier."""
    ours = medfedpure.create("attack", "pgd_eot", **CONFIG, early_stop=False)
    theirs = medfedpure.create("attack", "pgd", **CONFIG)
    few, own = images[:BATCH], labels[:BATCH]
    print(f"{name}, {images.shape[-1]} px, batch {BATCH}, {STEPS} steps, medians of {PAIRS} interleaved pairs")
    overhead = ratio(lambda: ours(model, few, own), lambda: bare_loop(model, few, own))
    print(f"- pgd_eot takes {overhead:.3f}x the time of a bare loop")
    slower = ratio(as_art_comes(model, few, own), lambda: ours(model, few, own))
    print(f"- ART's PGD takes {slower:.2f}x that of pgd_eot")
    adapted = ratio(lambda: theirs(model, few, own), lambda: ours(model, few, own))
    print(f"- ART's PGD through our adapter takes {adapted:.2f}x")
    stopping, whole = (medfedpure.create("attack", plugin, **EARLY) for plugin in ("pgd_eot", "pgd"))
    gain = ratio(lambda: whole(model, few, own), lambda: stopping(model, few, own))
    fallen = float(stopping(model, few, own).success.double().mean())
    print(f"- {EARLY}: ART's through our adapter takes {gain:.2f}x, where {fallen:.0%} of the images fall and leave")
    rates = [float(attack(model, images, labels).success.double().mean()) for attack in (ours, theirs)]
    print(f"- success on {len(images)} phantoms: pgd_eot {rates[0]:.1%}, ART's PGD {rates[1]:.1%}", flush=True)


if __name__ == "__main__":
    main()
