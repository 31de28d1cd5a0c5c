"""Our APGD and FAB beside the code of their authors: `python -m benchmarks.suite_strength`.

It wants pyautoattack 0.2.0 (`pip install --no-deps pyautoattack==0.2.0`), best in an environment that may be thrown
away, because that package seeds global generators. Printed are images of 200 that are still read correctly, ours /
theirs; about two minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

import medfedpure
from medfedpure.testing import tiny_classifier, tiny_dataset

NORMS = {"linf": "Linf", "l2": "L2"}
RADII = {2: (0.07, 0.8), 3: (0.06, 0.8), 6: (0.04, 0.5)}
"""By the number of classes: eps in linf and in l2."""


def phantoms() -> tuple[nn.Module, Tensor, Tensor]:
    """Two classes: a small classifier after 150 adversarial steps, and images that it has not seen."""
    seen, data, model = tiny_dataset(160, seed=2), tiny_dataset(200, seed=5), tiny_classifier()
    model.train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    attack = medfedpure.create("attack", "pgd_eot", norm="linf", eps=0.05, step=0.025, steps=4, early_stop=False)
    for step in range(150):
        batch = seen.batch(torch.arange(step * 16, step * 16 + 16) % len(seen))
        images = attack(model.eval(), batch.images, batch.labels).images
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(images), batch.labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), data.images, data.labels


def blobs(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Several classes: noisy copies of one drawn pattern each, 16 px, and a small network that tells them apart."""
    drawn = torch.rand(classes, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    patterns = nn.functional.interpolate(drawn, size=16, mode="bilinear")

    def some(count: int, seed: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        noise = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        return (patterns[labels] * 0.5 + 0.25 + 0.18 * noise).clamp(0, 1), labels

    with torch.random.fork_rng():
        torch.manual_seed(classes)
        layers = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
        model = nn.Sequential(*layers, nn.Linear(512, classes))
        images, labels = some(1200, 1)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(300):
            place = torch.randint(0, len(images), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[place]), labels[place]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False), *some(200, 2)


def compared(model: nn.Module, images: Tensor, labels: Tensor, norm: str, eps: float, classes: int) -> Iterator[str]:
    """The cells of a row after the first."""

    def right(found: Tensor) -> int:
        return int((model(found).argmax(1) == labels).sum())

    def both(name: str, options: dict[str, Any], theirs: Callable[..., Any], **their_options: Any) -> str:
        own = medfedpure.create("attack", name, norm=norm, eps=eps, steps=100, batch_size=256, **options)
        made = theirs(model, n_iter=100, norm=NORMS[norm], eps=eps, device="cpu", **their_options)
        return f"{right(own(model, images, labels).images)} / {right(made.perturb(images.clone(), labels.clone()))}"

    yield str(right(images))
    yield both("apgd_eot", {}, APGDAttack, loss="ce")
    if classes == 2:
        yield "-"
    elif classes == 3:
        yield both("apgd_eot", {"loss": "dlr"}, APGDAttack, loss="dlr")
    else:
        aimed = {"loss": "dlr", "target_classes": classes - 1}
        yield both("apgd_eot", aimed, APGDAttack_targeted, n_target_classes=classes - 1)
    yield both("fab", {}, FABAttack_PT, targeted=True, n_target_classes=classes - 1)


def main() -> None:
    """Print the table."""
    print("| classes, norm, eps | before | APGD-CE ours / theirs | APGD-DLR ours / theirs | FAB ours / theirs |")
    print("|---|---|---|---|---|")
    for classes, radii in RADII.items():
        model, images, labels = phantoms() if classes == 2 else blobs(classes)
        for norm, eps in zip(NORMS, radii, strict=True):
            cells = compared(model, images, labels, norm, eps, classes)
            print(f"| {classes}, {norm}, {eps:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
