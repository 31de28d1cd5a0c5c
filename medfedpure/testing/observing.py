"""What a part answers in a setting, as named tensors; in this process or in a fresh one."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medfedpure.core.attack import Attack, ThreatView
from medfedpure.core.classifier import Classifier, ClassifierModel
from medfedpure.core.component import Component
from medfedpure.core.dataset import Dataset
from medfedpure.core.detector import Detector
from medfedpure.core.personalization import ClientRound, PersonalizationStrategy
from medfedpure.core.purifier import Purifier
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import isolated_rng
from medfedpure.testing.setting import Setting, tiny_classifier
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.trainer import LoopTrainer

Observed = dict[str, Tensor]
MODEL_SEED = 5
"""Differs from the default seed of `create_model`, so that loading must really bring the weights."""


def observe(subject: Any, setting: Setting) -> Observed:
    """Everything that a part answers, as tensors."""
    if isinstance(subject, Detector):
        return {"scores": subject(setting.images, context=setting.context, streams=setting.streams)}
    if isinstance(subject, Purifier):
        result = subject(setting.images, setting.strength, streams=setting.streams)
        depth = {} if result.timestep is None else {"timestep": result.timestep}
        return {"images": result.images, "nfe": result.nfe, **depth}
    if isinstance(subject, ClassifierModel):
        return {"logits": subject(setting.images), "features": subject.features(setting.images)}
    if isinstance(subject, Attack):
        result = subject(view_of(setting), setting.images, setting.labels, streams=setting.streams)
        return {"images": result.images, "distance": result.distance}
    if isinstance(subject, PersonalizationStrategy):
        done = subject.local_update(client_round(subject, setting))
        return {**_named("shared", done.shared), **_named("private", done.private)}
    if isinstance(subject, Dataset):
        data = subject.read()
        return {name: getattr(data, name) for name in ("pixels", "labels", "groups", "ids", "sites")}
    raise TypeError(f"there is no contract for a {type(subject).__name__}")


def view_of(setting: Setting, *, hide: str = "") -> ThreatView:
    """A view on the setting's classifier that shows everything but what is hidden."""
    classifier = setting.context.classifier
    assert classifier is not None, "an attack's setting needs a classifier"
    shown: dict[str, Any] = {
        "score": lambda images: classifier(images).logsumexp(1),
        "threshold": 1.0,
        "features": setting.context.features,
    }
    return ThreatView(classifier, **{key: value for key, value in shown.items() if key != hide})


def model_of(component: Classifier, setting: Setting, *, seed: int = MODEL_SEED) -> ClassifierModel:
    """A network of that architecture whose running statistics have seen some images."""
    channels, size, _ = setting.train.image_shape
    model = component.create_model(
        in_channels=channels,
        num_classes=setting.train.num_classes,
        image_size=size,
        class_names=setting.train.class_names,
        seed=seed,
    )
    with isolated_rng(seed), torch.no_grad():
        model.train()(setting.train.batch(torch.arange(8)).images)
    return model.eval()


def client_round(
    strategy: PersonalizationStrategy,
    setting: Setting,
    *,
    number: int = 1,
    shared: Mapping[str, Tensor] | None = None,
    private: Mapping[str, Tensor] | None = None,
    client_id: str = "north",
) -> ClientRound:
    """Round `number` of 2 at one client, two steps long."""
    channels, size, _ = setting.train.image_shape

    def make_model() -> ClassifierModel:
        return tiny_classifier(size, channels, steps=0).requires_grad_(True)

    start = strategy.initial_shared(make_model, 0) if shared is None else shared
    return ClientRound(
        round=number,
        rounds=2,
        client_id=client_id,
        shared={key: value.clone() for key, value in start.items()},
        private={key: value.clone() for key, value in (private or {}).items()},
        make_model=make_model,
        train=setting.train,
        validation=None,
        config=strategy.client_config(number, client_id, []),
        seed=setting.seed,
        task=ClassificationTask(),
        training=TrainingConfig(steps=4, batch_size=8),
        trainer=LoopTrainer(),
    )


@dataclass(frozen=True)
class FreshAnswers:
    """What parts answered in a fresh process, and what went wrong with the others, by name."""

    found: Mapping[str, Observed]
    failures: Mapping[str, str]

    def of(self, name: str) -> Observed:
        """What one part answered there."""
        assert name not in self.failures, f"saving, or loading in a fresh process, failed:\n{self.failures[name]}"
        return self.found[name]


def observe_in_fresh_process(subjects: Mapping[str, Any], setting: Setting, folder: Path) -> FreshAnswers:
    """Save every part, load all of them in one new process, and return what each answers there."""
    setting.save(folder)
    failures: dict[str, str] = {}
    for name, subject in subjects.items():
        try:
            subject.save(folder / "parts" / name)
        except Exception:
            failures[name] = traceback.format_exc()
    order = {"parts": [name for name in subjects if name not in failures], "threads": torch.get_num_threads()}
    (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main({str(folder)!r})"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"the fresh process failed:\n{done.stderr[-4000:]}")
    failures |= json.loads((folder / "failures.json").read_text(encoding="utf-8"))
    found = {name: load_file(folder / f"{name}.safetensors") for name in subjects if name not in failures}
    return FreshAnswers(found, failures)


def main(place: str) -> None:
    """What the fresh process does: load every part by its name, and write what it answers."""
    folder = Path(place)
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    torch.set_num_threads(order["threads"])
    setting = Setting.load(folder)
    failures = {}
    for name in order["parts"]:
        try:
            found = observe(_load(folder / "parts" / name), setting)
        except Exception:
            failures[name] = traceback.format_exc()
            continue
        content = {key: value.detach().contiguous().clone() for key, value in found.items()}
        save_file(content, folder / f"{name}.safetensors")
    (folder / "failures.json").write_text(json.dumps(failures), encoding="utf-8")


def _load(saved: Path) -> Any:
    document = json.loads((saved / "medfedpure.json").read_text(encoding="utf-8"))
    return ClassifierModel.load(saved) if document["kind"] == "classifier_model" else Component.load(saved)


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> Observed:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}
