"""What is attacked in these tests, and by what."""

from __future__ import annotations

import pytest

import medfedpure
from medfedpure.core.attack import ThreatView
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(12, seed=5)
MODEL = tiny_classifier()
IMAGES, LABELS = DATA.images, MODEL(DATA.images).argmax(1)
QUICK: dict[str, dict[str, object]] = {
    "adversarial_patch": {"steps": 3},
    "apgd": {"steps": 4},
    "apgd_eot": {"steps": 4},
    "art": {},
    "auto_attack": {"steps": 3, "rounds": 1, "queries": 10},
    "auto_attack_suite": {"steps": 3, "queries": 5},
    "carlini_wagner": {"steps": 3, "search_steps": 2},
    "deepfool": {"steps": 5},
    "fab": {"steps": 5},
    "fgsm": {},
    "hfc": {"steps": 3},
    "hop_skip_jump": {"steps": 1, "queries": 10},
    "internal": {"steps": 3},
    "joint_pgd": {"steps": 3},
    "orthogonal_pgd": {"steps": 3},
    "pgd": {},
    "pgd_eot": {"steps": 3},
    "square": {"queries": 20},
}
BLACK_BOX = {"square", "hop_skip_jump"}
BY_GRADIENT = sorted(QUICK.keys() - BLACK_BOX)
every_attack = pytest.mark.parametrize("name", sorted(QUICK))


def attack(name: str, **options: object) -> medfedpure.Attack:
    return medfedpure.create("attack", name, **{**QUICK[name], **options})


def seen(model: object, features: object = None) -> ThreatView:
    """A view that shows what every attack may want."""
    return ThreatView(
        model,
        score=lambda images: images.diff(dim=3).abs().flatten(1).mean(1),
        threshold=0.5,
        features=features or (lambda images: images.flatten(1)[:, :8]),
    )
