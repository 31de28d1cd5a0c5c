"""What tests of the export share: small things to export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chains import BENIGN, DATA

from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.export.trace import LEAST_TORCH
from medfedpure.testing import tiny_classifier

TORCH_FITS = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH, reason="export refuses this PyTorch"
)
SHAPE = DATA.image_shape


def predictor(widths: tuple[int, ...] = (8,), shape: tuple[int, int, int] = SHAPE) -> Any:
    """A diffusion purifier around an untrained network."""
    purifier = create("purifier", "ddpm", model={"widths": widths})
    return purifier.adopt(purifier.make_network(shape, seed=0), shape)


def squeezing(policy: Any = "abstain", target_fpr: float | None = 0.1, **options: Any) -> DefendedClassifier:
    """What the recipe "fast" makes, around a small classifier."""
    detector = create("detector", "feature_squeezing", {"bits": (), **options})
    chain = DefendedClassifier(tiny_classifier(), detector=detector, policy=policy)
    return chain if target_fpr is None else chain.calibrate(BENIGN, target_fpr)
