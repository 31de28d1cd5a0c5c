"""One small instance of every registered plugin, made once and shared by all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from scans import write_dicom_folder, write_nifti_folder

from medfedpure.core.detector import Denoiser, ScoreContext
from medfedpure.core.errors import MissingExtraError
from medfedpure.core.registry import create, registry
from medfedpure.testing import Setting, tiny_context, tiny_dataset
from medfedpure.testing.components import fitted_copy
from medfedpure.testing.observing import FreshAnswers, model_of, observe_in_fresh_process

torch.set_num_threads(1)

TINY_TRAINING = {"steps": 2, "batch_size": 4}
TINY_MAE = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1}


def write_image_folder(folder: Path) -> Path:
    """Two class folders with six PNG files each, drawn from a seed."""
    data = tiny_dataset(12)
    for place, (pixels, label) in enumerate(zip(data.pixels, data.labels.tolist(), strict=True)):
        target = folder / data.class_names[label]
        target.mkdir(exist_ok=True)
        Image.frombytes("L", pixels.shape[1:][::-1], bytes(pixels.flatten().tolist())).save(target / f"{place:02}.png")
    return folder


def write_medmnist(folder: Path) -> Path:
    """Twelve images as MedMNIST stores them."""
    data = tiny_dataset(12)
    parts = {"train": slice(0, 8), "val": slice(8, 10), "test": slice(10, 12)}
    arrays = {f"{part}_images": data.pixels[place, 0].numpy() for part, place in parts.items()}
    arrays |= {f"{part}_labels": data.labels[place, None].numpy() for part, place in parts.items()}
    path = folder / "tinymnist.npz"
    numpy.savez(path, **arrays)
    return path


SMALL_CONFIGS: Mapping[tuple[str, str], Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]] = {
    ("classifier", "small_cnn"): {"widths": (8, 16)},
    ("classifier", "efficientnet_lite0"): {"input_size": 64},
    ("classifier", "timm"): {"model": "test_resnet"},
    ("classifier", "mixture"): {"expert_config": {"widths": (8, 16)}, "experts": 2},
    ("classifier", "mixed"): {"robust_config": {"widths": (8, 16)}, "plain_config": {"widths": (8, 16)}, "power": 2.0},
    ("dataset", "dicom_folder"): lambda folder: {"root": str(write_dicom_folder(folder)), "image_size": 32},
    ("dataset", "nifti_folder"): lambda folder: {"root": str(write_nifti_folder(folder)), "image_size": 32},
    ("detector", "mae"): {"model": TINY_MAE, "training": TINY_TRAINING},
    ("detector", "distilled"): {"eps": (0.1,), "steps": 2, "width": 8, "training": TINY_TRAINING},
    ("detector", "staged"): {"first": {"plugin": "score_norm"}, "clear": 0.5},
    ("purifier", "diffpure"): {"model": {"widths": (8, 16)}, "timestep": 3, "training": TINY_TRAINING},
    ("purifier", "mae_inpaint"): {"model": TINY_MAE, "training": TINY_TRAINING},
    ("purifier", "ddpm"): {
        "model": {"widths": (8, 16)},
        "sampling": {"num_inference_steps": 2},
        "training": TINY_TRAINING,
    },
    ("purifier", "class_ddpm"): {
        "model": {"widths": (8, 16)},
        "sampling": {"num_inference_steps": 2},
        "training": TINY_TRAINING,
    },
    ("purifier", "one_step"): {
        "model": {"widths": (8, 16)},
        "sampling": {"num_inference_steps": 2},
        "training": TINY_TRAINING,
        "distillation": {"training": TINY_TRAINING},
    },
    ("attack", "apgd"): {"steps": 10},
    ("attack", "apgd_eot"): {"steps": 10},
    ("attack", "auto_attack"): {"eps": 0.1, "steps": 10, "rounds": 1, "queries": 20},
    ("attack", "auto_attack_suite"): {"eps": 0.1, "steps": 10, "queries": 20},
    ("attack", "fab"): {"eps": 0.1, "steps": 10},
    ("attack", "carlini_wagner"): {"steps": 10, "search_steps": 3},
    ("attack", "square"): {"eps": 0.1, "queries": 30},
    ("attack", "hop_skip_jump"): {"steps": 2, "queries": 20},
    ("attack", "adversarial_patch"): {"steps": 5},
    ("dataset", "phantom"): {"images": 24, "image_size": 32},
    ("dataset", "image_folder"): lambda folder: {
        "root": str(write_image_folder(folder)),
        "image_size": 32,
        "positive": "plain",  # no name of its two classes says that nothing was found
    },
    ("dataset", "medmnist"): lambda folder: {
        "path": str(write_medmnist(folder)),
        "groups": "none",
        "positive": "class 1",
    },
}
"""Only where defaults are too slow, or where files are needed: a function of an empty folder."""

_LEARNS_FAST = {"steps": 60, "batch_size": 8, "learning_rate": 1e-2}
PRACTICE_CONFIGS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("detector", "mae"): {"model": TINY_MAE, "score": {"kind": "reconstruction"}, "training": _LEARNS_FAST},
    ("detector", "distilled"): {"eps": (0.1,), "steps": 2, "width": 8, "training": _LEARNS_FAST},
    ("detector", "art"): {"scoring_function": "HigherCriticism"},
    ("purifier", "art"): {"preprocessor": "SpatialSmoothing"},
    ("purifier", "mae_inpaint"): {"model": TINY_MAE, "training": _LEARNS_FAST},
    ("purifier", "ddpm"): {"model": {"widths": (8, 16)}, "t_min": 100, "t_max": 120, "training": _LEARNS_FAST},
    ("purifier", "class_ddpm"): {
        "model": {"widths": (8, 16)},
        "t_min": 100,
        "t_max": 120,
        "objective": {"timestep_sampling": "log_snr"},
        "training": _LEARNS_FAST,
    },
    ("purifier", "one_step"): {
        "model": {"widths": (8, 16)},
        "t_min": 100,
        "t_max": 120,
        "training": _LEARNS_FAST,
        "distillation": {"training": _LEARNS_FAST},
    },
    ("purifier", "diffpure"): {"model": {"widths": (8, 16)}, "timestep": 60, "training": _LEARNS_FAST},
}
"""Where the small configuration trains too little for the quality to be judged, or where the default hardly does it."""


class Workshop:
    """Makes, fits and reloads one instance of every plugin, each once."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.train = tiny_dataset()
        self._unfitted: dict[tuple[str, str], Any] = {}
        self._fitted: dict[tuple[str, str], Any] = {}
        self._practised: dict[tuple[str, str], Any] = {}
        self._reloaded: dict[str, FreshAnswers] = {}

    def unfitted(self, kind: str, name: str) -> Any:
        """A new instance with a small configuration."""
        key = (kind, name)
        if key not in self._unfitted:
            options = SMALL_CONFIGS.get(key, {})
            self._unfitted[key] = create(
                kind, name, options(self.factory.mktemp(name)) if callable(options) else options
            )
        return self._unfitted[key]

    def component(self, kind: str, name: str) -> Any:
        """The same, fitted where it can be."""
        key = (kind, name)
        if key not in self._fitted:
            context = tiny_context() if kind == "purifier" else self.context
            self._fitted[key] = fitted_copy(self.unfitted(kind, name), self.train, context)
        return self._fitted[key]

    def practised(self, kind: str, name: str) -> Any:
        """The same, trained enough to be judged."""
        key = (kind, name)
        if key not in PRACTICE_CONFIGS:
            return self.component(kind, name)
        if key not in self._practised:
            self._practised[key] = fitted_copy(create(kind, name, PRACTICE_CONFIGS[key]), self.train, tiny_context())
        return self._practised[key]

    def installed(self, kind: str) -> list[str]:
        """Names of the plugins of a kind whose extra is installed."""
        return [record.name for record in registry().plugins(kind) if self.missing_extra(kind, record.name) is None]

    def missing_extra(self, kind: str, name: str) -> MissingExtraError | None:
        """Why a plugin cannot be imported here, or None."""
        try:
            registry().load(kind, name)
        except MissingExtraError as error:
            return error
        return None

    @cached_property
    def context(self) -> ScoreContext:
        """A small classifier, its features, and the first installed purifier that is a denoiser."""
        purifiers = (self.practised("purifier", name) for name in self.installed("purifier"))
        return tiny_context(denoiser=next((part for part in purifiers if isinstance(part, Denoiser)), None))

    @cached_property
    def setting(self) -> Setting:
        """Images, ids and context of the contract tests."""
        return Setting.of(self.train, self.context)

    def subject(self, kind: str, name: str) -> Any:
        """What is asked: the network a classifier plugin builds, or the component itself."""
        component = self.component(kind, name)
        return model_of(component, self.setting) if kind == "classifier" else component

    def reloaded(self, kind: str) -> FreshAnswers:
        """What every installed plugin of a kind answers in one fresh process."""
        if kind not in self._reloaded:
            subjects = {name: self.subject(kind, name) for name in self.installed(kind)}
            self._reloaded[kind] = observe_in_fresh_process(subjects, self.setting, self.factory.mktemp(kind))
        return self._reloaded[kind]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The workshop of this session."""
    return Workshop(tmp_path_factory)
