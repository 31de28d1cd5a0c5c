"""What each strategy is for, on problems small enough for a test; `benchmarks.personalization` measures it on images.

The gate of the mixture and the weights that FedEM recovers are tested in test_mixture.py, adversarial training in
tests/training/test_adversarial.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from test_mixture import STILL, federated
from torch import Tensor, nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.registry import create
from medfedpure.core.settings import TrainingConfig

PIXELS, CLIENTS, FEW, TESTED = 40, 8, 20, 400


class Represented(nn.Module):
    """Two features that are linear in the pixels, and a head on them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(PIXELS, 2, bias=False)
        self.head = nn.Linear(2, 2)

    def head_keys(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.flatten(1) - 0.5))
        return logits


class Normalized(nn.Module):
    """A line through the pixels as BatchNorm leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(images.flatten(1)))
        return logits


def labelled(pixels: Tensor, labels: Tensor) -> ImageDataset:
    return ImageDataset(pixels[:, None, None], labels.long(), torch.arange(len(labels)), ("no", "yes"))


def shared_features(seed: int) -> tuple[dict[str, ImageDataset], dict[str, ImageDataset]]:
    """One direction decides everywhere, and to half of the clients its one side is positive, to half the other."""
    generator = torch.Generator().manual_seed(seed)
    direction = nn.functional.normalize(torch.randn(PIXELS, generator=generator), dim=0)
    train, test = {}, {}
    for place in range(CLIENTS):
        for parts, size in ((train, FEW), (test, TESTED)):
            pixels = torch.randint(0, 256, (size, PIXELS), dtype=torch.uint8, generator=generator)
            one_side = (pixels / 255 - 0.5) @ direction > 0
            parts[str(place)] = labelled(pixels, one_side ^ bool(place % 2))
    return train, test


def own_scanners(seed: int, size: int) -> dict[str, ImageDataset]:
    """The second pixel above its client's middle is positive; gain and offset are the scanner's."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for place, (gain, offset) in enumerate(((0.1, 0.05), (0.3, 0.2), (0.2, 0.75), (0.4, 0.5))):
        values = torch.rand(size, 2, generator=generator)
        pixels = (255 * (offset + gain * values)).to(torch.uint8)
        made[str(place)] = labelled(pixels, values[:, 1] > 0.5)
    return made


def accuracy(models: Mapping[str, nn.Module], test: Mapping[str, ImageDataset]) -> float:
    """Mean balanced accuracy over clients."""
    return sum(STILL.metrics(models[name], data)["balanced_accuracy"] for name, data in test.items()) / len(test)


@pytest.fixture(scope="module")
def of_shared_features() -> dict[str, float]:
    train, test = shared_features(0)
    training = TrainingConfig(steps=80, batch_size=FEW, learning_rate=0.1)

    def make_model() -> nn.Module:
        torch.manual_seed(1)
        return Represented()

    return {
        name: accuracy(federated(create("personalization", name), train, make_model, training, 40), test)
        for name in ("fedavg", "local", "fedper", "fedrep")
    }


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_common_body_with_own_heads_is_for_few_images_and_own_questions(
    of_shared_features: dict[str, float], name: str
) -> None:
    found = of_shared_features
    assert found[name] > found["fedavg"] + 0.1, f"heads of their own must tell the questions apart: {found}"
    assert found[name] > found["local"] + 0.05, f"a common body must help where images are few: {found}"


def test_own_normalization_is_for_scanners_that_differ() -> None:
    train, test = own_scanners(0, 60), own_scanners(1, TESTED)
    training = TrainingConfig(steps=120, batch_size=30, learning_rate=0.05)

    def make_model() -> nn.Module:
        torch.manual_seed(1)
        return Normalized()

    found = {
        name: accuracy(federated(create("personalization", name), train, make_model, training, 12), test)
        for name in ("fedavg", "fedbn")
    }
    assert found["fedbn"] > 0.9, f"each scanner by itself is easy: {found}"
    assert found["fedbn"] > found["fedavg"] + 0.1, f"common statistics must not fit scanners that differ: {found}"
