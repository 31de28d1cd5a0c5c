"""The demo's own configurations: phantoms, or any folder of images with one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from medfedpure.core.errors import ConfigError
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.defence.recipe import Recipe
from medfedpure.job.config import (
    ClassifierChoice,
    DataChoice,
    DefenceChoice,
    EvaluationChoice,
    FederatedChoice,
    PluginChoice,
    RunConfig,
)
from medfedpure.job.folder import CONFIG

COMPARED = ("fedavg", "local")
_QUICK = (
    "data.config.images=1500",
    "data.config.image_size=32",
    "classifier.training.steps=150",
    "purifier.config.training.steps=240",
    "purifier.config.model.widths=[16, 32]",
)
_QUICK_FOLDER = (
    "data.config.image_size=32",
    "classifier.config.input_size=96",
    "classifier.training.steps=60",
    "purifier.config.training.steps=360",
    "purifier.config.model.widths=[16, 32]",
)
_CHEAP = ("detector.plugin=feature_squeezing", "detector.config={bits = []}")
"""For the recipe "fast": the demo's own detector borrows the purifier's network."""


def phantom_demo(seed: int = 0, *, compare: bool = False) -> RunConfig:
    """Three scanners, 48 px phantoms, minutes on two cores.

    Args:
        seed: of everything.
        compare: train the classifier by FedAvg and locally as well.
    """
    return RunConfig(
        seed=seed,
        threads=1,
        data=DataChoice(
            plugin="phantom",
            config={"images": 4000, "image_size": 48, "scanners": 3, "lesion_size": 1.8, "seed": seed},
            clients=3,
            partition="site",
            validation=0.05,
            tune=0.05,
            calibrate=0.2,
        ),
        classifier=ClassifierChoice(
            plugin="small_cnn",
            config={"widths": [16, 32, 64, 96]},
            strategy=PluginChoice(plugin="fedper"),
            rounds=3,
            training=TrainingConfig(steps=400, batch_size=32, learning_rate=3e-3),
            augmentation=Augmentation(intensity=0.7, noise=0.01),
        ),
        purifier=FederatedChoice(
            plugin="ddpm",
            rounds=3,
            config={
                "t_min": 30,
                "t_max": 60,
                "sampling": {"sampler": "ddim", "num_inference_steps": 3},
                "model": {"widths": [24, 48]},
                "training": {"steps": 600, "batch_size": 16, "learning_rate": 2e-3, "ema": 0.99},
            },
        ),
        detector=FederatedChoice(plugin="denoising_disagreement", config={"timestep": 20, "steps": 1, "draws": 3}),
        attack=PluginChoice(
            plugin="pgd", config={"norm": "linf", "eps": 0.015, "step": 0.003, "steps": 7, "random_starts": 0}
        ),
        evaluation=EvaluationChoice(compare=COMPARED if compare else (), bpda=True),
    )


def demo_config(
    data: Path | None, seed: int = 0, *, compare: bool = False, quick: bool = False, recipe: str | None = None
) -> RunConfig:
    """What `medfedpure demo` runs.

    Args:
        data: a folder with one sub-folder for each class; None draws phantoms.
        seed: of everything.
        compare: train the classifier by FedAvg and locally as well.
        quick: train less, on fewer and smaller images.
        recipe: "paper", "robust" or "fast"; None = as it stands.

    Raises:
        ConfigError: no such recipe.
    """
    config = phantom_demo(seed, compare=compare) if data is None else folder_demo(data, seed, compare=compare)
    lines: tuple[str, ...] = (_QUICK if data is None else _QUICK_FOLDER) if quick else ()
    lines += _CHEAP if recipe == "fast" else ()
    return config.with_settings([*lines, *([] if recipe is None else [f"defence.recipe={recipe}"])])


def is_demo(out: Path) -> bool:
    """Whether a folder holds the run of a demo of this version, on whatever device and threads it worked."""
    try:
        found = RunConfig.from_toml(out / CONFIG)
    except ConfigError:
        return False
    root = Path(str(found.data.config.get("root", "")))
    demos = [
        demo_config(data, found.seed, compare=compare, quick=quick, recipe=recipe)
        for data in (None, root)
        for compare in (False, True)
        for quick in (False, True)
        for recipe in get_args(Recipe)
    ]
    return found.model_copy(update={"device": "cpu", "threads": demos[0].threads}) in demos


def folder_demo(folder: Path, seed: int = 0, *, compare: bool = False) -> RunConfig:
    """Any image folder at 64 px: split by near-duplicate group, copies of a group capped; a pretrained classifier.

    Args:
        folder: one sub-folder for each class.
        seed: of everything.
        compare: train the classifier by FedAvg and locally as well.
    """
    base = phantom_demo(seed, compare=compare)
    return base.model_copy(
        update={
            "data": DataChoice(
                plugin="image_folder",
                config={"root": str(folder), "image_size": 64, "channels": 1},
                clients=3,
                partition="equal",
                max_per_group=12,
                train=0.5,
                validation=0.05,
                tune=0.05,
                calibrate=0.2,
                test=0.2,
            ),
            "classifier": ClassifierChoice(
                plugin="efficientnet_lite0",
                strategy=PluginChoice(plugin="fedper"),
                rounds=4,
                training=TrainingConfig(steps=240, batch_size=32, learning_rate=5e-4, weight_decay=0.02),
                augmentation=Augmentation(shift=4, intensity=0.3, noise=0.01),
            ),
            "purifier": FederatedChoice(
                plugin="ddpm",
                rounds=4,
                config={
                    "t_min": 60,
                    "t_max": 140,
                    "sampling": {"sampler": "ddim", "num_inference_steps": 5},
                    "model": {"widths": [32, 64]},
                    "training": {"steps": 1200, "batch_size": 16, "learning_rate": 2e-3, "ema": 0.99},
                },
            ),
            "detector": FederatedChoice(plugin="denoising_disagreement", config={"timestep": 40, "steps": 3}),
            "defence": DefenceChoice(scope="federation"),
        }
    )
