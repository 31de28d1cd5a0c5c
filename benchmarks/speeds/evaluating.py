"""What only a GPU can show: how often the host waits for it, and how long a standard evaluation takes."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch

import medfedpure
from benchmarks.speeds.made import CLASSIFIERS, SHARE, classifier, flag, gated, phantoms, purifier, traffic, ways
from benchmarks.speeds.timing import Setting
from medfedpure.core.settings import AdversarialTraining, TrainingConfig
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

EPS = 0.015


def synchronizations(setting: Setting) -> dict[str, Any]:
    """How often `predict` waits for the device, as torch's debug mode counts it, under three policies."""
    if not setting.cuda:
        return {"not_measured": "there is no GPU to wait for"}
    size, batches, batch = setting.sizes[0], 4, 32
    images, fit = traffic(batches * batch, 30, size, 1, setting.device)
    rows = []
    for way in ways(setting.device):
        model, cleaner = classifier("ResNet-18", size, setting.device), purifier(size, setting.device)
        chain = gated(model, cleaner, "compose", {}, fit, way)
        flag(chain, images, round(SHARE * len(images)), batch)
        for policy in ("none", "purify_flagged", "purify_all"):
            chain.policy = policy  # type: ignore[assignment]
            chain.predict(images, seed=0, batch_size=batch)
            waits = _waits(chain, images, batch)
            purified = {"none": 0, "purify_flagged": 1, "purify_all": batches}[policy]
            rows.append({"way": way, "policy": policy, "waits": waits, "at_most": batches + purified})
    return {"size": size, "batches": batches, "rows": rows}


def _waits(chain: DefendedClassifier, images: torch.Tensor, batch: int) -> int:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            chain.predict(images, seed=0, batch_size=batch)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(one.message) for one in told)


def standard(setting: Setting) -> dict[str, Any]:
    """Seconds of `evaluate` at preset "standard" with its cascade: an adversarially trained network, and purify all."""
    if not setting.cuda:
        return {"not_measured": "it takes hours without a GPU"}
    size, device = setting.sizes[-1], setting.device
    data = phantoms(900, size, seed=0)
    fit, test = data.select(torch.arange(700)), data.select(torch.arange(700, 900))
    plugin, by_size = CLASSIFIERS["EfficientNet-Lite0"]
    steps = 2 if setting.quick else 300
    rows = []
    for way in ways(setting.device):
        model = medfedpure.create("classifier", plugin, dict(by_size.get(size, {}))).create_model(
            in_channels=1, num_classes=2, image_size=size, class_names=data.class_names, seed=0, weights=None
        )
        model.to(device)
        plain, budget = ClassificationTask(), TrainingConfig(steps=steps, batch_size=32)
        train(
            model,
            AdversarialTask(plain, AdversarialTraining(share=1.0, steps=3, step=0.0075), plain),
            fit,
            budget,
            seed=0,
        )
        own = {"steps": steps, "batch_size": 32, "learning_rate": 2e-3, "ema": 0.99}
        cleaner = medfedpure.create("purifier", "ddpm", training=own).to(device)
        cleaner.fit(fit, context=DefendedClassifier(model, policy="none").context(), seed=0)
        made = DefendedClassifier(model.eval(), purifier=cleaner.to(device), policy="purify_all")
        chain = made.accelerate(way)
        start = time.perf_counter()
        found = medfedpure.evaluate(
            {"robust + purify all": chain}, test, preset="quick" if setting.quick else "standard", eps=EPS
        )
        torch.cuda.synchronize()
        rows.append({"way": way, "seconds": round(time.perf_counter() - start, 1), "images": len(found.labels)})
    return {"size": size, "classifier": "EfficientNet-Lite0", "preset": "standard", "eps": EPS, "rows": rows}
