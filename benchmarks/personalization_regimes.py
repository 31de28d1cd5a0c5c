"""The situations of `benchmarks.personalization`: who the clients are, and which strategy should win there.

They were fixed on seeds from 100 on; what is reported comes from other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import derive_seed
from medfedpure.federation import Site
from medfedpure.training.classification import ClassificationTask

SIZE = 28
SPARE = 1.6
"""Images drawn for every image needed: labels that come from lesions cannot be ordered in exact numbers."""
QUESTIONS = ("any lesion", "a lesion brighter than its surroundings", "a darker one")


@dataclass(frozen=True)
class Arm:
    """One row of a table: a strategy, and what differs from the regime's network."""

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    widths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Regime:
    """A situation, the strategies that are compared in it, and what is claimed of them.

    Attributes:
        words: who the clients are; for the reader of the table.
        sites: from a seed to clients; `validation` holds the test images, which no training sees.
        claims: pairs of arms, the first of which should be better.
        attack: options of the static attack under which accuracy is measured; None = benign images.
        task: augmentation of the training images.
    """

    words: str
    sites: Callable[[int], list[Site]]
    arms: Mapping[str, Arm]
    claims: tuple[tuple[str, str], ...]
    training: TrainingConfig
    rounds: int
    widths: tuple[int, ...] = (8, 16, 32)
    attack: Mapping[str, Any] | None = None
    task: ClassificationTask = field(default_factory=ClassificationTask)

    def make_model(self, arm: Arm, seed: int) -> nn.Module:
        """The network of an arm, its weights drawn from the seed."""
        architecture = medfedpure.create("classifier", "small_cnn", widths=arm.widths or self.widths)
        model: nn.Module = architecture.create_model(in_channels=1, num_classes=2, image_size=SIZE, seed=seed)
        return model

    def describe(self) -> str:
        """Clients, network and budget in words."""
        t = self.training
        return (
            f"{self.words}; small_cnn {self.widths}, {t.steps} steps of {t.batch_size} images at each client in "
            f"{self.rounds} rounds, AdamW, learning rate {t.learning_rate:g}"
        )


def phantoms(seed: int, clients: int, wanted: int, **options: Any) -> ImageDataset:
    """Phantoms of one scanner for each client, `wanted` for each and some to spare."""
    count = round(clients * wanted * SPARE) + 20 * clients
    found: ImageDataset = medfedpure.create(
        "dataset", "phantom", images=count, image_size=SIZE, scanners=clients, seed=seed, **options
    ).read()
    return found


def balanced_site(name: str, own: ImageDataset, train: int, test: int) -> Site:
    """A client with so many images of each class to train on and, apart from them, to be tested on."""
    places = [torch.nonzero(own.labels == label).squeeze(1) for label in (0, 1)]
    if min(len(place) for place in places) < train + test:
        raise SystemExit(f"client {name} has {[len(p) for p in places]} images of the classes: raise SPARE")
    parts = [torch.cat([place[low:high] for place in places]) for low, high in ((0, train), (train, train + test))]
    return Site(name, own.select(parts[0].sort().values), own.select(parts[1].sort().values))


def lesion_contrast(images: Tensor, masks: Tensor) -> Tensor:
    """Mean of the lesions of images `(N, 1, H, W)` minus the mean of two pixels around them, `(N,)`; 0 = none."""
    inside = masks.float()
    ring = functional.max_pool2d(inside, 5, stride=1, padding=2) - inside
    means = [(images * area).sum((1, 2, 3)) / area.sum((1, 2, 3)).clamp_min(1) for area in (inside, ring)]
    return (means[0] - means[1]) * (inside.sum((1, 2, 3)) > 0)


def answers(data: ImageDataset, question: int) -> Tensor:
    """Labels `(N,)` of one of the QUESTIONS."""
    assert data.masks is not None
    contrast = lesion_contrast(data.images, data.masks)
    return ((contrast != 0), (contrast > 0), (contrast < 0))[question].long()


def own_questions(seed: int) -> list[Site]:
    """Six scanners with 16 images each; three hospitals ask for bright lesions, three for dark ones."""
    data = phantoms(seed, 6, 66, scanner_shift=0.5, lesion_fraction=1.0, lesion_contrast=1.2, lesion_size=1.2)
    sites = []
    for place in range(6):
        own = data.select(data.sites == place)
        own = replace(own, labels=answers(own, 1 + place % 2))
        sites.append(balanced_site(f"client_{place}", own, 8, 25))
    return sites


def one_question(seed: int) -> list[Site]:
    """Six scanners with 40 images each, and one question."""
    data = phantoms(seed, 6, 90, scanner_shift=1.0)
    return [balanced_site(f"client_{place}", data.select(data.sites == place), 20, 25) for place in range(6)]


def distant_scanners(seed: int) -> list[Site]:
    """As `one_question`, on scanners as different as the phantom can make them; lesions are clear."""
    data = phantoms(seed, 6, 90, scanner_shift=3.0, lesion_contrast=1.5, lesion_size=1.5)
    return [balanced_site(f"client_{place}", data.select(data.sites == place), 20, 25) for place in range(6)]


def two_populations(seed: int) -> list[Site]:
    """Six hospitals with 40 images each, three of either population: a bright lesion is ill in one, a dark one in the
    other.
    """
    data = phantoms(seed, 6, 90, scanner_shift=0.5, lesion_fraction=1.0, lesion_contrast=1.5, lesion_size=1.4)
    sites = []
    for place in range(6):
        own = data.select(data.sites == place)
        own = replace(own, labels=answers(own, 1 + place % 2))
        sites.append(balanced_site(f"client_{place}", own, 20, 25))
    return sites


def inverted_images(seed: int) -> list[Site]:
    """Four hospitals ask for bright lesions; a share of each one's images, 20 to 80 %, is stored inverted.

    Inversion, as DICOM's MONOCHROME1 has it, makes a bright lesion dark: what to look for depends on the image.
    """
    data = phantoms(seed, 4, 130, scanner_shift=0.5, lesion_fraction=1.0, lesion_contrast=2.0, lesion_size=1.6)
    sites = []
    for place, share in enumerate((0.2, 0.4, 0.6, 0.8)):
        own = data.select(data.sites == place)
        own = replace(own, labels=answers(own, 1))
        generator = torch.Generator().manual_seed(derive_seed(seed, "inverted", place))
        inverted = torch.rand(len(own), generator=generator) < share
        pixels = torch.where(inverted[:, None, None, None], own.top - own.pixels, own.pixels)
        sites.append(balanced_site(f"client_{place}", replace(own, pixels=pixels), 40, 25))
    return sites


def clear_lesions(seed: int) -> list[Site]:
    """Three scanners with 100 images each; lesions large enough to be found at once."""
    data = phantoms(seed, 3, 160, scanner_shift=0.5, lesion_contrast=1.5, lesion_size=1.5)
    return [balanced_site(f"client_{place}", data.select(data.sites == place), 50, 30) for place in range(3)]


ANCHORS = {"fedavg": Arm("fedavg"), "local": Arm("local")}
OWN_NORM = {"normalization": "private"}
PGD = {"norm": "linf", "eps": 0.015, "step": 0.003, "steps": 7}
GATED = {
    **ANCHORS,
    "fedavg, twice the weights": Arm("fedavg", widths=(11, 23, 45)),
    "mixture with gate": Arm("mixture", {"experts": 2, "gate": True}),
}
BETTER_GATED = tuple(("mixture with gate", other) for other in ("fedavg", "fedavg, twice the weights", "local"))
HARDENED = {"adversarial": {"share": 1.0, "norm": "linf", "eps": 0.015, "step": 0.006, "steps": 4}}

REGIMES: dict[str, Regime] = {
    "own questions": Regime(
        "6 clients, one scanner each (shift 0.5), 16 training images each; 3 ask for bright lesions, 3 for dark ones",
        own_questions,
        {
            **ANCHORS,
            "fedper": Arm("fedper"),
            "fedrep": Arm("fedrep"),
            "fedper, own BatchNorm": Arm("fedper", OWN_NORM),
            "fedrep, own BatchNorm": Arm("fedrep", OWN_NORM),
        },
        tuple(
            (better, worse)
            for better in ("fedper", "fedrep", "fedper, own BatchNorm", "fedrep, own BatchNorm")
            for worse in ANCHORS
        ),
        TrainingConfig(steps=96, batch_size=16, learning_rate=0.015),
        rounds=24,
    ),
    "one question": Regime(
        "6 clients, one scanner each (shift 1), 40 training images each; all ask for lesions",
        one_question,
        {**ANCHORS, "fedbn": Arm("fedbn")},
        (("fedbn", "fedavg"), ("fedbn", "local")),
        TrainingConfig(steps=96, batch_size=16, learning_rate=0.005),
        rounds=12,
    ),
    "distant scanners": Regime(
        "6 clients, one scanner each (shift 3), 40 training images each; all ask for lesions, which are clear",
        distant_scanners,
        {**ANCHORS, "fedbn": Arm("fedbn")},
        (("fedbn", "fedavg"), ("fedbn", "local")),
        TrainingConfig(steps=96, batch_size=16, learning_rate=0.005),
        rounds=12,
    ),
    "two populations": Regime(
        "6 clients, one scanner each (shift 0.5), 40 training images each; in 3 a bright lesion is ill and a dark one "
        "healthy, in 3 the other way round; lesions are clear",
        two_populations,
        GATED,
        BETTER_GATED,
        TrainingConfig(steps=192, batch_size=16, learning_rate=0.01),
        rounds=24,
    ),
    "inverted images": Regime(
        "4 clients, one scanner each (shift 0.5), 80 training images each; all ask for bright lesions, and 20, 40, 60 "
        "and 80 % of their images are stored inverted",
        inverted_images,
        GATED,
        BETTER_GATED,
        TrainingConfig(steps=400, batch_size=16, learning_rate=0.01),
        rounds=20,
    ),
    "attacked": Regime(
        "3 clients, one scanner each (shift 0.5), 100 training images each; clear lesions",
        clear_lesions,
        {
            **ANCHORS,
            "fedavg, adversarial": Arm("fedavg", HARDENED),
            "local, adversarial": Arm("local", HARDENED),
        },
        (("fedavg, adversarial", "fedavg"), ("local, adversarial", "local")),
        TrainingConfig(steps=96, batch_size=16, learning_rate=0.01),
        rounds=8,
        attack=PGD,
    ),
}
