"""Subset scanning says what ART's own detector says, and the others are refused with a reason."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import medfedpure
from medfedpure.core.detector import FitContext, ScoreContext
from medfedpure.core.errors import ConfigError
from medfedpure.core.streams import Streams
from medfedpure.testing import tiny_dataset

pytest.importorskip("art")
DATA = replace(tiny_dataset(20, size=8), groups=torch.arange(20))


class Features(nn.Module):
    """Twelve features of an image, strictly positive differences between images."""

    def __init__(self):
        super().__init__()
        with medfedpure.core.streams.isolated_rng(0):
            self.head = nn.Linear(64, 12)

    def forward(self, images):
        return self.head(images.flatten(1)).exp()


@pytest.mark.parametrize("scoring", ["BerkJones", "HigherCriticism", "KolmarovSmirnov"])
def test_scores_are_those_of_art(scoring):
    from art.defences.detector.evasion import SubsetScanningDetector
    from art.estimators.classification import PyTorchClassifier

    model = Features().eval()
    detector = medfedpure.create("detector", "art", scoring_function=scoring).fit(
        DATA, context=FitContext(features=model)
    )
    estimator = PyTorchClassifier(nn.Sequential(model), nn.CrossEntropyLoss(), (1, 8, 8), 12, clip_values=(0, 1))
    own = SubsetScanningDetector(estimator, DATA.images.numpy(), layer=0, scoring_function=scoring, verbose=False)
    images = tiny_dataset(12, size=8, seed=5).images * 0.9 + 0.05
    report, _ = own.detect(images.numpy())
    streams = Streams.for_batch(0, len(images))
    found = detector(images, context=ScoreContext(features=model), streams=streams)
    assert np.allclose(found.numpy(), report["scores"], atol=1e-4)


def test_an_image_without_an_unusual_feature_scores_zero():
    detector = medfedpure.create("detector", "art").fit(DATA, context=FitContext(features=nn.Flatten()))
    black = torch.zeros(1, 1, 8, 8)
    low = detector(
        black, context=ScoreContext(features=lambda images: images.flatten(1) - 1), streams=Streams.for_batch(0, 1)
    )
    assert low.tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BinaryInputDetector", "learns from attacked images"),
        ("BeyondDetectorPyTorch", "self-supervised"),
        ("Nothing", "not known"),
    ],
)
def test_other_detectors_are_refused_with_the_reason(name, reason):
    with pytest.raises(ConfigError, match=reason):
        medfedpure.create("detector", "art", detector=name)
