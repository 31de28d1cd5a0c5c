"""Whether a part does what it is for, on a small scale: planted shifts, planted noise, larger budgets.

These are smoke tests. Passing them says that a part points in the right direction, not that it is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack, project, step_along, without_parameter_gradients
from medfedpure.core.errors import ConfigError
from medfedpure.core.streams import Streams
from medfedpure.testing.setting import Setting

NOISE = 0.2
"""Standard deviation of the planted noise, in [0, 1] units: easily seen by eye."""
EPS = 0.1
"""Linf size of the planted gradient steps: about seven times what attacks on scans are allowed."""
STRONG = 0.3
"""The linf budget with which an attack must lower the accuracy of a small classifier; ten times that in l2."""


def many(setting: Setting, images: int = 48) -> Setting:
    """A setting with more of the training images, for figures over images."""
    return Setting.of(setting.train, setting.context, images=min(images, len(setting.train)))


def noisy(setting: Setting, level: float = NOISE) -> Tensor:
    """The images with Gaussian noise of that standard deviation, clipped to [0, 1]."""
    noise = Streams(setting.seed, setting.ids).normal(setting.images.shape[1:], stage="planted", like=setting.images)
    return (setting.images + level * noise).clamp(0, 1)


def fooling(setting: Setting, *, eps: float = EPS, steps: int = 8) -> Tensor:
    """The images after signed gradient steps that raise the loss of the context's classifier."""
    classifier = setting.context.classifier
    assert classifier is not None, "gradient steps need a classifier in the context"
    images, moved = setting.images, setting.images.clone()
    with without_parameter_gradients(classifier), torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_(True)
            loss = nn.functional.cross_entropy(classifier(moved), setting.labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, moved)
            moved = project(moved.detach() + step_along(slope, "linf", 2 * eps / steps), images, "linf", eps)
    return moved.detach()


def planted_shifts(setting: Setting) -> Mapping[str, Tensor]:
    """What a detector is asked to find at least one of: by name, images shifted from those of the setting."""
    shifts = {f"Gaussian noise of std {NOISE:g}": noisy(setting)}
    if setting.context.classifier is not None:
        shifts[f"gradient steps within linf {EPS:g} that fool the classifier"] = fooling(setting)
    return shifts


def strengthened(attack: Attack, eps: float = STRONG) -> Any:
    """The same attack with a larger budget where its configuration has an `eps`."""
    fields, budget = type(attack.config).model_fields, attack.budget()
    if "eps" not in fields or budget is None:
        return attack
    size = eps if budget.norm == "linf" else 10 * eps
    larger = {"eps": size, **({"step": size / 4} if "step" in fields else {})}
    try:
        stronger = type(attack)({**attack.config.model_dump(), **larger})
    except ConfigError:
        return attack
    stronger.plugin_name = attack.plugin_name
    return stronger
