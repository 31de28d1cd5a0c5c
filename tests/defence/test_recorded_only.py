"""Images that a model drew set no threshold, fit no defence's calibration and are no test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import medfedpure
from medfedpure.core.dataset import Attribute, ImageDataset
from medfedpure.core.errors import DataError
from medfedpure.core.registry import create
from medfedpure.data.synthetic import synthetic
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.testing import tiny_classifier, tiny_dataset


def partly_drawn() -> ImageDataset:
    """Of 80 images the last says that a model drew it."""
    data = tiny_dataset(80)
    origin = torch.zeros(80, dtype=torch.int64)
    origin[-1] = 1
    return replace(data, attributes={"origin": Attribute(("recorded", "synthetic"), origin)})


def test_they_are_refused_wherever_recorded_images_are_wanted() -> None:
    data, model = partly_drawn(), tiny_classifier(steps=0)
    assert int(synthetic(data).sum()) == 1
    detector = create("detector", "feature_squeezing")
    chain = DefendedClassifier(model, detector=detector, policy="abstain")
    with pytest.raises(DataError, match="a calibration part holds recorded ones only"):
        chain.calibrate(data)
    with pytest.raises(DataError, match="a calibration part holds recorded ones only"):
        medfedpure.defend(model, data, recipe="fast")
    with pytest.raises(DataError, match=r"1 of the 80 images .* a test part holds recorded ones only"):
        medfedpure.evaluate(DefendedClassifier(model, policy="none"), data)
    chain.calibrate(data[~synthetic(data)])
    assert chain.calibration is not None
