"""What a bench shows every plugin: images, a small trained classifier, attacked images; all from one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.attack import Attack, Budget, ThreatView
from medfedpure.core.classifier import Classifier, ClassifierModel
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Denoiser, ScoreContext
from medfedpure.core.errors import DataError, MedFedPureError
from medfedpure.core.registry import create
from medfedpure.core.results import AttackResult
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import fooled, verdicts_of
from medfedpure.evaluation.evaluate import sizes_of
from medfedpure.evaluation.images import read_images
from medfedpure.figures.metrics import classification_figures
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

SIZE = 32
STEPS = 150
BUDGET = Budget("linf", 8 / 255)
ATTACK_STEPS = 10
FEWEST, FEWEST_GROUPS = 120, 8
CLIENTS = 3
_ATTACKED, _READABLE = 24, 8
_FAST = {"steps": 100, "batch_size": 16, "learning_rate": 3e-3}
_MAE = {"width": 32, "depth": 2, "heads": 2, "decoder_width": 32, "decoder_depth": 1}
_IMITATION = {"steps": 3, "training": {"steps": 200, "batch_size": 32, "learning_rate": 3e-3}}
SMALL: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("classifier", "small_cnn"): {"widths": [16, 32]},
    ("classifier", "mixed"): {"robust_config": {"widths": [16, 32]}, "plain_config": {"widths": [16, 32]}},
    ("classifier", "efficientnet_lite0"): {"input_size": 64},
    ("classifier", "timm"): {"model": "test_resnet"},
    ("classifier", "mixture"): {"expert_config": {"widths": [16, 32]}, "experts": 2},
    ("detector", "mae"): {"model": _MAE, "training": _FAST},
    ("detector", "distilled"): _IMITATION,
    ("detector", "staged"): {"first": {"plugin": "distilled", "config": _IMITATION}},
    ("purifier", "ddpm"): {"model": {"widths": [16, 32]}, "training": _FAST},
    ("purifier", "diffpure"): {"model": {"widths": [16, 32]}, "timestep": 50, "training": _FAST},
    ("purifier", "mae_inpaint"): {"model": _MAE, "training": _FAST},
    ("attack", "auto_attack"): {"steps": 10, "rounds": 1, "queries": 50},
    ("attack", "auto_attack_suite"): {"steps": 10, "queries": 50},
    ("attack", "carlini_wagner"): {"steps": 10, "search_steps": 3},
    ("attack", "square"): {"queries": 100},
    ("attack", "hop_skip_jump"): {"steps": 3, "queries": 50},
    ("attack", "adversarial_patch"): {"steps": 10},
    ("dataset", "phantom"): {"images": 360, "image_size": SIZE},
}
"""Configurations of the built-ins that keep a bench short; the table says so."""


@dataclass
class Row:
    """One plugin: its figures by column, or why it has none."""

    name: str
    figures: dict[str, float | int | str] = field(default_factory=dict)
    problem: str = ""


@dataclass
class Bench:
    """A comparison of the plugins of one kind, and under which conditions it was made."""

    kind: str
    columns: tuple[str, ...]
    rows: list[Row]
    conditions: list[str]


class Stage:
    """Everything that several plugins are measured on, made when it is first asked for.

    Args:
        seed: of data, weights, attacks and noise.
        images: how many phantoms.
        given: images of the user's, in place of phantoms.
        budget: of every attack.
    """

    def __init__(self, seed: int, images: int, given: ImageDataset | None = None, budget: Budget = BUDGET) -> None:
        self.seed = seed
        self.images = images
        self.given = given
        self.budget = budget

    @cached_property
    def data(self) -> ImageDataset:
        """The user's images, or phantoms."""
        if self.given is not None:
            return self.given
        made: ImageDataset = create(
            "dataset", "phantom", images=self.images, image_size=SIZE, lesion_contrast=2.0, seed=self.seed
        ).read()
        return made

    @cached_property
    def parts(self) -> dict[str, ImageDataset]:
        """Disjoint parts to train, calibrate and test on."""
        return self.data.split({"train": 0.5, "calibrate": 0.25, "test": 0.25}, seed=derive_seed(self.seed, "bench"))

    @cached_property
    def model(self) -> ClassifierModel:
        """A small trained classifier."""
        return self.trained(create("classifier", "small_cnn", SMALL["classifier", "small_cnn"]), self.parts["train"])

    def trained(self, architecture: Classifier, data: ImageDataset) -> ClassifierModel:
        """A network of an architecture after `STEPS` steps."""
        channels, size, _ = data.image_shape
        model = architecture.create_model(
            in_channels=channels,
            num_classes=data.num_classes,
            image_size=size,
            class_names=data.class_names,
            seed=derive_seed(self.seed, "weights"),
        )
        budget = TrainingConfig(steps=STEPS, batch_size=16, learning_rate=5e-3)
        with torch.enable_grad():
            train(model, ClassificationTask(), data, budget, seed=derive_seed(self.seed, "training"))
        return model.eval().requires_grad_(False)

    @cached_property
    def denoiser(self) -> Denoiser | None:
        """A small diffusion model for detectors that borrow one; None where it is not installed."""
        with suppress(MedFedPureError), torch.enable_grad():
            purifier = create("purifier", "ddpm", SMALL["purifier", "ddpm"])
            fitted: Denoiser = purifier.fit(self.parts["train"], context=ScoreContext(self.model), seed=self.seed)
            return fitted
        return None

    def context(self, part: Component) -> ScoreContext:
        """Classifier and features, and the denoiser for a part that requires one."""
        borrows = "denoiser" in getattr(part, "requires", ())
        return ScoreContext(self.model, self.model.features, self.denoiser if borrows else None)

    def attack(self) -> Attack:
        """What robust figures are measured with."""
        norm, eps = self.budget.norm, self.budget.eps
        made: Attack = create(
            "attack", "pgd_eot", norm=norm, eps=eps, step=eps / 4, steps=ATTACK_STEPS, early_stop=False
        )
        return made

    def attacked(self, model: ClassifierModel, data: ImageDataset) -> AttackResult:
        """The images of a part, attacked on the bare model."""
        view = ThreatView(model, features=model.features)
        with torch.enable_grad():
            return self.attack()(view, data.images, data.labels, streams=self.streams("attack", data))

    @cached_property
    def attacked_test(self) -> AttackResult:
        """The test images, attacked on the bare small classifier."""
        return self.attacked(self.model, self.parts["test"])

    @cached_property
    def readable(self) -> ImageDataset:
        """Test images that the small classifier reads correctly: what attacks are compared on.

        Raises:
            DataError: next to none, so that attacks would show nothing.
        """
        test = self.parts["test"]
        right = test.select(~fooled(verdicts_of(self.model, test.images), test.labels))
        if len(right) < _READABLE:
            raise DataError(
                f"after {STEPS} steps small_cnn reads {len(right)} of {len(test)} test images correctly, and "
                f"{_READABLE} or more are wanted to attack: bring more images, or larger ones"
            )
        return right.select(torch.arange(min(len(right), _ATTACKED)))

    @cached_property
    def has_sites(self) -> bool:
        """Whether every image names its site, and there is one for each client."""
        return int(self.data.sites.min()) >= 0 and self.data.sites.unique().numel() >= CLIENTS

    def clients(self) -> list[ImageDataset]:
        """Whole sites, or unequal shares of each class where fewer are known."""
        return self.data.partition(CLIENTS, by="site" if self.has_sites else "dirichlet", seed=self.seed)

    def streams(self, purpose: str, data: ImageDataset) -> Streams:
        """Noise for the images of a part."""
        return Streams(derive_seed(self.seed, purpose), data.ids)

    def facts(self) -> list[str]:
        """What stands under every table."""
        if self.given is None:
            drawn = f"{self.images} phantoms of {SIZE} px with lesions of twice the usual contrast, seed {self.seed}"
            what = "drawn images"
        else:
            groups, size = self.data.num_groups, self.data.image_shape[1]
            drawn = f"{len(self.data)} images of {self.data.name!r} at {size} px, {groups} groups, seed {self.seed}"
            what = "one small classifier, one division"
        return [
            f"{drawn}: half to train, a quarter to calibrate, a quarter to test; {what}, so the figures rank plugins "
            "here only",
            "built-ins with small networks and short training, yours with its defaults or --config",
        ]

    def threat(self) -> str:
        """The attack as it must stand beside a robust figure."""
        return f"{self.attack().describe()}; static: crafted on the bare classifier, the attacker ignores the defence"


def budget_of(norm: str, eps: float | None) -> Budget:
    """Of every attack: 8/255 in linf where nothing is said.

    Raises:
        ConfigError: no such norm, an eps that is not positive and finite, or above 1 in linf, none in l2.
    """
    if eps is None and norm == BUDGET.norm:
        return BUDGET
    return Budget(norm, sizes_of(norm, None if eps is None else [eps])[0])  # type: ignore[arg-type]


def images_of(data: str, options: Mapping[str, Any], *, most: int, seed: int) -> ImageDataset:
    """The images that a user named, whole groups of at most about `most` of them.

    Args:
        data: folder of images, .npz file, or data set plugin; a folder is read at 32 px unless `options` say otherwise.
        options: configuration of the data set plugin.
        most: how many.
        seed: of their choice.

    Raises:
        DataError: none of the three, or too few images of a class.
    """
    found = read_images(data, options, {"image_size": SIZE})
    if len(found) > most:
        found = found.split({"taken": most, "left": len(found) - most}, seed=derive_seed(seed, "few"))["taken"]
    groups = {
        name: int(found.groups[found.labels == label].unique().numel()) for label, name in enumerate(found.class_names)
    }
    if len(found) < FEWEST or min(groups.values()) < FEWEST_GROUPS:
        came = ", ".join(f"{count} of {name!r}" for name, count in groups.items())
        raise DataError(
            f"a bench wants {FEWEST} images or more, and {FEWEST_GROUPS} near-duplicate groups or more of each class, "
            f"to train, calibrate and test on; {data} has {len(found)} images, groups: {came}. Without --data it "
            "draws phantoms"
        )
    return found


def build(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """A plugin with the options of its user, or the small configuration of a built-in."""
    return create(kind, name, dict(options or SMALL.get((kind, name), {})))


def right_and_wrong(labels: Tensor, predicted: Tensor, classes: int) -> float:
    """Balanced accuracy."""
    return classification_figures(predicted, labels, classes).balanced_accuracy


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    with torch.no_grad():
        answer = call()
    return answer, time.perf_counter() - start


def fit(part: Component, stage: Stage) -> float:
    """Fit a part that can be fitted; the seconds it took."""
    data, context = stage.parts["train"], stage.context(part)  # made before the clock starts
    start = time.perf_counter()
    learn = getattr(part, "fit", None)
    if learn is not None and not part.fitted:
        learn(data, context=context, seed=derive_seed(stage.seed, "fit"))
    return time.perf_counter() - start
