"""How the study is done: on a CPU, at the paper's size, or in miniature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medfedpure.core.settings import AdversarialTraining, Augmentation, GroupPositives, TrainingConfig
from medfedpure.evaluation.ladder import PRESETS, Preset
from medfedpure.training.purified import FINE_TUNING

EPS = 0.015
PAPER: Mapping[str, Any] = {"norm": "linf", "eps": EPS, "step": 0.003, "steps": 7, "random_starts": 0}
"""The paper's attack, on the bare classifier."""
PGD5 = AdversarialTraining(share=1.0, eps=EPS, step=0.0075, steps=5)


@dataclass(frozen=True)
class Recipe:
    """How one classifier is trained.

    Attributes:
        start: the recipe whose weights it starts from; "" = ImageNet.
        adversarial: with a share of 0 it is trained plainly.
        steps: of one batch each.
        positives: group positives; off while their weight is 0.
        samples: images that a diffusion model drew, as a share of the training images.
    """

    start: str = ""
    adversarial: AdversarialTraining = field(default_factory=AdversarialTraining)
    steps: int = 500
    positives: GroupPositives = field(default_factory=GroupPositives)
    samples: float = 0.0


RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe(),
    "robust": Recipe("plain", PGD5, 450),
    "robust_long": Recipe("robust", PGD5, 700),
}
DENOISER: Mapping[str, Any] = {
    "t_max": 150,
    "model": {"widths": [64, 128], "unshuffle": 4},
    "training": {"steps": 1500, "batch_size": 32, "learning_rate": 1e-3, "ema": 0.995},
}
LADDER = replace(PRESETS["standard"], name="standard, 12 images", images=12, queries=50, checked=4)


@dataclass(frozen=True)
class Federation:
    """Clients of one place, and what they train.

    Attributes:
        clients: how many.
        strategies: plugin names.
        rounds: of each training.
        steps: of each client, by what it trains.
        alpha: of Dirichlet shares of each class; 0 = equal shares.
    """

    clients: int
    strategies: tuple[str, ...]
    rounds: int
    steps: Mapping[str, int]
    alpha: float = 0.0


@dataclass(frozen=True)
class How:
    """One size of the study.

    Attributes:
        name: of the folders that keep it.
        size: of the images of a folder, in pixels.
        architecture, weights: of every classifier, and what a training without a start begins from.
        recipes: of the classifiers.
        training: of all of them, but for the steps.
        shift: of the augmentation, as a share of an image's side.
        denoiser: configuration of the purifier `ddpm`.
        tuning: steps of the classifier on purified images.
        draws: of the noise of a defence that draws any; at most 9.
        bare, ladder: presets against deterministic defences, and against those with a diffusion model.
        curve: sizes of the perturbations that deterministic defences meet.
        folds: of five, that are measured.
        federations: by place.
        seconds: stated estimates, by the words of a unit; the longest word that fits.
        phantoms: whether images are drawn, not read.
        machine: how the name of a device begins whose seconds forecast those of others.
    """

    name: str
    size: int
    architecture: str
    weights: str | None
    recipes: Mapping[str, Recipe]
    training: TrainingConfig
    denoiser: Mapping[str, Any]
    federations: Mapping[str, Federation]
    seconds: Mapping[str, float]
    shift: float = 1 / 16
    tuning: int = FINE_TUNING.steps
    draws: int = 5
    bare: Preset = PRESETS["standard"]
    ladder: Preset = LADDER
    curve: tuple[float, ...] = (0.0075, EPS, 8 / 255)
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    phantoms: bool = False
    machine: str = "CPU"

    def augmentation(self, side: int, *, turns: bool) -> Augmentation:
        """Of images so many pixels wide; `turns` for data without an upright."""
        shift = int(self.shift * side)
        return Augmentation(quarter_turns=turns, shift=shift, rotation=20, stretch=0.18, intensity=0.3)


START = "fedavg_plain"
"""The federation whose network all others that train adversarially start from."""
STRATEGIES = ("fedavg", "fedper", "fedrep", "mixture", "local")
CPU = How(
    name="cpu_128",
    size=128,
    architecture="efficientnet_lite0",
    weights="imagenet",
    recipes=RECIPES,
    training=TrainingConfig(
        steps=500, batch_size=48, learning_rate=5e-4, weight_decay=0.02, ema=0.99, sampling="balanced", checks=10
    ),
    denoiser=DENOISER,
    federations={
        "br35h_fold_0": Federation(3, STRATEGIES, 5, {"plain": 170, "robust": 150}),
        "brain4_fold_0": Federation(10, ("fedavg", "fedper"), 5, {"plain": 50, "robust": 45}, alpha=0.4),
    },
    # One core of two that are busy: trainings from logs of as many steps; ladders of a diffusion model are the most
    # that an evaluation foresees at its start.
    seconds={
        "train_plain": 500,
        "train_robust": 1500,
        "train_robust_long": 2500,
        "train_denoiser": 2100,
        "train_mixed": 120,
        "train_tuned": 1400,
        "static": 60,
        "static_paper": 290,
        "static_fixed_depth": 290,
        "static_voted": 800,
        "static_robust_chain": 290,
        "static_tuned_chain": 290,
        "static_tuned_purify_all": 600,
        "static_purify_all": 600,
        "static_robust_purify_all": 600,
        "ladder": 400,
        "choose": 1200,
        "ladder_paper": 5200,
        "ladder_fixed_depth": 5200,
        "ladder_voted": 18000,
        "ladder_purify_all": 3100,
        "ladder_robust_chain": 5200,
        "ladder_tuned_chain": 5200,
        "ladder_tuned_purify_all": 3100,
        "ladder_robust_purify_all": 3100,
        "federate_plain": 600,
        "federate_robust": 1700,
        "federate_mixture_plain": 1700,
        "federate_mixture_robust": 5000,
        "clients_plain": 60,
        "clients_robust": 450,
        "insiders": 120,
    },
)
_LONG = {"plain": 700, "robust": 900, "robust_long": 500}
GPU = replace(
    CPU,
    name="paper_224",
    machine="NVIDIA",
    size=224,
    recipes={name: replace(recipe, steps=_LONG[name]) for name, recipe in RECIPES.items()},
    training=CPU.training.model_copy(update={"batch_size": 64, "ema": 0.999, "precision": "bfloat16"}),
    denoiser={
        **DENOISER,
        "model": {"widths": [96, 192], "unshuffle": 4},
        "training": {**DENOISER["training"], "precision": "bfloat16"},
    },
    ladder=replace(PRESETS["standard"], eot=20, name="standard, EoT 20", note="not headline: fewer than 100 steps"),
    # stated; where a unit of the name was timed that counts, which shared its card with a dozen others
    seconds={"train": 200, "train_robust": 500, "static": 30, "ladder": 120, "ladder_paper": 600, "federate": 600},
)
MINIATURE = replace(
    CPU,
    name="miniature",
    size=32,
    architecture="small_cnn",
    weights=None,
    recipes={
        "plain": Recipe(steps=60),
        "robust": Recipe("plain", PGD5.model_copy(update={"steps": 2}), 20),
        "robust_long": Recipe("robust", PGD5.model_copy(update={"steps": 2}), 20),
    },
    training=TrainingConfig(steps=60, batch_size=32, learning_rate=3e-3, sampling="balanced", checks=2),
    denoiser={"t_max": 60, "t_min": 30, "model": {"widths": [8, 16]}, "sampling": {"num_inference_steps": 2}}
    | {"training": {"steps": 60, "batch_size": 16}},
    tuning=20,
    draws=2,
    bare=Preset("miniature", 12, 2, 1, 1, 1, 2, 4, "a miniature, no claim", True),
    ladder=Preset("miniature", 6, 2, 1, 1, 2, 2, 2, "a miniature, no claim", True),
    curve=(EPS, 8 / 255),
    folds=(0,),
    federations={
        "br35h_fold_0": Federation(2, STRATEGIES, 2, {"plain": 8, "robust": 4}),
        "brain4_fold_0": Federation(3, ("fedavg", "fedper"), 2, {"plain": 8, "robust": 4}, alpha=2.0),
    },
    seconds={"": 10},
    phantoms=True,
)
SIZES: Mapping[str, How] = {"cpu": CPU, "paper": GPU, "miniature": MINIATURE}
